"""Naive forms of the losses, written from their formulas, and a training step to feed losses with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from timelapse.process import Process
from timelapse.types import Step


def naive_relation(
    x: Tensor, y: Tensor, frames: int = 1, pairs: str = "full", margin: float = 0.0, power: int = 1, diagonal=False
) -> Tensor:
    """Mean over pairs of relu(|difference of cosines| - margin)^power by (N,N) matrices, (B,N,D) -> (B,)."""
    x, y = F.normalize(x, dim=2), F.normalize(y, dim=2)
    difference = x @ x.mT - y @ y.mT
    frame = torch.arange(x.shape[1]) // (x.shape[1] // frames)
    same = frame[:, None] == frame[None]
    chosen = {"full": torch.ones_like(same), "spatial": same, "temporal": ~same}[pairs]
    if not diagonal:
        chosen = chosen & ~torch.eye(x.shape[1], dtype=torch.bool)
    return ((difference.abs() - margin).relu().pow(power) * chosen).sum((1, 2)) / chosen.sum()


@pytest.fixture
def naive():
    return naive_relation


@pytest.fixture
def features():
    """features(B, N, D, seed) -> x, y in float64: uneven rows with a common part, as real features have."""

    def make(clips: int, tokens: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
        scale = torch.linspace(1.5, 0.2, width, dtype=torch.float64)
        y = (draw(clips, tokens, width) + 0.7 * draw(clips, 1, width)) * scale
        x = (draw(clips, tokens, width) + 0.5 * draw(clips, 1, width)) * scale.flip(0)
        return x * (1 + draw(clips, tokens, 1).abs()), y

    return make


@pytest.fixture
def step():
    """step(t=(...), hidden_width, feature_width): a Step of v-prediction on a (4,3,2) token grid, all float32."""

    def make(t=(10, 600), hidden_width: int = 10, feature_width: int = 6, layer: int = 3) -> Step:
        g = torch.Generator().manual_seed(5)
        draw = lambda *shape: torch.randn(*shape, generator=g)
        t, process = torch.tensor(t), Process()
        clips, shape = len(t), (4, 5, 6, 4)
        z0, noise, output = draw(clips, *shape), draw(clips, *shape), draw(clips, *shape)
        zt = process.noise(z0, noise, t)
        return Step(
            z0=z0,
            noise=noise,
            zt=zt,
            t=t,
            alpha=process.alpha(t),
            sigma=process.sigma(t),
            output=output,
            target=process.target(z0, noise, t),
            z0_hat=process.to_z0(zt, output, t),
            hidden={layer: draw(clips, 4 * 6, hidden_width)},
            grid=(4, 3, 2),
            batch={"key": list("ab")[:clips], "feature": draw(clips, 3 * 6, feature_width)},
        )

    return make
