"""The noise process of EDM, as Stable Video Diffusion uses it: time is the noise level."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Edm:
    """zt = alpha z0 + sigma eps, alpha^2 + sigma^2 = 1, v-prediction; the time t is EDM's noise level s, in units of
    the latent (Karras et al. 2022, arXiv:2206.00364, section 5).

    EDM noises to x = z0 + s eps and feeds the network c_in x, c_in = 1 / sqrt(s^2 + 1). That product is the zt kept
    here, so alpha = c_in and sigma = s c_in. Then c_skip x + c_out F with c_skip = c_in^2, c_out = -s c_in is alpha zt
    - sigma F: the network says v, and EDM's weight (1 + s^2) / s^2 on the squared error of z0 makes it the plain
    squared error of v.

    minimum, maximum: ends of the sampling noise levels. rho: of their spacing. log_mean, log_std: training
    noise levels are log-normal. `z0`, `zt`, `v` are (B,t,c,h,w); `t` is (B,) float.
    """

    def __init__(
        self,
        minimum: float = 0.002,
        maximum: float = 700.0,
        rho: float = 7.0,
        log_mean: float = 0.7,
        log_std: float = 1.6,
    ):
        if not 0 < minimum < maximum or rho <= 0 or log_std <= 0:
            raise ValueError(
                f"process: need 0 < minimum < maximum, rho > 0, log_std > 0; got {minimum}, {maximum}, {rho}, "
                f"{log_std}; SVD has 0.002, 700, 7, 1.6"
            )
        self.minimum, self.maximum, self.rho = minimum, maximum, rho
        self.log_mean, self.log_std = log_mean, log_std

    def alpha(self, t: Tensor) -> Tensor:
        """(B,) -> (B,1,1,1,1) float32: 1 / sqrt(t^2 + 1)."""
        return (t.float().square() + 1).rsqrt().reshape(-1, 1, 1, 1, 1)

    def sigma(self, t: Tensor) -> Tensor:
        """(B,) -> (B,1,1,1,1) float32: t / sqrt(t^2 + 1)."""
        return t.float().reshape(-1, 1, 1, 1, 1) * self.alpha(t)

    def noise(self, z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """zt = alpha z0 + sigma eps."""
        return self.alpha(t) * z0 + self.sigma(t) * eps

    def target(self, z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """v = alpha eps - sigma z0, with the clean latent: arXiv:2408.15239 prints the noisy one."""
        return self.alpha(t) * eps - self.sigma(t) * z0

    def to_z0(self, zt: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """z0 = alpha zt - sigma v."""
        return self.alpha(t) * zt - self.sigma(t) * v

    def draw(self, generators: list[torch.Generator]) -> Tensor:
        """(B,) training noise levels, log-normal, clip b's from generators[b]."""
        unit = torch.cat([torch.randn(1, generator=g) for g in generators])
        return (self.log_mean + self.log_std * unit).exp()

    def levels(self, steps: int) -> list[float]:
        """Falling sampling noise levels and a last 0 (arXiv:2206.00364, eq. 5), rounded to float32 as in diffusers."""
        high, low = self.maximum ** (1 / self.rho), self.minimum ** (1 / self.rho)
        levels = (high + np.linspace(0, 1, steps) * (low - high)) ** self.rho
        return [*levels.astype(np.float32).tolist(), 0.0]
