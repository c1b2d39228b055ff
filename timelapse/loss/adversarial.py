"""A judge that tells decoded pictures from real ones by frozen features: what makes edges sharp where means are not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm


class Judge(nn.Module):
    """Small heads over a frozen network's maps, as in Projected GANs (Sauer et al. 2021, arXiv:2111.01007, section 3),
    without their random mixing of channels and scales.

    channels: of each map, finest first. width: of each head's hidden layers.
    """

    def __init__(self, channels: Sequence[int], width: int = 64):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                spectral_norm(nn.Conv2d(c, width, 3, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, 1, 1)),
            )
            for c in channels
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (B,c,h,w) of each scale -> scores (B,1,h,w), higher where it looks real."""
        return [head(m * m.shape[1] ** 0.5) for head, m in zip(self.heads, maps)]  # unit length -> mean square 1


def judge_error(judge: Judge, real: list[Tensor], made: list[Tensor]) -> Tensor:
    """() hinge loss of the judge itself (Lim and Ye 2017, arXiv:1705.02894); no gradient reaches the maps."""
    cut = lambda maps: [m.detach() for m in maps]
    pairs = zip(judge(cut(real)), judge(cut(made)))
    return torch.stack([(1 - r).relu().mean() + (1 + m).relu().mean() for r, m in pairs]).mean()


def fooling_error(judge: Judge, made: list[Tensor]) -> Tensor:
    """() loss of who made the maps: minus the judge's score; no gradient reaches the judge."""
    still = {name: p.detach() for name, p in judge.named_parameters()}
    return -torch.stack([s.mean() for s in functional_call(judge, still, (made,))]).mean()
