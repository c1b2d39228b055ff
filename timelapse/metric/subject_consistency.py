"""SC: does the subject stay itself from frame to frame?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from timelapse.metric.clip_mean import FeatureMean, similarity


def subject_consistency(features: Tensor) -> Tensor:
    """(B,T,D) frame features -> (B,T-1) similarity s of consecutive frames."""
    if features.shape[1] < 2:
        return features.new_full((len(features), 1), torch.nan)  # one frame has no neighbour
    return similarity(features[:, :-1], features[:, 1:])


class SubjectConsistency(FeatureMean):
    """SC = mean over t of s(f_{t-1}, f_t). Higher is better, [0,1], a static video has 1.

    VBench's subject consistency (Huang et al. 2024) without its first-frame half: that half falls when a
    subject grows, which is what a time-lapse should do. Because a static video is perfect here, SC is read
    beside MD only.
    """

    higher_is_better = True
    range = (0.0, 1.0)

    def per_clip(self, features: Tensor, **_: object) -> Tensor:
        return subject_consistency(features).mean(1)


class SubjectConsistencyMin(FeatureMean):
    """Minimum over t of s(f_{t-1}, f_t): the worst step. Higher is better, [0,1], a static video has 1.

    A cut or a subject swapped half way is one bad step among T-1, which the mean hides and the minimum shows.
    """

    higher_is_better = True
    range = (0.0, 1.0)

    def per_clip(self, features: Tensor, **_: object) -> Tensor:
        return subject_consistency(features).amin(1)


class SubjectConsistencyFirst(FeatureMean):
    """Mean of s(f_0, f_t) over the last `frames` frames: is it still the subject of the first picture?

    Higher is better, [0,1], a static video has 1. The half of VBench's subject consistency that SC leaves out; over
    chunks in a row it shows a slow drift, which consecutive frames do not. What grows loses some of it by right: read
    it beside that of the real clip, and of another clip's first frame. frames: None: all after the first.
    """

    higher_is_better = True
    range = (0.0, 1.0)

    def __init__(self, net: nn.Module, frames: int | None = None):
        super().__init__(net)
        if frames is not None and frames < 1:
            raise ValueError(f"subject_consistency_first: frames={frames}; expected 1 or more, or null for all")
        self.frames = frames

    def per_clip(self, features: Tensor, **_: object) -> Tensor:
        if features.shape[1] < 2:
            return features.new_full((len(features),), torch.nan)
        return similarity(features[:, :1], features[:, 1:][:, -(self.frames or 0) :]).mean(1)
