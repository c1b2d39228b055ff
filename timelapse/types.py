"""What the parts hand to each other.

Shape legend, used in every docstring: B clips, T frames, C H W pixels; t c h w latent; N tokens, D width.
Frames are always dim 1; adapters permute to what a network wants. Pixels are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypedDict

import torch
from torch import Tensor


class Batch(TypedDict, total=False):
    """One collated batch. `key` names each clip for keyed randomness and for files; all else may be absent."""

    key: list[str]
    caption: list[str]
    video: Tensor  # (B,T,3,H,W) in [-1,1]
    seconds: Tensor  # (B,T) capture times, float64, first frame of the clip = 0
    latent: Tensor  # (B,t,c,h,w) scaled as the backbone wants it
    mean: Tensor  # (B,t,c,h,w) and std: of the cached posterior, from which `latent` is drawn at each step
    std: Tensor
    first_mean: Tensor  # (B,1,c,h,w) and first_std: of the first frame encoded by itself
    first_std: Tensor
    tokens: Tensor  # (B,L,D) text embedding
    feature: Tensor  # (B,N,D) frozen encoder features on the token grid, order (t,h,w), first latent frame dropped
    mask: Tensor  # (B,T,1,H,W) in [0,1], the subject; synthetic clips know it
    stage: Tensor  # (B,T) in [0,1], progress of the process; synthetic clips know it
    draw: list[int]  # number of each clip in the stream of training; with `key` it keys the randomness of a step
    weight: list[float]  # of each clip in the held-out numbers: 1, or 0 for one that only keeps a process in step


@dataclass
class Condition:
    """What the network is told about a clip."""

    latent: Tensor  # (B,t,c,h,w) known frames as latents; zeros where nothing is told
    known: Tensor  # (B,T) bool, pixel frames: a latent frame cannot say which of its own
    tokens: Tensor | None = None  # (B,L,D) text embedding; filled by the model's text encoder
    seconds_per_frame: Tensor | None = None  # (B,)
    layout: Tensor | None = None  # (B,t,c,h,w) clean latent video whose coarse shape sampling starts from

    def to(self, device: torch.device) -> Condition:
        return self.each(lambda x: x.to(device))

    def repeat(self, n: int) -> Condition:
        """Each clip n times in a row."""
        return self.each(lambda x: x.repeat_interleave(n, 0))

    def each(self, change: Callable[[Tensor], Tensor]) -> Condition:
        fields = (getattr(self, f) for f in self.__dataclass_fields__)
        return Condition(*(change(x) if isinstance(x, Tensor) else x for x in fields))


@dataclass
class Step:
    """One training step, as a loss sees it. All (B,...) tensors; alpha and sigma are (B,1,1,1,1)."""

    z0: Tensor  # (B,t,c,h,w) clean latent
    noise: Tensor  # (B,t,c,h,w) unit Gaussian
    zt: Tensor  # (B,t,c,h,w) = alpha z0 + sigma noise
    t: Tensor  # (B,) network time
    alpha: Tensor
    sigma: Tensor
    output: Tensor  # (B,t,c,h,w) what the network said
    target: Tensor  # (B,t,c,h,w) what it should have said
    z0_hat: Tensor  # (B,t,c,h,w) its view of z0
    hidden: dict[int, Tensor] = field(default_factory=dict)  # layer -> (B,N,D) video tokens, order (t,h,w)
    grid: tuple[int, int, int] = (0, 0, 0)  # (t,h,w) of those tokens, t includes the first latent frame
    batch: Batch = field(default_factory=dict)  # type: ignore[assignment]
    condition: Condition | None = None


class Codec(Protocol):
    """Pixels to latents and back. `encode` of 1 + k n frames gives 1 + n latent frames for CogVideoX, k below."""

    temporal_compression: int  # pixel frames that a latent frame after the first stands for
    condition_scale: float  # latents of known frames are multiplied with it; 1 but for CogVideoX 1.5 and SVD

    def encode(self, video: Tensor, generators: list[torch.Generator] | None = None) -> Tensor:
        """(B,T,3,H,W) in [-1,1] -> (B,t,c,h,w) scaled; posterior mean, or a sample with one generator a clip."""

    def decode(self, latent: Tensor) -> Tensor:
        """(B,t,c,h,w) -> (B,T,3,H,W), not clamped."""


class Conditioning(Protocol):
    """Batch -> Condition (without tokens). Redraws its noise on every call from one generator a clip.

    A law that does not fit every clip also has `check(frames)`: ValueError for clips of that length.
    """

    def __call__(
        self,
        batch: Batch,
        codec: Codec,
        generators: list[torch.Generator],
        known: Tensor | None = None,
    ) -> Condition:
        """`known` (B,T) bool fixes the given frames (sampling); None draws them from the law (training)."""
