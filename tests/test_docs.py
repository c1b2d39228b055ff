"""The guides work as they are written."""

import json
import re
import sys
import tomllib
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from small import SMALL  # noqa: E402

import timelapse.loss  # noqa: E402
import timelapse.model  # noqa: E402
from timelapse.build import frozen  # noqa: E402
from timelapse.callback.history import read_rows  # noqa: E402
from timelapse.dataset.__main__ import main as dataset_main  # noqa: E402
from timelapse.dataset.module import collate  # noqa: E402
from timelapse.dataset.write import write_video  # noqa: E402
from timelapse.parts import Run  # noqa: E402
from timelapse.plan import check_memory, count  # noqa: E402
from timelapse.run import CONF  # noqa: E402
from timelapse.stages import export, fit, sample  # noqa: E402

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


def test_the_backbone_of_the_guide_is_planned_trained_and_sampled(tmp_path, monkeypatch):
    guide = ROOT / "timelapse" / "model" / "README.md"
    (tmp_path / "model").mkdir()
    (tmp_path / "ltx.py").write_text(blocks(guide, "python")[0])
    (tmp_path / "model" / "ltx_tiny.yaml").write_text(blocks(guide, "yaml")[0])
    monkeypatch.setattr(timelapse.model, "__path__", [*timelapse.model.__path__, str(tmp_path)])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        parts = [
            o.replace("model.", "model.parts.", 1) for o in SMALL if o.startswith(("model.vae", "model.transformer"))
        ]
        own = [o for o in SMALL if not o.startswith("model.")]
        typed = [f"hydra.searchpath=[file://{tmp_path}]", "model=ltx_tiny", "loss=[denoise,drepa]", "train.steps=1"]
        typed += [
            "model.parts.weights=null",
            "model.parts.align=null",
            "sampler.steps=1",
            "sample.count=1",
            f"paths.cache={tmp_path}/c",
        ]
        cfg = compose("config", [*own, *parts, *typed])
    run = Run(frozen(cfg), tmp_path)
    run.check()
    run.freeze()
    check_memory(run.cfg, gib=1.0)  # as a fit on a GPU does
    counts, network = count(run.cfg), run.model.backbone
    assert counts.parameters == counts.trained == sum(p.numel() for p in network.parameters())
    assert counts.blocks == 2 and counts.tokens == 5 * 8 * 8 + 40 and counts.flops > 0 and counts.block > 0
    before = network.network.proj_out.weight.detach().clone()
    fit(run)
    assert not torch.equal(run.model.backbone.network.proj_out.weight.cpu(), before)
    rows = read_rows(tmp_path / "metrics.csv")
    assert any(float(row.get("train/drepa") or 0) > 0 for row in rows)
    sample(run)
    assert len(list((tmp_path / "samples").glob("*.mkv"))) == 2  # and its truth
    export(run)
    assert (tmp_path / "export" / "config.json").exists()


def test_the_footage_of_the_guide_is_read(tmp_path, monkeypatch, capsys):
    """Its manifest, beside the files that it names, is looked at and read as the guide says."""
    guide, footage = ROOT / "timelapse" / "dataset" / "README.md", tmp_path / "DIR"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "index"))
    monkeypatch.chdir(tmp_path)
    (footage / "g").mkdir(parents=True)
    manifest = blocks(guide, "json")[0]
    (footage / "manifest.jsonl").write_text(manifest)
    ramp = torch.linspace(-1, 1, 80).view(80, 1, 1, 1).expand(80, 3, 64, 64)
    write_video(footage / "rose.mp4", ramp, fps=2.5)  # 32 seconds, of which the manifest takes 2 to 31.5
    rows = [json.loads(line) for line in manifest.splitlines()]
    frames = next(row["frames"] for row in rows if "frames" in row)
    for name in frames:
        Image.new("RGB", (64, 64)).save(footage / name)
    (look,) = [code for code in blocks(guide, "") if code.startswith("python -m timelapse.dataset")]
    monkeypatch.setattr(sys, "argv", ["timelapse.dataset", *look.split()[3:]])
    assert dataset_main() == 1  # these two rows leave nothing to validate on
    said = capsys.readouterr()
    assert "skipped garden: too short: 2 frames" in said.out and "no val clip" in said.err
    names: dict = {}
    exec(blocks(guide, "python")[0], names)
    clips = names["clips"]
    assert len(clips) and clips[0]["video"].shape == (17, 3, 64, 64)
    assert {clip.source.caption for clip in clips.clips} == {"a rose opens"}
    assert (clips[0]["seconds"].diff() > 0).all() and clips.summary()["clips"] == len(clips)


def test_every_link_of_the_guides_leads_somewhere():
    for guide in [ROOT / "README.md", *ROOT.glob("timelapse/*/README.md"), *ROOT.glob("experiments/*/README.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", guide.read_text()):
            assert target.startswith("http") or (guide.parent / target).exists(), f"{guide}: {target}"


def test_every_extra_that_somebody_is_told_to_install_is_there_and_pinned():
    texts = [
        file.read_text() for folder in ("timelapse", "conf") for file in (ROOT / folder).rglob("*.*") if told(file)
    ]
    named = {
        extra for text in [*texts, (ROOT / "Makefile").read_text()] for extra in re.findall(r"'\.\[([\w,]+)\]'", text)
    }
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"dashboard", "frechet", "adamw8bit"} <= {e for names in named for e in names.split(",")} <= extras.keys()
    pinned = {line.partition("==")[0].lower() for line in (ROOT / ".constraints.txt").read_text().splitlines()}
    assert {re.match(r"[\w-]+", need)[0] for needs in extras.values() for need in needs} <= pinned


def told(file: Path) -> bool:
    return file.suffix in (".py", ".md", ".yaml")
