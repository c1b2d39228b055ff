"""The guides work as they are written."""

import re
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

sys.path.insert(0, str(Path(__file__).parent))
from small import SMALL  # noqa: E402

import timelapse.loss  # noqa: E402
from timelapse.build import frozen  # noqa: E402
from timelapse.dataset.module import collate  # noqa: E402
from timelapse.parts import Run  # noqa: E402
from timelapse.run import CONF  # noqa: E402

ROOT = CONF.parent


def blocks(guide: Path, language: str) -> list[str]:
    """Code blocks of a guide, with the indentation of its list taken off."""
    found = re.findall(rf"( *)```{language}\n(.*?)```", guide.read_text(), re.S)
    return [re.sub(rf"(?m)^{indent}", "", code) for indent, code in found]


def test_the_loss_of_the_guide_trains(tmp_path, monkeypatch):
    guide = ROOT / "timelapse" / "loss" / "README.md"
    (tmp_path / "loss").mkdir()
    (tmp_path / "drift.py").write_text(blocks(guide, "python")[0])
    (tmp_path / "loss" / "drift.yaml").write_text(blocks(guide, "yaml")[0])
    monkeypatch.setattr(timelapse.loss, "__path__", [*timelapse.loss.__path__, str(tmp_path)])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"hydra.searchpath=[file://{tmp_path}]", "loss=[denoise,drift]", f"paths.cache={tmp_path}/c"]
        cfg = compose("config", ["+experiment=finetune_only", *SMALL, *overrides])
    run = Run(frozen(cfg), tmp_path)
    run.module.materialise()
    batch = collate([{**run.train_clips[i], "draw": i} for i in (0, 1)])
    step = run.module.step(*run.module.prepare(batch, batch["key"]), torch.tensor([100, 800]), batch["key"])
    drift = run.losses["drift"]
    expected = torch.stack([z.mean((2, 3)).diff(dim=0).square().mean() for z in step.z0_hat])
    torch.testing.assert_close(drift(step), expected)
    assert drift.weight == 0.1


def test_every_link_of_the_guides_leads_somewhere():
    for guide in [ROOT / "README.md", *ROOT.glob("timelapse/*/README.md"), *ROOT.glob("experiments/*/README.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", guide.read_text()):
            assert target.startswith("http") or (guide.parent / target).exists(), f"{guide}: {target}"
