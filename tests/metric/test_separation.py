"""experiments/metric_separation: its statistics, and that what it says of the metrics is still so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml

HERE = Path(__file__).parents[2] / "experiments/metric_separation"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("separate", HERE / "separate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_auc_is_the_share_of_pairs(script):
    clean, failed = torch.tensor([3.0, 4.0, 5.0]), torch.tensor([1.0, 4.0, 4.5])
    draw = torch.manual_seed(0)
    value, low, high = script.auc(clean, failed, True, 500, draw)
    assert value == pytest.approx((3 + 1.5 + 1) / 9)  # 1.0 is below all, 4.0 ties once and wins once, 4.5 wins once
    assert low <= value <= high
    assert script.auc(clean, failed, False, 10, draw)[0] == pytest.approx(1 - value)
    assert script.auc(clean, clean - 10, True, 100, draw) == (1, 1, 1)


def test_expected_numbers_keep_the_promise(script):
    expected = yaml.safe_load((HERE / "expected.yaml").read_text())
    readme = (HERE / "README.md").read_text()
    assert expected["clips"] >= 64
    for failure, metric in script.MEANT.items():
        value, low, high = expected["auc"][metric][failure]
        assert value >= 0.95, f"{failure} by {metric}"
        assert f"**{value:.3f} [{low:.3f}, {high:.3f}]**" in readme


@pytest.mark.slow
def test_the_metrics_still_separate(script):
    numbers, _ = script.separate(clips=20, seed=1, features="appearance", size=128, resamples=10)
    for failure, metric in script.MEANT.items():
        assert numbers["auc"][metric][failure][0] >= 0.9, f"{failure} by {metric}"  # 20 clips: +-0.05
