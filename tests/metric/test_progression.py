from __future__ import annotations

import pytest
import torch
from scipy.stats import kendalltau
from torch import nn

from timelapse.metric.progression import Progression, kendall


def test_is_kendalls_tau():
    values = torch.rand(5, 16, generator=torch.manual_seed(0))
    expected = [kendalltau(range(16), row.numpy()).statistic for row in values]
    torch.testing.assert_close(kendall(values), torch.tensor(expected, dtype=torch.float32))


def test_order_alone_counts():
    steady = torch.arange(1.0, 9.0)[None]
    late = steady**5
    assert kendall(steady) == kendall(late) == 1
    assert kendall(-steady) == -1
    there_and_back = torch.tensor([[1.0, 2.0, 3.0, 4.0, 3.5, 2.5, 1.5, 0.5]])
    assert kendall(there_and_back).item() == pytest.approx(-4 / 28)
    assert kendall(torch.ones(1, 8)) == 0


class Pixels(nn.Module):
    """The simplest feature network: the pixels themselves."""

    name = "pixels"

    def forward(self, frames):
        return frames.flatten(1)


def test_a_static_clip_goes_nowhere_and_a_fade_goes_on():
    metric = Progression(Pixels())
    a, b = torch.rand(2, 3, 32, 32, generator=torch.manual_seed(3)) * 2 - 1
    metric.update(a.expand(1, 6, -1, -1, -1))
    assert metric.last.item() == 0
    metric.update(torch.stack([a.lerp(b, w) for w in torch.linspace(0, 1, 6)])[None])
    assert metric.last.item() == 1
