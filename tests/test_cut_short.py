"""A full disk, or death, in the middle of writing a checkpoint leaves the one before it, whoever writes."""

import resource
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from distributed import exit_codes  # noqa: E402

from timelapse.callback.checkpoint import newest, writer  # noqa: E402
from timelapse.checkpoint import is_sharded, read  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LIMIT = 100_000  # bytes; each process writes more of a checkpoint
WRITERS = {"cpu": (1, 0), "fsdp": (2, 1), "ddp": (2, 0)}  # processes, and which of them is out of luck


def train(folder: Path, trainer: str, what: str | None = None, step: int = 3) -> list[int]:
    """Exit codes of a run of 6 steps, saved after 2, 4 and 6. From `step` on no file of one of its processes grows over
    LIMIT. what: "full": writing fails then, as on a full disk; "killed": the process dies at that byte."""
    processes, victim = WRITERS[trainer]

    def prepare(rank, run):
        training_step = run.module.training_step

        def limited(*args):
            if run.module.global_step >= step and rank == victim:
                writer(run.module.trainer).wait()  # the one before is whole
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL if what == "killed" else signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            return training_step(*args)

        run.module.training_step = limited

    overrides = [f"trainer={trainer}", "train.steps=6", f"train.batch_size={2 // processes}"]
    return exit_codes(processes, folder, *overrides, prepare=prepare if what else None)[0]


@pytest.mark.parametrize("trainer", WRITERS)
def test_what_is_cut_short_leaves_the_last_good_one(tmp_path, trainer):
    folder, victim = tmp_path / "checkpoints", WRITERS[trainer][1]
    codes = train(tmp_path, trainer, "killed")
    assert codes[victim] == -signal.SIGXFSZ
    assert newest(folder).name == "step000002.ckpt"
    if trainer != "fsdp":  # there the process that is left clears up, if it comes to it
        assert (folder / "step000004.ckpt.part").exists()
    good = read(newest(folder))

    codes = train(tmp_path, trainer, "full")
    said = (tmp_path / f"rank{victim}.log").read_text()
    assert codes[victim] == 1
    line = [line for line in said.splitlines() if line.startswith("ValueError")][-1]
    assert f"could not be written to {folder} (" in line and "goes on from step000002.ckpt" in line
    assert "[Errno 27] File too large" in line or "a file ended early: a full disk or quota" in line
    assert [path.name for path in folder.iterdir()] == ["step000002.ckpt"]
    assert read(newest(folder))["global_step"] == good["global_step"] == 2

    assert not any(train(tmp_path, trainer))
    assert newest(folder).name == "step000006.ckpt" and is_sharded(newest(folder)) == (trainer == "fsdp")
