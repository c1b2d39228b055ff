"""The denoising loss."""

from __future__ import annotations

from torch import Tensor, nn

from timelapse.types import Step

VIEWS = ("target", "x0", "eps")


class Denoise(nn.Module):
    """Mean squared error of what the network said, seen as its own target, x0 or eps.

    For a variance-preserving process with v-prediction the three differ by a weight alone, since
    x0_hat - x0 = -sigma (v_hat - v) and eps_hat - eps = alpha (v_hat - v). So the paper's "predicts the clean x0"
    with CogVideoX's weight 1 / (1 - abar) = 1 / sigma^2 *is* the plain v loss.

    view: "target" (default): what the network is asked for, v or eps. "x0": error of the clean latent that follows from
    it; "eps": error of the noise that follows from it, with v-prediction 0 at zero terminal SNR, where it teaches
    nothing.
    from_frame: latent frames before it are given, not scored; 1 for models whose first frame goes in clean.
    inverse_noise_weight: multiply by 1 / sigma^2, the weight of CogVideoX's public training code; only for x0.
    """

    taps = ()

    def __init__(
        self, weight: float = 1.0, view: str = "target", inverse_noise_weight: bool = False, from_frame: int = 0
    ):
        super().__init__()
        if view not in VIEWS:
            raise ValueError(f"denoise: view={view!r} is unknown; choose one of {', '.join(VIEWS)}")
        if inverse_noise_weight and view != "x0":
            raise ValueError("denoise: the weight 1/(1-abar) belongs to view=x0")
        self.weight = weight
        self.view = view
        self.inverse_noise_weight = inverse_noise_weight
        self.from_frame = from_frame

    def forward(self, step: Step) -> Tensor:  # (B,)
        pair = (step.output, step.target) if self.view == "target" else (step.z0_hat, step.z0)
        error = (pair[0].float() - pair[1].float())[:, self.from_frame :].square().flatten(1).mean(1)
        sigma = step.sigma.float().flatten().clamp_min(1e-6)  # without noise x0 follows exactly, and 0 stays 0
        if self.view == "eps":  # zt = alpha x0 + sigma eps: an error of x0 is one of eps
            return error * (step.alpha.float().flatten() / sigma).square()
        return error / sigma.square() if self.inverse_noise_weight else error
