"""The clip's first frame, or both its ends, told as Stable Video Diffusion is told an image."""

from __future__ import annotations

import torch
from torch import Tensor

from timelapse.conditioning.keyframes import pixels, spacing
from timelapse.randomness import randn
from timelapse.types import Batch, Codec, Condition


class EndFrames:
    """Known end frames as SVD image conditions: a VAE latent (the mode, not scaled) and a CLIP token each.

    last: the last frame is known too, not only the first. noise_augmentation: std of the Gaussian noise on the picture
    that the VAE sees, pixels in [-1,1] (CLIP sees it clean); both ends get the same noise, as in the public code.
    dropout: share of clips told nothing (zero latent and token), in training and in the held-out loss, which guidance
    needs when training from scratch.
    """

    told = ([0], [0, -1])  # which frames may be known, together

    def __init__(self, last: bool = True, noise_augmentation: float = 0.02, dropout: float = 0.0):
        if noise_augmentation < 0 or not 0 <= dropout < 1:
            raise ValueError(
                f"end_frames: noise_augmentation={noise_augmentation}, dropout={dropout}; expected 0 or more and "
                f"0..1, e.g. 0.02 and 0.1"
            )
        self.last, self.noise_augmentation, self.dropout = last, noise_augmentation, dropout

    def __call__(
        self, batch: Batch, codec: Codec, generators: list[torch.Generator], known: Tensor | None = None
    ) -> Condition:
        """latent (B,T,c,h,w), zero but at known ends; tokens (B,L,D), L = 1 (first) or 2 (first, last).

        `known` (B,T) bool fixes which ends are told: the first frame, alone or with the last, alike in a batch.
        """
        video = pixels(batch)
        ends, dropout = ([0, -1] if self.last else [0]), self.dropout
        if known is not None:
            ends, dropout = known_ends(known), 0.0
        noise = randn(tuple(video.shape[2:]), generators, video.device)
        image, token = codec.look(video[:, ends] + self.noise_augmentation * noise[:, None], video[:, ends])
        drawn = torch.cat([torch.rand(1, generator=g) for g in generators])
        told = (drawn >= dropout).to(image)[:, None, None]
        latent = image.new_zeros(len(video), video.shape[1], *image.shape[2:])
        latent[:, ends] = image * told[..., None, None]
        mask = torch.zeros(video.shape[:2], dtype=torch.bool)
        mask[:, ends] = True
        return Condition(latent, mask, token * told, spacing(batch))


def known_ends(known: Tensor) -> list[int]:
    """[0] or [0, -1] from (B,T) flags. ValueError for anything else."""
    first = known[:, 0].all() and not known[:, 1:].any()
    both = known[:, 0].all() and known[:, -1].all() and not known[:, 1:-1].any()
    if not (first or both):
        frames = [row.nonzero().flatten().tolist() for row in known][0]
        raise ValueError(
            f"end_frames: frames {frames} are given of {known.shape[1]}; this model is told the first frame or both "
            f"ends: 'sample.frames=[0]' or 'sample.frames=[[0,-1]]'"
        )
    return [0] if first else [0, -1]
