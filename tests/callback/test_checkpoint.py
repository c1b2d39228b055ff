"""A run cut short anywhere and started again leaves the metrics.csv and the weights of one that was never cut."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import killed_at, small_run  # noqa: E402

from timelapse.callback.checkpoint import newest, whole  # noqa: E402
from timelapse.callback.history import read_rows  # noqa: E402
from timelapse.checkpoint import Background, read  # noqa: E402
from timelapse.stages import fit  # noqa: E402

STEPS = 6  # validated before the first, after 4 and at the end; saved after 2, 4 and 6


def table(folder: Path) -> list[tuple]:
    """Everything in metrics.csv but the order of its rows."""
    return sorted((int(row["step"]), *sorted(row.items())) for row in read_rows(folder / "metrics.csv"))


def validated(folder: Path) -> list[int]:
    return [int(row["step"]) for row in read_rows(folder / "metrics.csv") if "val/denoise_t100" in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read(newest(folder / "checkpoints"))["state_dict"]


def same(a: Path, b: Path) -> bool:
    x, y = weights(a), weights(b)
    return table(a) == table(b) and x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


@pytest.fixture(scope="module")
def uncut(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uncut")
    fit(small_run(folder, f"train.steps={STEPS}"))
    return folder


@pytest.mark.parametrize("moment", ["while", "after"])
def test_a_validation_that_a_kill_prevented_is_made_up_for(uncut, tmp_path, moment):
    run = small_run(tmp_path, f"train.steps={STEPS}")
    validate, train = run.module.validation_step, run.module.training_step

    def killed(*args):
        validate(*args)
        if run.module.global_step:
            raise RuntimeError("killed")

    def killed_later(*args):
        if run.module.global_step == 4:
            raise RuntimeError("killed")
        return train(*args)

    if moment == "while":
        run.module.validation_step = killed
    else:
        run.module.training_step = killed_later
    with pytest.raises(RuntimeError, match="killed"):
        fit(run)
    assert newest(tmp_path / "checkpoints").name == "step000004.ckpt"
    fit(small_run(tmp_path, f"train.steps={STEPS}"))
    assert same(tmp_path, uncut)


def test_the_last_step_counts_once_it_is_validated(tmp_path):
    run = small_run(tmp_path, "train.steps=4")
    validate = run.module.validation_step

    def killed(*args):
        validate(*args)
        if run.module.global_step:
            raise RuntimeError("killed")

    run.module.validation_step = killed
    with pytest.raises(RuntimeError, match="killed"):
        fit(run)
    assert newest(tmp_path / "checkpoints").name == "step000002.ckpt"
    fit(small_run(tmp_path, "train.steps=4"))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()].count("step000004.ckpt") == 1
    assert validated(tmp_path) == [0, 3]


def test_a_last_step_that_was_not_due_is_safe_before_it_is_validated(tmp_path):
    run = small_run(tmp_path, "train.steps=3", "train.validate_every=9")
    validate = run.module.validation_step

    def killed(*args):
        if run.module.global_step:
            raise RuntimeError("killed")
        validate(*args)

    run.module.validation_step = killed
    with pytest.raises(RuntimeError, match="killed"):
        fit(run)
    assert newest(tmp_path / "checkpoints").name == "step000003.ckpt"


def test_the_held_out_loss_is_known_of_the_weights_a_run_begins_and_ends_on(uncut, tmp_path):
    """Whatever `validate_every` is; rows count from 0, so that row 3 is of the weights after step 4."""
    assert validated(uncut) == [0, 3, 5]
    fit(small_run(tmp_path, "train.steps=3", "train.validate_every=9", "train.learning_rate=0", "train.weight_decay=0"))
    assert validated(tmp_path) == [0, 2]
    first, last = (row["val/denoise_t100"] for row in read_rows(tmp_path / "metrics.csv") if "val/denoise_t100" in row)
    assert first == last  # nothing moved


def test_sigterm_saves_the_step_in_hand_and_leaves_its_validation_to_the_next_run(uncut, tmp_path):
    run, step = small_run(tmp_path, f"train.steps={STEPS}"), 4
    train = run.module.training_step

    def preempted(*args):
        if run.module.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(*args)

    run.module.training_step = preempted
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        fit(run)
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    assert newest(tmp_path / "checkpoints").name == f"step{step:06d}.ckpt"
    assert validated(tmp_path) == [0]
    fit(small_run(tmp_path, f"train.steps={STEPS}"))
    assert same(tmp_path, uncut)


def test_sigterm_in_the_last_validation_ends_the_run_after_it(tmp_path):
    run = small_run(tmp_path, "train.steps=4")
    validate = run.module.validation_step

    def preempted(*args):
        if run.module.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        return validate(*args)

    run.module.validation_step = preempted
    with pytest.raises(SystemExit) as end:
        fit(run)
    assert end.value.code == 143 and newest(tmp_path / "checkpoints").name == "step000004.ckpt"
    assert not [*(tmp_path / "checkpoints").glob("*.held")] and validated(tmp_path) == [0, 3]
    fit(small_run(tmp_path, "train.steps=4"))  # nothing is left to do, and that is no error


def test_a_run_that_goes_on_with_other_parts_to_a_step_takes_the_same_steps(tmp_path):
    """As on half as many GPUs: as many clips a step, the same ones, and validated after the same steps."""
    parts, whole_steps = ["train.accumulate=2", "train.batch_size=1"], ["train.batch_size=2"]
    for name, first, then in (
        ("one", whole_steps, whole_steps),
        ("less", whole_steps, parts),
        ("more", parts, whole_steps),
    ):
        with pytest.raises(RuntimeError, match="killed"):
            fit(killed_at(small_run(tmp_path / name, f"train.steps={STEPS}", *first), 2))
        fit(small_run(tmp_path / name, f"train.steps={STEPS}", *then))
    expected = weights(tmp_path / "one")
    for name in ("less", "more"):
        assert validated(tmp_path / name) == validated(tmp_path / "one")
        found = weights(tmp_path / name)
        assert max((found[k].float() - expected[k].float()).abs().max() for k in expected) < 2e-5
        steps = [
            row["step"]
            for row in read_rows(tmp_path / name / "metrics.csv")
            if any(name.startswith("lr-") for name in row)
        ]
        assert len(steps) == len(set(steps)) == STEPS  # the rate, once a step


def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so(uncut, tmp_path, caplog):
    run = small_run(tmp_path, f"train.steps={STEPS}")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    train = run.module.training_step

    def fills_up(*args):
        if run.module.global_step == 3:
            while newest(tmp_path / "checkpoints") is None:  # written beside the training
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        return train(*args)

    run.module.training_step = fills_up
    try:
        with pytest.raises(ValueError, match="File too large.*goes on from step000002.ckpt"):
            fit(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "the one before it stays" in caplog.text
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step000002.ckpt"]
    fit(small_run(tmp_path, f"train.steps={STEPS}"))
    assert same(tmp_path, uncut)


def test_the_newest_two_stay_and_what_a_kill_cut_short_goes(tmp_path):
    fit(small_run(tmp_path, "train.steps=5", "train.checkpoint_every=1"))
    folder = tmp_path / "checkpoints"
    assert [p.name for p in whole(folder)] == ["step000004.ckpt", "step000005.ckpt"]
    (folder / "step000009.ckpt.part").write_bytes(b"half")
    (folder / "step000007.ckpt").mkdir()  # a folder without its last file is no checkpoint
    assert newest(folder).name == "step000005.ckpt"


def test_more_stay_where_one_asks_for_more(tmp_path):
    typed = ["train.steps=4", "train.checkpoint_every=1"]
    for keep, stay in ((3, [2, 3, 4]), ("null", [1, 2, 3, 4])):
        fit(small_run(tmp_path / str(keep), *typed, f"train.keep={keep}"))
        assert [p.name for p in whole(tmp_path / str(keep) / "checkpoints")] == [f"step00000{n}.ckpt" for n in stay]
    with pytest.raises(ValueError, match="train.keep=0 .* type 1 or more, or null for all"):
        fit(small_run(tmp_path, *typed, "train.keep=0"))


def test_what_one_process_of_many_could_not_write_is_an_error_of_all(tmp_path, caplog):
    """torch.distributed.checkpoint raises what is no Exception, with what each process raised in it."""
    failures = {1: (OSError(28, "No space left on device"), None)}
    background = Background()

    def work(part):
        part.mkdir(parents=True)
        raise CheckpointException("write", failures)

    background.hold(tmp_path / "step000002.ckpt", work)
    background.wait()
    assert isinstance(background.error, CheckpointException) and not any(tmp_path.iterdir())
    said = "step000002.ckpt was not written ([Errno 28] No space left on device); the one before it stays"
    assert said in caplog.text


def test_a_copied_checkpoint_is_no_checkpoint_of_the_run(tmp_path):
    for name in ("step000002.ckpt", "step000010.ckpt", "step000010 (copy).ckpt", "step.ckpt"):
        (tmp_path / name).write_bytes(b"x")
    assert newest(tmp_path).name == "step000010.ckpt" and len(whole(tmp_path)) == 2
