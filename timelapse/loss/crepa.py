"""Cross-frame representation alignment."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from timelapse.loss.projector import aligned_tokens
from timelapse.types import Step


class Crepa(nn.Module):
    """REPA with neighbours: minus the mean over latent frames f of

        cos(h_f, y_f) + exp(-d/tau) [cos(h_f, y_{f-d}) + cos(h_f, y_{f+d})]

    cos is the mean over the frame's tokens, each with the feature at its own place. Neighbours outside the clip are
    left out, so the range is -/+ (1 + 2 exp(-d/tau) (1 - d/frames)). layer: 0-based backbone block, an early one.
    distance d and tau in latent frames, d = 0: own frame only. weight: 0.5 in the source's code. A constant weight
    is reported to wash out colours in long runs.
    Source: CREPA (arXiv:2506.09229), eq. 6, as bghira/SimpleTuner has it (LayerNorm and one linear layer, exact
    distance d, divided by the number of frames). Changed: features of the true video, not of decoded latents.
    """

    def __init__(
        self,
        layer: int,
        width: int,
        feature_width: int,
        weight: float = 0.5,
        distance: int = 1,
        tau: float = 1.0,
    ):
        super().__init__()
        if distance < 0 or tau <= 0:
            raise ValueError(f"crepa: distance={distance} must be 0 or more and tau={tau} above 0")
        self.weight = weight
        self.taps = (layer,)
        self.distance, self.tau = distance, tau
        self.width, self.feature_width = width, feature_width
        self.projector = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, feature_width))

    def forward(self, step: Step) -> Tensor:  # (B,)
        hidden, feature, frames = aligned_tokens(step, self.taps[0], self.width, self.feature_width)
        d = self.distance
        if d >= frames:
            raise ValueError(f"crepa: no frame has a neighbour at distance {d} among {frames}; set a smaller distance")
        h = self.projector(hidden.to(self.projector[1].weight.dtype)).float()
        h, y = (F.normalize(x, dim=2).unflatten(1, (frames, -1)) for x in (h, feature.float()))  # (B,t,hw,D)
        similarity = (h * y).sum(3).mean(2).sum(1)  # (B,)
        if d > 0:
            forward = (h[:, :-d] * y[:, d:]).sum(3).mean(2).sum(1)
            backward = (h[:, d:] * y[:, :-d]).sum(3).mean(2).sum(1)
            similarity = similarity + math.exp(-d / self.tau) * (forward + backward)
        return -similarity / frames
