"""First-order representation alignment."""

from __future__ import annotations

from torch import Tensor, nn

from timelapse.loss.projector import Projector, aligned_tokens
from timelapse.loss.relation_l1 import relation_l1
from timelapse.loss.relation_l2 import relation_l2
from timelapse.types import Step


class DRepa(nn.Module):
    """Align how tokens relate to each other, not what they are: per clip, the mean over token pairs i != j of

        (<h_i, h_j> - <y_i, y_j>)^2

    with h the projected hidden tokens of one block and y the frozen encoder's features, both l2-normalised.
    Range 0..4. A rotation common to all h changes nothing. On features of one dimension every row is +1 or -1: the
    loss then only counts disagreements of sign and has no gradient.

    layer: 0-based backbone block. width, feature_width: of the backbone and of the encoder. hidden: projector's
    inner width. power: 2 as in the paper, 1 for its ablation (range 0..2). pairs: "full" as in the paper,
    "spatial" pairs of the same latent frame, "temporal" pairs of different ones; each is the mean over its own
    pairs. weight: dimensionless; 0.5 is VideoREPA's, the paper is silent.

    Source: "First-order Representation Alignment (dREPA)", its only equation; tap and projector as in VideoREPA
    (arXiv:2505.23656). The first latent frame is left out as there. Tokens are compared on the latent grid.
    """

    def __init__(
        self,
        layer: int,
        width: int,
        feature_width: int,
        hidden: int = 2048,
        weight: float = 0.5,
        power: int = 2,
        pairs: str = "full",
    ):
        super().__init__()
        if power not in (1, 2):
            raise ValueError(f"drepa: power={power} is unknown; 2 is the paper's loss, 1 its L1 ablation")
        if pairs not in ("full", "spatial", "temporal"):
            raise ValueError(f"drepa: pairs={pairs!r} is unknown; choose full, spatial or temporal")
        self.weight = weight
        self.taps = (layer,)
        self.width, self.feature_width = width, feature_width
        self.projector = Projector(width, hidden, feature_width)
        self.relation = {1: relation_l1, 2: relation_l2}[power]
        self.pairs = pairs

    def forward(self, step: Step) -> Tensor:  # (B,)
        hidden, feature, frames = aligned_tokens(step, self.taps[0], self.width, self.feature_width)
        return self.relation(self.projector(hidden), feature, frames, self.pairs)
