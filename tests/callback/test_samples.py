"""Samples while training come once, after the step that they are named for, whether or not the run was cut."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import killed_at, small_run  # noqa: E402

from timelapse.build import build  # noqa: E402
from timelapse.callback.history import read_rows  # noqa: E402
from timelapse.callback.samples import Samples  # noqa: E402
from timelapse.stages import fit  # noqa: E402

TYPED = ["train.sample_every=2", "train.accumulate=2", "train.batch_size=1", "train.validation_clips=1"]
TYPED += ["train.steps=4", "sampler.steps=1", "sampler.n_chunks=3", "sample.batch_size=1", "metric=[flicker]"]


def run_in(folder: Path, decoded: list[int]):
    """A run that adds its step to `decoded` for each chunk of a sample."""
    run = small_run(folder, *TYPED)
    decode = run.model.codec.decode

    def noted(latent):
        decoded.append(run.module.global_step)
        return decode(latent)

    run.model.codec.decode = noted
    return run


def test_a_preview_leaves_frozen_parts_in_eval(tmp_path):
    """A text encoder that is trained has no dropout, before and after."""
    run = small_run(tmp_path, *TYPED, "module.train_text=true")
    run.module.materialise()
    callback = Samples(tmp_path / "previews", 1, run.validation_clips, 1, 0, build(run.cfg.sampler), {})
    run.module.train()
    run.module.text.eval()
    modes = {part: part.training for part in run.module.modules()}
    trainer = SimpleNamespace(
        global_step=1, accumulate_grad_batches=1, is_global_zero=True, precision="32-true", loggers=[]
    )
    callback.on_train_batch_end(trainer, run.module, None, None, 0)
    assert {part: part.training for part in run.module.modules()} == modes and not run.module.text.training


def test_a_run_that_was_cut_samples_what_one_that_was_not_samples(tmp_path):
    whole, cut = [], []
    fit(run_in(tmp_path / "whole", whole))

    with pytest.raises(RuntimeError, match="killed"):
        fit(killed_at(run_in(tmp_path / "cut", cut), 3))
    fit(run_in(tmp_path / "cut", cut))
    assert whole == cut == [2, 4]  # one chunk of three, after the last part of the step
    rows = [read_rows(tmp_path / name / "metrics.csv") for name in ("whole", "cut")]
    sampled = [[row for row in each if "sample/flicker" in row] for each in rows]
    assert sampled[0] == sampled[1] and [row["step"] for row in sampled[0]] == ["1", "3"]
