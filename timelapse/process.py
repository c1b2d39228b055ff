"""The noise process: zt = alpha z0 + sigma eps in discrete time, alpha^2 + sigma^2 = 1; the network says v or eps."""

from __future__ import annotations

import torch
from torch import Tensor


class Process:
    """Betas on a schedule, an SNR shift, zero terminal SNR; by default CogVideoX's.

    steps: network times are the integers 0..steps-1. beta_start, beta_end: the schedule's ends. schedule: between
    them the betas are "linear", or their roots are ("scaled_linear": Stable Diffusion, CogVideoX). prediction: what the
    network says, "v" or "epsilon"; `output` below is that.
    snr_shift: divides the signal-to-noise ratio: 1.0 for CogVideoX-5B, 3.0 for 2B (arXiv:2403.03206).
    zero_terminal_snr: make the last time pure noise (Lin et al. 2023, arXiv:2305.08891, Alg. 1).
    time_shift: s of the law of training times, u evenly drawn -> s u / (1 + (s - 1) u) (arXiv:2403.03206, eq. 23): 1 is
    even; at 3 the last time is drawn three times as often, the first a third as often. Sampling is not touched.

    Numbers equal diffusers' `CogVideoXDDIMScheduler` bit for bit: alpha_bar is computed in float64, cast to
    float32, and only then are square roots taken. `z0`, `zt`, `v` are (B,t,c,h,w); `t` is (B,) integer.
    """

    def __init__(
        self,
        steps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        snr_shift: float = 1.0,
        zero_terminal_snr: bool = True,
        schedule: str = "scaled_linear",
        prediction: str = "v",
        time_shift: float = 1.0,
    ):
        if time_shift <= 0:
            raise ValueError(f"process.time_shift is {time_shift}; expected a number above 0, e.g. 1 for even times")
        if not 0 < beta_start < beta_end < 1 or steps < 2 or snr_shift <= 0:
            raise ValueError(
                f"process: need 0 < beta_start < beta_end < 1, steps >= 2, snr_shift > 0; got {beta_start}, "
                f"{beta_end}, {steps}, {snr_shift}; CogVideoX-5B has 0.00085, 0.012, 1000, 1.0"
            )
        if schedule not in ("scaled_linear", "linear") or prediction not in ("v", "epsilon"):
            raise ValueError(
                f"process: schedule={schedule!r}, prediction={prediction!r}; expected scaled_linear or linear, and v "
                f"or epsilon"
            )
        if prediction == "epsilon" and zero_terminal_snr:
            raise ValueError(
                "process: at zero terminal SNR the last time is pure noise, of which eps tells no clip; "
                "set zero_terminal_snr=false or prediction=v"
            )
        self.steps, self.beta_start, self.beta_end = steps, beta_start, beta_end
        self.snr_shift, self.zero_terminal_snr = snr_shift, zero_terminal_snr
        self.schedule, self.prediction, self.time_shift = schedule, prediction, time_shift
        power = 0.5 if schedule == "scaled_linear" else 1.0
        ends = beta_start**power, beta_end**power
        betas = torch.linspace(*ends, steps, dtype=torch.float64, device="cpu") ** (1 / power)
        alpha_bar = torch.cumprod(1 - betas, dim=0)
        alpha_bar = alpha_bar / (snr_shift + (1 - snr_shift) * alpha_bar)
        if zero_terminal_snr:
            root = alpha_bar.sqrt()
            first, last = root[0].clone(), root[-1].clone()
            root = (root - last) * (first / (first - last))
            alpha_bar = root**2
        self.alpha_bar = alpha_bar  # (steps,) float64, decreasing, on the CPU

    def alpha(self, t: Tensor) -> Tensor:
        """(B,) -> (B,1,1,1,1) float32, the signal's factor; 0 at the last time."""
        return self._at(t) ** 0.5

    def sigma(self, t: Tensor) -> Tensor:
        """(B,) -> (B,1,1,1,1) float32, the noise's factor; 1 at the last time, never 0."""
        return (1 - self._at(t)) ** 0.5

    def noise(self, z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """zt = alpha z0 + sigma eps."""
        return self.alpha(t) * z0 + self.sigma(t) * eps

    def target(self, z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """eps, or v = alpha eps - sigma z0 (Salimans and Ho 2022, arXiv:2202.00512, App. D)."""
        if self.prediction == "epsilon":
            return eps
        return self.alpha(t) * eps - self.sigma(t) * z0

    def to_z0(self, zt: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """z0 = alpha zt - sigma v; defined at alpha = 0 too, unlike (zt - sigma eps) / alpha."""
        if self.prediction == "epsilon":
            return (zt - self.sigma(t) * output) / self.alpha(t)
        return self.alpha(t) * zt - self.sigma(t) * output

    def draw(self, generators: list[torch.Generator]) -> Tensor:
        """(B,) training times by the law of `time_shift`, clip b's from generators[b]."""
        if self.time_shift == 1:
            return torch.cat([torch.randint(self.steps, (1,), generator=g) for g in generators])
        u = torch.cat([torch.rand(1, generator=g) for g in generators])
        shifted = self.time_shift * u / (1 + (self.time_shift - 1) * u)
        return (self.steps * shifted).long().clamp(max=self.steps - 1)

    def _at(self, t: Tensor) -> Tensor:
        if t.is_floating_point():
            raise ValueError(f"process: time must be an integer in 0..{self.steps - 1}, got {t.dtype}")
        return self.alpha_bar.float().to(t.device)[t].reshape(-1, 1, 1, 1, 1)  # MPS takes no float64
