"""VideoREPA's token relation distillation."""

from __future__ import annotations

from torch import Tensor, nn

from timelapse.loss.projector import Projector, aligned_tokens
from timelapse.loss.relation_l1 import relation_l1
from timelapse.types import Step


class Trd(nn.Module):
    """Mean over all token pairs, the diagonal included, of relu(|<h_i, h_j> - <y_i, y_j>| - margin).

    Range 0..2 - margin. layer: 0-based backbone block. margin, weight: 0.1 and 0.5 in the source.
    Source: VideoREPA (arXiv:2505.23656), `token_relation_distillation` of its public code. Changed: that code first
    brings hidden tokens to its encoder's 24x10x15 grid (trilinear in time, a learned stride-3 convolution);
    here both sides are on the latent grid, as for every alignment loss of this package, so that they compare.
    """

    def __init__(
        self,
        layer: int,
        width: int,
        feature_width: int,
        hidden: int = 2048,
        weight: float = 0.5,
        margin: float = 0.1,
    ):
        super().__init__()
        self.weight = weight
        self.taps = (layer,)
        self.margin = margin
        self.width, self.feature_width = width, feature_width
        self.projector = Projector(width, hidden, feature_width)

    def forward(self, step: Step) -> Tensor:  # (B,)
        hidden, feature, _ = aligned_tokens(step, self.taps[0], self.width, self.feature_width)
        return relation_l1(self.projector(hidden), feature, margin=self.margin, diagonal=True)
