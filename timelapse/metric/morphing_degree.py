"""MD: how far does the subject change from the first frame to the last?"""

from __future__ import annotations

from torch import Tensor

from timelapse.metric.clip_mean import FeatureMean, similarity
from timelapse.metric.frame_features import video_features


def morphing_degree(features: Tensor) -> Tensor:
    """(B,T,D) frame features -> (B,) 1 - s(f_0, f_{T-1})."""
    return 1 - similarity(features[:, 0], features[:, -1])


class MorphingDegree(FeatureMean):
    """MD = 1 - s(f_0, f_{T-1}), in [0,1], a static video has 0.

    No direction by itself: a cut scores high too, so it is read beside SC and its minimum, and against the
    MD of the true clips. Unmasked, the whole frame counts. With a mask, all but the subject is turned to
    mid grey first, in the two frames, and a camera or sky that changes no longer counts.
    """

    higher_is_better = None
    range = (0.0, 1.0)

    def per_clip(self, video: Tensor, features: Tensor, mask: Tensor | None, **_: object) -> Tensor:
        if mask is not None:
            ends = (video * mask)[:, [0, -1]]  # 0 is mid grey in [-1,1]
            features = video_features(self.net, ends)
        return morphing_degree(features)
