"""From noise to a clean latent: DDIM and the DPM-Solver++ SDE of CogVideoX, over any denoiser (zt, t) -> z0."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from timelapse.process import Process
from timelapse.sampler.guide import Denoiser


def timesteps(process: Process, steps: int, spacing: str = "trailing") -> list[int]:
    """Network times in falling order (arXiv:2305.08891, Table 2). trailing: the first is the last time, where there is
    no signal. leading: Stable Diffusion's, with its offset of 1; 50 steps go from 981 to 1."""
    if not hasattr(process, "steps"):
        raise ValueError(
            "sampler: this one counts on a schedule in discrete time, which this model's process has not; for SVD "
            "choose sampler=image_to_video, image_to_video_frameinit, dual_directional or time_reversal"
        )
    if not 1 <= steps <= process.steps or steps != int(steps):
        raise ValueError(f"sampler.steps is {steps}; expected a whole number in 1..{process.steps}, e.g. 50")
    if spacing == "leading":
        stride = process.steps // steps
        return [min(1 + i * stride, process.steps - 1) for i in reversed(range(steps))]
    if spacing != "trailing":
        raise ValueError(f"sampler.integrate.spacing is {spacing!r}; expected trailing or leading")
    # By numpy, as in diffusers: its last bits decide which way halves are rounded, e.g. for 48 steps. For 62 numbers
    # of steps (61, 103, ...) diffusers then lists one time too many, -1; it is cut off here.
    return (np.round(np.arange(process.steps, 0, -process.steps / steps)).astype(int) - 1)[:steps].tolist()


def check_stride(process: Process, steps: int) -> None:
    """ValueError for numbers of steps whose whole stride (`_next`) falls so far short of the way that noise stays, or,
    with leading times, that the first lies far from noise.

    A denoiser of Gaussian data ends with a standard deviation 1.1 times too large for 300 steps of 1000, which are
    10 % short, 1.25 for 400, 1.8 for 501.
    """
    stride = process.steps // steps
    if process.steps > 1.2 * stride * steps:
        better = process.steps // (stride + 1), process.steps // stride
        raise ValueError(
            f"sampler.steps={steps} of {process.steps}: strides of {stride}, as diffusers goes, fall short of the end; "
            f"choose {better[0]} or {better[1]}"
        )


def ddim(
    denoise: Denoiser,
    noise: Tensor,
    process: Process,
    steps: int,
    draw: object = None,
    progress: bool = False,
    spacing: str = "trailing",
) -> Tensor:
    """Deterministic DDIM, eta = 0 (Song et al. 2021, arXiv:2010.02502, eq. 12), as diffusers' `CogVideoXDDIMScheduler`
    and, with leading spacing, its `DDIMScheduler` with `set_alpha_to_one` (the default).

    noise: (B,t,c,h,w) at the first time. Returns the clean latent. `draw` is not used.
    """
    z = noise
    for t in tqdm(timesteps(process, steps, spacing), desc="ddim", leave=False, disable=not progress):
        z = _ddim_step(denoise, z, process, t, _next(process, t, steps))
    return z


def dpm(
    denoise: Denoiser,
    noise: Tensor,
    process: Process,
    steps: int,
    draw: Callable[[], Tensor],
    progress: bool = False,
) -> Tensor:
    """Second-order SDE-DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), as `CogVideoXDPMScheduler`.

    noise: (B,t,c,h,w) at the first time. draw: called once a step, fresh unit Gaussian of that shape; diffusers draws
    a second one, which it throws away, at each but the first and last step. Returns the clean latent.
    """
    z, before, last_z0 = noise, None, None
    for t in tqdm(timesteps(process, steps), desc="dpm", leave=False, disable=not progress):
        following = _next(process, t, steps)
        now, after = _alpha_bar(process, t), _alpha_bar(process, following)
        z0 = denoise(z, t)
        h = _half_log_snr(after) - _half_log_snr(now)
        estimate = z0
        if last_z0 is not None and following >= 0:  # else first order: nothing to look back to, or the end
            ratio = (_half_log_snr(now) - _half_log_snr(before)) / h
            estimate = (1 + 1 / (2 * ratio)) * z0 - 1 / (2 * ratio) * last_z0
        z = (
            math.sqrt((1 - after) / (1 - now)) * math.exp(-h) * z
            - math.expm1(-2 * h) * math.sqrt(after) * estimate
            + math.sqrt((1 - after) * -math.expm1(-2 * h)) * draw()
        )
        before, last_z0 = now, z0
    return z


def redraw(denoise: Denoiser, latent: Tensor, noise: Tensor, process: Process, start: int, steps: int) -> Tensor:
    """A clip as the denoiser paints it: noised to time `start` and brought back by DDIM (SDEdit, Meng et al. 2022,
    arXiv:2108.01073) at `steps` evenly spaced times, from start to start / steps.

    latent, noise: (B,t,c,h,w), the noise unit Gaussian. The lower `start`, the more stays where it was.
    """
    times = [start * (steps - i) // steps for i in range(steps)]
    z = process.noise(latent, noise, torch.full((len(latent),), start, device=latent.device))
    for t, following in zip(times, [*times[1:], -1]):
        z = _ddim_step(denoise, z, process, t, following)
    return z


def _ddim_step(denoise: Denoiser, z: Tensor, process: Process, t: int, following: int) -> Tensor:
    now, after = _alpha_bar(process, t), _alpha_bar(process, following)
    keep = math.sqrt((1 - after) / (1 - now))
    return keep * z + (math.sqrt(after) - math.sqrt(now) * keep) * denoise(z, t)


def _next(process: Process, t: int, steps: int) -> int:
    """Where a step from t ends; below 0 means clean. diffusers subtracts a whole stride instead of going to the next
    listed time: shorter where `steps` does not divide 1000, and what is left out adds up (`check_stride`). Kept, for
    parity."""
    return t - process.steps // steps


def _alpha_bar(process: Process, t: int) -> float:
    return float(process.alpha_bar[t]) if t >= 0 else 1.0


def _half_log_snr(alpha_bar: float) -> float:
    if alpha_bar in (0.0, 1.0):
        return -math.inf if alpha_bar == 0.0 else math.inf
    return 0.5 * math.log(alpha_bar / (1 - alpha_bar))
