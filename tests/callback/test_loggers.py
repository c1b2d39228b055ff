from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from timelapse.callback.dashboard import LAYOUT, save_dashboard, workspace
from timelapse.callback.loggers import TensorBoard, has_key, wandb
from timelapse.dataset.write import write_video


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "finetune_only/seed-0"
    (folder / "samples").mkdir(parents=True)
    write_video(folder / "samples/a.mp4", torch.linspace(-1, 1, 5 * 3 * 16 * 16).view(5, 3, 16, 16))
    (folder / "samples/a.json").write_text(json.dumps({"caption": "a rose", "known": [2]}))
    (folder / "metrics.json").write_text('{"morphing_degree": 0.25, "seed": 3}')
    (folder / "config.yaml").write_text("seed: 3\nloss: {denoise: {weight: 1.0}}\n")
    return folder


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, "x")  # so that what is set meanwhile is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_wandb_without_a_key_writes_files_and_continues_the_same_run(run_dir: Path, no_key: None):
    import wandb as library

    history, logger = wandb(str(run_dir))
    logger.log_metrics({"train/loss": 0.5}, step=1)
    logger.publish(run_dir)
    run = logger.experiment
    assert run.offline and run.name == "finetune_only/seed-0" and run.group == "finetune_only"
    assert run.config["seed"] == 3
    assert run.summary["metric/morphing_degree"] == 0.25
    assert run.summary["samples"]["captions"] == ["a rose (frame 2 given)"]
    library.finish()
    [offline] = (run_dir / "wandb").glob("offline-run-*")
    assert len(list(offline.glob("files/media/videos/*.mp4"))) == 1
    assert wandb(str(run_dir))[1]._id == run.id  # a run directory is one run, also when it goes on


def test_a_key_is_found_where_wandb_looks(no_key: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert not has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password abc\n")
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    assert has_key()


def test_tensorboard_holds_scalars_and_film_strips(run_dir: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoard(str(run_dir))
    logger.log_metrics({"train/loss": 0.5}, step=4)
    logger.publish(run_dir)
    logger.finalize("success")
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert events.Scalars("train/loss")[0].value == 0.5
    assert events.Scalars("metric/morphing_degree")[0].value == 0.25
    assert events.Images("samples")[0].width > events.Images("samples")[0].height


def test_the_dashboard_shows_sc_only_beside_md_and_is_saved_beside_the_run(tmp_path: Path):
    spec = json.loads(save_dashboard(tmp_path, "timelapse").read_text())
    assert spec["sections"] == LAYOUT
    bars = [p["bars"] for panels in LAYOUT.values() for p in panels if "bars" in p]
    assert {"metric/subject_consistency", "metric/morphing_degree"} <= set(bars)


def test_the_dashboard_becomes_a_workspace(tmp_path: Path):
    pytest.importorskip("wandb_workspaces")
    spec = json.loads(save_dashboard(tmp_path, "timelapse").read_text())
    made = workspace(spec, "someone")._to_model().model_dump_json(by_alias=True)
    assert all(f'"{name}"' in made for name in LAYOUT)
