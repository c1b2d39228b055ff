"""Euler steps in EDM's noise level, with what inbetweening adds: steps repeated, and jumps back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from timelapse.edm import Edm
from timelapse.sampler.guide import Denoiser
from timelapse.sampler.init import FrameInit


def step(x: Tensor, z0: Tensor, level: float, after: float) -> Tensor:
    """One Euler step of dx/ds = (x - z0) / s (Karras et al. 2022, arXiv:2206.00364, eq. 3), x in the latent's units.

    Written as a mean of x and z0: diffusers' x + (x - z0) / s * (s_next - s) cancels numbers of size s.
    """
    keep = after / level
    return keep * x + (1 - keep) * z0


def euler(
    denoise: Denoiser,
    noise: Tensor,
    process: Edm,
    steps: int,
    draw: Callable[[], Tensor] | None = None,
    progress: bool = False,
    recurrence: int = 0,
    recurrence_share: float = 0.5,
) -> Tensor:
    """Clean latent (B,t,c,h,w), float32, as `EulerDiscreteScheduler` without churn.

    noise: (B,t,c,h,w) unit Gaussian. denoise: (zt, noise level) -> z0, zt of unit variance. recurrence: in the first
    `recurrence_share` of the steps, each step is taken this many times again: noise of variance s^2 - s_next^2 brings
    the latent back to level s (arXiv:2408.15239, section 4.3: 5 times; the public code does it in the first half only).
    draw: unit Gaussian noise for that, called once a repetition.
    """
    levels = process.levels(steps)
    x = noise * math.sqrt(levels[0] ** 2 + 1)
    for i in tqdm(range(steps), desc="euler", leave=False, disable=not progress):
        level, after = levels[i], levels[i + 1]
        for repeat in range(1 + (recurrence if i < int(steps * recurrence_share) else 0)):
            if repeat:
                x = x + math.sqrt(level**2 - after**2) * draw()
            x = step(x, denoise(x / math.sqrt(level**2 + 1), level), level, after)
    return x


def euler_with_jumps(
    denoise: Denoiser,
    noise: Tensor,
    process: Edm,
    steps: int,
    draw: Callable[[], Tensor],
    progress: bool = False,
    length: int = 5,
    times: int = 2,
    share: float = 0.8,
    ratio: float = 1.0,
) -> Tensor:
    """`euler` with RePaint's jumps (Lugmayr et al. 2022, arXiv:2201.09865) as TRF's public code schedules them.

    length: steps that a jump goes back. times: how often such a stretch is walked. share: jumps land before the last
    `share` of the steps. ratio: factor on the noise added on the way back.
    """
    levels = process.levels(steps)
    x, last = noise * math.sqrt(levels[0] ** 2 + 1), -1
    for i in tqdm(jumping(steps, length, times, share), desc="euler", leave=False, disable=not progress):
        if i > last:
            level, after = levels[i], levels[i + 1]
            x = step(x, denoise(x / math.sqrt(level**2 + 1), level), level, after)
        else:  # back over step `last`
            x = x + ratio * math.sqrt(levels[last] ** 2 - levels[last + 1] ** 2) * draw()
        last = i
    return x


def jumping(steps: int, length: int, times: int, share: float) -> list[int]:
    """Step numbers as TRF's public code walks them: rising ones are taken, falling ones undone.

    >>> jumping(10, 2, 2, 0.5)
    [0, 1, 2, 1, 0, 1, 2, 3, 4, 3, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    if length < 1 or times < 1 or not 0 <= share <= 1:
        raise ValueError(f"sampler: jump length {length}, times {times}, share {share}; expected 1.., 1.. and 0..1")
    left = {at: times - 1 for at in range(int(steps * share), steps - length, length)}  # counted from the end
    walk, t = [], steps
    while t >= 1:
        t -= 1
        walk.append(t)
        if left.get(t, 0) > 0:
            left[t] -= 1
            walk += range(t + 1, t + length + 1)
            t += length
    return [steps - 1 - t for t in walk]


def check_steps(steps: object) -> int:
    """ValueError unless a whole number of one or more."""
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"sampler.steps is {steps!r}; expected a whole number of 1 or more, e.g. 25")
    return steps


def check_process(process: object, start: FrameInit | None = None) -> None:
    """ValueError unless the process has EDM's noise levels, and `start` can begin on it."""
    if not hasattr(process, "levels"):
        raise ValueError(
            "sampler: this one counts in EDM's noise levels, which this model's process has not; it is for SVD "
            "(+experiment=svd_backward or inbetween); for this model choose sampler=ddim"
        )
    if start is not None:
        start.check(process)


def check_guidance(guidance: float | Sequence[float]) -> tuple[float, float]:
    """Scales at the known frame and at the far end, of one for both or of two. ValueError for anything else."""
    ends = (guidance, guidance) if isinstance(guidance, (int, float)) else tuple(guidance or ())
    if len(ends) != 2 or not all(isinstance(scale, (int, float)) for scale in ends):
        raise ValueError(
            f"sampler.guidance is {guidance!r}; expected a number for all frames, e.g. 2.0, or two, at the known frame "
            f"and at the far end: 'sampler.guidance=[1.0,3.0]'"
        )
    return ends


def guidance_ramp(guidance: tuple[float, float], frames: int, device: torch.device) -> Tensor:
    """(frames,) classifier-free guidance scale, rising evenly from the known frame on: SVD has (1, 3)."""
    return torch.linspace(*guidance, frames, device=device)
