"""Does the clip go somewhere: does the distance from the first frame grow in order?"""

from __future__ import annotations

import torch
from torch import Tensor

from timelapse.metric.clip_mean import FeatureMean, similarity


def kendall(values: Tensor) -> Tensor:
    """(B,n) -> (B,) Kendall's tau-a with the order 0..n-1, in [-1,1].

    The share of pairs in order minus the share out of order. Ties count for neither, so a constant row is 0.
    """
    n = values.shape[1]
    if n < 2:
        return values.new_full((len(values),), torch.nan)
    i, j = torch.triu_indices(n, n, offset=1, device=values.device)
    return (values[:, j] - values[:, i]).sign().mean(1)


class Progression(FeatureMean):
    """Kendall's tau-a between d_t = 1 - s(f_0, f_t) and t, over t = 1..T-1. Higher is better, in [-1,1].

    1: every later frame is farther from the first; 0: no order, or a static clip, which goes nowhere; below
    0: the clip turns back. Rank, not slope, because a bloom that opens fast and then rests is as orderly as
    a steady one. Blind to how far it goes (MD) and to single jumps (SC minimum).
    """

    higher_is_better = True
    range = (-1.0, 1.0)

    def per_clip(self, features: Tensor, **_: object) -> Tensor:
        return kendall(1 - similarity(features[:, :1], features[:, 1:]))
