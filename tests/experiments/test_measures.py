"""What the scripts of the pages measure is there to be measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from timelapse.dataset.world.processes import PROCESSES, draw_identity, render
from timelapse.randomness import keyed
from timelapse.run import CONF

FOLDER = Path(__file__).parents[2] / "experiments"


def script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, FOLDER / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_worlds_of_the_image_vaes_are_there():
    for model, dataset in script("pretrain_picture_vae/measure.py").DATASETS.items():
        assert (CONF / f"model/{model}.yaml").is_file() and (CONF / f"dataset/{dataset}.yaml").is_file()


@pytest.mark.parametrize("process", PROCESSES)
def test_a_hue_that_is_probed_is_painted(process):
    probe = script("pretrain_vjepa/probe.py")
    stage = torch.tensor([0.0, 0.5, 1.0])
    for n in range(6):
        who = draw_identity(process, keyed("probed", process, n))
        for hue, shown in ((probe.SUBJECT[process], probe.shows_hue), ("hue", probe.shows_place)):
            turned = who | {hue: (who[hue] + 0.5) % 1}
            if shown(process, who):
                a, b = (render(process, w, stage, 32, 32)[0] for w in (who, turned))
                assert (a - b).abs().max() > 0.02, (process, hue)
