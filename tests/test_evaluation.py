"""Numbers on disk that any reader of JSON takes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import torch
from omegaconf import OmegaConf

from timelapse.callback.loggers import final_numbers
from timelapse.dataset.write import write_video
from timelapse.evaluation import evaluate_run
from timelapse.report import write_report
from timelapse.report.run_files import read_run


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


def test_real_clips_are_measured_from_the_given_frame_too(tmp_path: Path):
    """A clip that is its own truth drifts as far as the real one, wherever it was given."""
    (tmp_path / "samples").mkdir()
    clip = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 1, 5).view(
        5, 1, 1, 1
    )
    for name in ("a", "a.truth"):
        write_video(tmp_path / f"samples/{name}.mkv", clip, lossless=True)
    (tmp_path / "samples/a.json").write_text(json.dumps({"caption": "", "known": [2], "frames": 5}))
    metric = {"colour_drift": {"_target_": "timelapse.metric.colour_drift.ColourDrift"}}
    evaluate_run(SimpleNamespace(out=tmp_path, cfg=OmegaConf.create({"metric": metric, "seed": 0})))
    drift = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]["colour_drift"]
    assert drift["value"] == drift["truth"] > 0


def test_what_is_no_number_is_null_on_disk_and_is_read_again(tmp_path: Path):
    """Of two clips one has no truth; and a mean square error's range has no end."""
    (tmp_path / "samples").mkdir()
    ramp = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 3, 16, 16)
    for key in ("a", "b"):
        write_video(tmp_path / f"samples/{key}.mkv", ramp, lossless=True)
        write_video(tmp_path / f"samples/{key}.mp4", ramp)
        (tmp_path / f"samples/{key}.json").write_text(json.dumps({"caption": "", "known": [0], "frames": 5}))
    write_video(tmp_path / "samples/a.truth.mkv", ramp.flip(0), lossless=True)
    metric = {
        "truth_psnr": {"_target_": "timelapse.metric.truth.TruthPSNR"},
        "motion_error": {"_target_": "timelapse.metric.motion_direction.MotionError"},
    }
    evaluate_run(SimpleNamespace(out=tmp_path, cfg=OmegaConf.create({"metric": metric, "seed": 0})))
    for name in ("metrics.json", "evaluation.json"):
        said = json.loads((tmp_path / name).read_text(), parse_constant=refuse)
    assert said["per_clip"]["a"]["truth_psnr"] > 0 and said["per_clip"]["b"]["truth_psnr"] is None
    run = read_run(tmp_path)
    assert [list(sample.metrics) for sample in run.samples][1] == [] and run.metrics["truth_psnr"]["n"] == 1

    said["metrics"]["truth_psnr"] |= {"value": None, "range": [0, None]}
    (tmp_path / "evaluation.json").write_text(json.dumps(said))
    (tmp_path / "metrics.json").write_text('{"truth_psnr": null, "seed": 0}')
    again = read_run(tmp_path).metrics["truth_psnr"]
    assert math.isnan(again["value"]) and again["range"] == [0, math.inf] and final_numbers(tmp_path) == {"seed": 0}
    assert "0 … inf" in write_report(tmp_path).read_text()
