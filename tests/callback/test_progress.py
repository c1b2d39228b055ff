"""The bar knows the run's end and where it stands, also in a run that goes on."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import killed_at, small_run  # noqa: E402

from timelapse.callback.progress import StepProgress  # noqa: E402
from timelapse.stages import fit  # noqa: E402


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_runs_bar_goes_on_from_its_step_to_its_end(tmp_path, monkeypatch, accumulate):
    began, begin = [], StepProgress.begin

    def noted(self, trainer):
        begin(self, trainer)
        bar = self.train_progress_bar
        began.append((bar.initial, bar.n, bar.total))

    monkeypatch.setattr(StepProgress, "begin", noted)
    typed = ["train.steps=4", f"train.accumulate={accumulate}"]
    with pytest.raises(RuntimeError, match="killed"):
        fit(killed_at(small_run(tmp_path, *typed), 2))
    assert set(began) == {(0, 0, 4 * accumulate)}
    began.clear()
    fit(small_run(tmp_path, *typed))
    assert set(began) == {(2 * accumulate, 2 * accumulate, 4 * accumulate)}
