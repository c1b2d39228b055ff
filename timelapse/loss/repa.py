"""Zeroth-order representation alignment."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from timelapse.loss.projector import Projector, aligned_tokens
from timelapse.types import Step


class Repa(nn.Module):
    """Minus the mean cosine between each projected hidden token and the frozen feature at its place.

    Range -1..1, -1 is aligned. layer: 0-based backbone block. weight: 0.5 in the source.
    Source: Yu et al. 2024, "Representation Alignment for Generation" (arXiv:2410.06940).
    """

    def __init__(self, layer: int, width: int, feature_width: int, hidden: int = 2048, weight: float = 0.5):
        super().__init__()
        self.weight = weight
        self.taps = (layer,)
        self.width, self.feature_width = width, feature_width
        self.projector = Projector(width, hidden, feature_width)

    def forward(self, step: Step) -> Tensor:  # (B,)
        hidden, feature, _ = aligned_tokens(step, self.taps[0], self.width, self.feature_width)
        return -F.cosine_similarity(self.projector(hidden).float(), feature.float(), dim=2).mean(1)
