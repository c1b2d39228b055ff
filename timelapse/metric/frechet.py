"""How far apart are generated and real pictures (FID), or clips (FVD), as two clouds of features?"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from timelapse.metric.clip_mean import undefined
from timelapse.metric.frame_features import video_features

log = logging.getLogger("timelapse")


class FrechetDistance(Metric):
    """Fréchet distance of two Gaussians: one fitted to features of what was generated, one to the real ones'.

    Lower is better, [0,inf), 0 for the truth itself. With a network that sees frames, those that were given are not
    counted and n is the number of generated frames: FID with InceptionV3. With one that sees clips, n is theirs: FVD
    with I3D. The distance falls as n grows, so compare it at equal n only. NaN without truth. Source: Heusel et al.
    2017 (arXiv:1706.08500), eq. 6; Unterthiner et al. 2018 (arXiv:1812.01717).
    """

    higher_is_better = False
    range = (0.0, float("inf"))
    unit = "squared feature units"
    full_state_update = False

    def __init__(self, net: nn.Module):
        """net: with `name` and `width` D, of frames (timelapse.metric.frame_features) or, where its `clips` says so, of
        clips (timelapse.metric.clip_features)."""
        super().__init__()
        clips = getattr(net, "clips", False)
        # Outside of the module tree, as in FeatureMean.
        self.__dict__.update(net=None if clips else net, clip_net=net if clips else None)
        self.width, self.backbone, self.count, self.last = net.width, net.name, 0, torch.empty(0)
        for side in ("made", "real"):  # sums of first and second moments add up over batches and processes
            self.add_state(f"{side}_n", torch.tensor(0), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", torch.zeros(net.width, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(
                f"{side}_products", torch.zeros(net.width, net.width, dtype=torch.float64), dist_reduce_fx="sum"
            )

    def update(
        self,
        video: Tensor,
        truth: Tensor | None = None,
        known: Tensor | None = None,
        features: dict[str, Tensor] | None = None,
        **_: object,
    ) -> None:
        """As `ClipMean.update`: video and truth (B,T,3,H,W), known (B,T), features name -> (B,T,D) of the video."""
        self.last = undefined(video)  # a distance of clouds says nothing of a clip
        if truth is None:
            return
        made = (features or {}).get(self.backbone)
        made = self.read(video) if made is None else made
        if not made.isfinite().all():
            raise ValueError(f"{type(self).__name__}: features of the video hold NaN or inf and cannot be measured")
        free = torch.ones(made.shape[:-1], dtype=torch.bool) if known is None or self.net is None else ~known.cpu()
        for side, found in (("made", made), ("real", self.read(truth))):
            self.add(side, found[free.to(found.device)])

    def read(self, video: Tensor) -> Tensor:
        """(B,T,D) of its frames, or (B,D)."""
        video = video.clamp(-1, 1)
        if self.net is not None:
            return video_features(self.net, video)
        home = next((p.device for p in self.clip_net.parameters()), video.device)
        with torch.no_grad():
            return self.clip_net(video.to(home)).float().to(video.device)

    def add(self, side: str, features: Tensor) -> None:
        """Count features (M,D) of a side, "made" or "real"."""
        x = features.to(self.made_sum)
        for name, more in (("n", len(x)), ("sum", x.sum(0)), ("products", x.T @ x)):
            setattr(self, f"{side}_{name}", getattr(self, f"{side}_{name}") + more)

    def compute(self) -> Tensor:
        """The distance, NaN where a side has fewer than two samples."""
        self.count = int(self.made_n)
        if min(self.made_n, self.real_n) < 2:
            self.count = 0
            return torch.tensor(float("nan"))
        if min(self.made_n, self.real_n) <= self.width:
            log.warning(
                f"Fréchet distance of {self.count} samples in {self.width} dimensions: too few for its absolute value; "
                f"compare it with others of as many samples alone"
            )
        made = gaussian(self.made_n, self.made_sum, self.made_products)
        return frechet(*made, *gaussian(self.real_n, self.real_sum, self.real_products)).float()


def gaussian(n: Tensor, total: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D,D) from sums over n samples, float64."""
    mean = total / n
    return mean, (products - n * mean[:, None] * mean) / (n - 1)


def frechet(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2), float64, () and never below 0.

    tr (A B)^1/2 is the sum of the roots of the eigenvalues of A^1/2 B A^1/2, which is symmetric: singular covariances
    (fewer samples than dimensions) are as good as others, where a matrix root of A B goes astray.
    """
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    between = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * between
    return distance.clamp(min=0)
