"""Any set of known frames at once; the paper's first-frame and any-frame rules are its two special cases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from timelapse.conditioning.bank import NoiseBank
from timelapse.randomness import randn
from timelapse.types import Batch, Codec, Condition

VARIANCE = 0.07  # of the filler, pixels in [-1,1]: the any-frame paper's number; its pixel range is silent


class Keyframes:
    """One to several frames of a clip are known, drawn anew at each call.

    counts: how many frames are known, drawn evenly from these. One frame: frame 0 with `first_probability`, else
    evenly among the others. Several: evenly among all frames. variance: of the noise in place of unknown
    frames. image_noise: (mean, std) of log sigma of Gaussian noise on drawn known frames, as public training scripts
    add with (-3.0, 0.5); None for none. Frames that the caller fixes (`known`) are never noised.
    """

    def __init__(
        self,
        counts: tuple[int, ...] = (1, 2, 3),
        first_probability: float = 0.15,
        variance: float = VARIANCE,
        image_noise: tuple[float, float] | None = None,
    ):
        if not counts or any(not isinstance(n, int) or n < 1 for n in counts):
            raise ValueError(f"keyframes: counts is {counts}; expected numbers of known frames, e.g. [1,2,3]")
        check_law(first_probability, variance, image_noise)
        self.counts, self.first_probability = tuple(counts), first_probability
        self.variance, self.image_noise = variance, image_noise

    def check(self, frames: int) -> None:
        """ValueError where more frames may be known than a clip of `frames` has."""
        if max(self.counts) > frames:
            raise ValueError(
                f"keyframes: {max(self.counts)} known frames of a clip of {frames}; lower conditioning.counts"
            )

    def __call__(
        self, batch: Batch, codec: Codec, generators: list[torch.Generator], known: Tensor | None = None
    ) -> Condition:
        """Condition of `batch["video"]` (B,T,3,H,W); `known` (B,T) bool fixes the frames, None draws them."""
        video = pixels(batch)
        if known is not None:
            return condition(batch, known, codec, generators, self.variance)
        frames = video.shape[1]
        known = known_frames([self.draw(frames, g) for g in generators], frames)
        return condition(batch, known, codec, generators, self.variance, self.image_noise)

    def draw(self, frames: int, generator: torch.Generator) -> list[int]:
        """Indices of the known frames of one clip."""
        self.check(frames)
        count = self.counts[0]
        if len(self.counts) > 1:
            count = self.counts[int(torch.randint(len(self.counts), (1,), generator=generator))]
        if count == 1:
            return [draw_one(frames, list(range(1, frames)), self.first_probability, generator)]
        return torch.randperm(frames, generator=generator)[:count].tolist()


def condition_on(
    video: Tensor,
    known: Tensor,
    codec: Codec,
    generators: list[torch.Generator],
    variance: float = VARIANCE,
    image_noise: tuple[float, float] | None = None,
    bank: NoiseBank | None = None,
) -> Tensor:
    """Latents (B,t,c,h,w) that tell a network the frames of `video` (B,T,3,H,W) marked by `known` (B,T) bool.

    Only frame 0 known: CogVideoX's own rule, the frame encoded by itself and zeros for the latents after it. Any other
    set: the known frames stand in Gaussian pixel noise of `variance`, not clamped, and the clip is encoded
    whole. Latents are samples of the posterior. Both kinds may be mixed in a batch. A clip's draws come from
    its own generator in the order image noise, filler, posterior, so that they do not depend on its neighbours.
    bank: noise before the first known frame's chunk comes from it, and is not encoded again.
    """
    if known.shape != video.shape[:2] or known.dtype != torch.bool:
        raise ValueError(
            f"conditioning: known is {tuple(known.shape)} {known.dtype}; expected {tuple(video.shape[:2])} bool, one "
            f"flag a frame of the clip"
        )
    if not known.any(1).all():
        raise ValueError("conditioning: a clip has no known frame; mark at least one of its frames")
    if image_noise is not None:
        video = _noised(video, generators, *image_noise)
    stock = known[:, 0] & (known.sum(1) == 1)
    first, whole = stock.nonzero().flatten().tolist(), (~stock).nonzero().flatten().tolist()
    pick = lambda rows: [generators[b] for b in rows]

    latents: dict[int, Tensor] = {}
    if first:
        frame = codec.encode(video[first, :1], pick(first))
        after = (video.shape[1] - 1) // codec.temporal_compression
        padded = torch.cat([frame, frame.new_zeros(len(first), after, *frame.shape[2:])], dim=1)
        latents.update(zip(first, padded))
    if whole:
        filler = randn(tuple(video.shape[1:]), pick(whole), video.device) * variance**0.5
        if bank is not None:
            chosen = [bank.choose(generators[b]) for b in whole]
            filled = [bank.fill(x, known[b], n, codec) for x, b, n in zip(filler, whole, chosen)]
            filler, before = torch.stack([x for x, _ in filled]), [chunks for _, chunks in filled]
        keep = known[whole][:, :, None, None, None].to(video.device)
        mixed = torch.where(keep, video[whole], filler.to(video.dtype))
        if bank is None:
            latents.update(zip(whole, codec.encode(mixed, pick(whole))))
        else:
            mean, std = bank.moments(codec, chosen, mixed, before)
            draw = randn(tuple(mean.shape[1:]), pick(whole), mean.device)
            latents.update(zip(whole, mean + std * draw))
    # CogVideoX 1.5's and SVD's networks are told known frames in another scale than clips.
    return torch.stack([latents[b] for b in range(len(video))]) * codec.condition_scale


def condition(
    batch: Batch,
    known: Tensor,
    codec: Codec,
    generators: list[torch.Generator],
    variance: float = VARIANCE,
    image_noise: tuple[float, float] | None = None,
    bank: NoiseBank | None = None,
) -> Condition:
    """`condition_on` with what else a `Condition` holds: mean seconds between frames, where the clips have times."""
    latent = condition_on(pixels(batch), known, codec, generators, variance, image_noise, bank)
    return Condition(latent=latent, known=known, seconds_per_frame=spacing(batch))


def spacing(batch: Batch) -> Tensor | None:
    """(B,) mean seconds between frames; None where the clips have no times."""
    seconds = batch.get("seconds")
    return None if seconds is None else ((seconds[:, -1] - seconds[:, 0]) / (seconds.shape[1] - 1)).float()


def known_frames(indices: list[list[int]], frames: int) -> Tensor:
    """(B,T) bool from the known frames of each clip, 0..frames-1. ValueError outside of the clip."""
    known = torch.zeros(len(indices), frames, dtype=torch.bool)
    for row, clip in zip(known, indices):
        for i in clip:
            if not isinstance(i, int) or not 0 <= i < frames:
                raise ValueError(f"conditioning: frame {i} is outside the clip of {frames} frames; use 0..{frames - 1}")
            row[i] = True
    return known


def draw_one(frames: int, others: list[int], first_probability: float, generator: torch.Generator) -> int:
    """Frame 0 with `first_probability`, else one of `others`, evenly."""
    if frames == 1 or torch.rand(1, generator=generator).item() < first_probability:
        return 0
    return others[int(torch.randint(len(others), (1,), generator=generator))]


def pixels(batch: Batch) -> Tensor:
    """The clips' video, without which nothing can be told: conditions are redrawn each step and never cached."""
    if "video" not in batch:
        raise ValueError("conditioning: the batch has no video; cached latents are no substitute, keep the pixels")
    return batch["video"]


def check_law(first_probability: float, variance: float, image_noise: Sequence[float] | None = None) -> None:
    number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool)
    pair = image_noise is None or (isinstance(image_noise, Sequence) and len(image_noise) == 2)
    if not pair or (image_noise is not None and (not all(map(number, image_noise)) or image_noise[1] < 0)):
        raise ValueError(
            f"conditioning.image_noise is {image_noise}; expected null, or mean and std of log sigma, e.g. [-3.0,0.5]"
        )
    if not 0 <= first_probability <= 1 or variance < 0:
        raise ValueError(
            f"conditioning: first_probability={first_probability}, variance={variance}; expected 0..1 and 0 or more, "
            f"e.g. 0.15 and {VARIANCE}"
        )


def _noised(video: Tensor, generators: list[torch.Generator], mean: float, std: float) -> Tensor:
    sigma = torch.exp(mean + std * randn((1, 1, 1, 1), generators, video.device))
    return video + sigma * randn(tuple(video.shape[1:]), generators, video.device)
