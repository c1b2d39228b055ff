"""The main job with the weights that ship, on a folder of videos: fit, sample, evaluate, report."""

from __future__ import annotations

import html
import json
from pathlib import Path

from hydra import compose, initialize_config_dir

from timelapse.build import frozen
from timelapse.callback.history import read_rows
from timelapse.dataset.synthetic import Synthetic
from timelapse.dataset.write import write_video
from timelapse.parts import Run
from timelapse.run import CONF
from timelapse.stages import evaluate, fit, report, sample

TYPED = [
    "+experiment=drepa_vjepa",
    "trainer=cpu",
    "dataset=clips",
    "dataset.fractions=[1.0]",
    "dataset.windows=1",
    "dataset.val_share=0",
    "dataset.caption=time-lapse of a flower blooming",
    "train.steps=1",
    "train.warmup=0",
    "train.batch_size=1",
    "train.learning_rate=1e-6",
    "train.validation_clips=1",
    "train.validate_every=9",
    "sample.count=1",
    "sampler.steps=2",
    "metric=[subject_consistency,morphing_degree,fidelity_psnr,colour_drift]",
]


def test_shipped_weights_go_from_a_folder_of_videos_to_a_page(tmp_path: Path):
    footage = tmp_path / "footage"
    footage.mkdir()
    world = Synthetic(size=2, processes=["flower"], split="footage")
    for i in range(2):
        write_video(footage / f"flower{i}.mkv", world[i]["video"], lossless=True)
    (footage / "broken.mp4").write_bytes((footage / "flower0.mkv").read_bytes()[:300])
    places = [f"dataset.root={footage}", f"dataset.index={tmp_path}/index.json", f"paths.cache={tmp_path}/cache"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = Run(frozen(compose("config", [*TYPED, *places])), tmp_path / "run")
    run.check()
    run.freeze()
    before = [p.detach().clone() for p in run.model.backbone.parameters()]
    for stage in (fit, sample, evaluate, report):
        stage(run)
    rows = [row for row in read_rows(run.folder / "metrics.csv") if row.get("train/drepa")]
    assert len(rows) == 1 and 0 < float(rows[0]["train/denoise"]) < 0.5  # an untrained network has about 1
    assert any((p - old).abs().max() > 0 for p, old in zip(run.model.backbone.parameters(), before))
    numbers = json.loads((run.folder / "metrics.json").read_text())
    assert numbers["fidelity_psnr"] > 20 and numbers["subject_consistency"] > 0.8, numbers
    page = (run.folder / "report.html").read_text()
    for said in ("broken.mp4", "tiny V-JEPA 2 (1.2 M, synthetic world) stands in for V-JEPA 2 ViT-L."):
        assert html.escape(said) in page
