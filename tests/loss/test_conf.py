"""Every denoising and alignment loss of conf/loss builds what its name says, under its own name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

FOLDER = Path(__file__).parents[2] / "conf" / "loss"
NAMES = ["denoise", "drepa", "drepa_l1", "drepa_spatial", "drepa_temporal", "repa", "trd", "crepa"]
MODEL = {"align": {"layer": 3, "early_layer": 3, "width": 10, "hidden": 8}}


@pytest.mark.parametrize("name", NAMES)
def test_builds_and_gives_one_number_a_clip(name, step):
    part = OmegaConf.load(FOLDER / f"{name}.yaml")
    assert list(part) == [name]  # two variants in one list must not overwrite each other
    cfg = OmegaConf.create({"model": MODEL, "encoder": {"width": 6}, "loss": part})
    loss = instantiate(cfg.loss[name])
    assert type(loss).__module__ == f"timelapse.loss.{name.split('_')[0]}"
    assert loss.weight > 0
    value = loss(step())
    assert value.shape == (2,) and torch.isfinite(value).all()


def test_variants_of_drepa_differ_by_one_choice_each():
    variants = {
        name: OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml")[name])
        for name in NAMES
        if name.startswith("drepa")
    }
    base = variants.pop("drepa")
    changed = {name: {k: v for k, v in cfg.items() if v != base[k]} for name, cfg in variants.items()}
    assert changed == {
        "drepa_l1": {"power": 1},
        "drepa_spatial": {"pairs": "spatial"},
        "drepa_temporal": {"pairs": "temporal"},
    }
