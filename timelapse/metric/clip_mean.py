"""What every metric here is: one number a clip, averaged over clips."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from timelapse.metric.frame_features import video_features


class ClipMean(Metric):
    """Mean over clips of `per_clip`, with the number of clips it stands on; exact under distributed sums.

    A subclass writes `per_clip` and says `higher_is_better` (None: read it beside its neighbours), `range`
    and `unit`. A clip that the metric does not apply to (no truth, no known frame, too short) is NaN in
    `per_clip` and does not count. After `update`, `last` (B,) holds that batch's numbers; after `compute`,
    `count` is the number of clips behind the mean, over all processes.
    """

    range: tuple[float, float]
    unit: str = ""
    net: nn.Module | None = None
    backbone: str | None = None
    full_state_update = False

    def __init__(self):
        super().__init__()
        self.last = torch.empty(0)
        self.count = 0
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("n", torch.tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def per_clip(self, **clips: Tensor | None) -> Tensor:
        """(B,) numbers, NaN where the metric does not apply.

        Always called with video, truth, known, given and mask as in `update`, and features (B,T,D) or None; a
        subclass names those that it reads and swallows the others in `**_`.
        """

    def update(
        self,
        video: Tensor,
        truth: Tensor | None = None,
        known: Tensor | None = None,
        given: Tensor | None = None,
        mask: Tensor | None = None,
        features: dict[str, Tensor] | None = None,
        **_: object,
    ) -> None:
        """Count a batch of clips.

        video    (B,T,3,H,W) in [-1,1], the sample
        truth    (B,T,3,H,W) in [-1,1], the real clip
        known    (B,T) bool, which frames were given
        given    (B,T,3,H,W) in [-1,1], what was given there (other frames are not read); default: the truth
        mask     (B,T,1,H,W) in [0,1], the subject
        features backbone name -> (B,T,D), when computed once for several metrics (`evaluate` does)
        """
        if video.ndim != 5 or video.shape[2] != 3:
            raise ValueError(f"{type(self).__name__}: video is {tuple(video.shape)}, expected (B,T,3,H,W)")
        if not video.isfinite().all():
            raise ValueError(f"{type(self).__name__}: the video holds NaN or inf and cannot be measured")
        video = video.clamp(-1, 1)  # a decoder may overshoot; what is measured is what can be shown
        own = None
        if self.net is not None:
            own = (features or {}).get(self.backbone)
            own = video_features(self.net, video) if own is None else own
        given = truth if given is None else given
        self.last = self.per_clip(video=video, truth=truth, known=known, given=given, mask=mask, features=own).float()
        counted = ~self.last.isnan()
        self.total += self.last[counted].sum().to(self.total.device)
        self.n += counted.sum().to(self.n.device)

    def compute(self) -> Tensor:
        """Mean over the counted clips, NaN when there was none."""
        self.count = int(self.n)
        return self.total / self.n


class FeatureMean(ClipMean):
    """A `ClipMean` that reads one vector a frame from a frozen network, named in `backbone`."""

    def __init__(self, net: nn.Module):
        """net: from timelapse.metric.frame_features."""
        super().__init__()
        # Outside of the module tree: a LightningModule that holds this metric must neither shard the frozen
        # network, nor write its weights into checkpoints.
        self.__dict__["net"] = net
        self.backbone = net.name


def undefined(video: Tensor) -> Tensor:
    """(B,) NaN: the metric does not apply to these clips."""
    return torch.full((len(video),), torch.nan, device=video.device)


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """(..., D), (..., D) -> (...,) cosine in [0,1], negatives count as 0 (VBench's s)."""
    return torch.cosine_similarity(a, b, dim=-1).clamp(0, 1)
