"""The denoising loss."""

from __future__ import annotations

from torch import Tensor, nn

from timelapse.types import Step

VIEWS = ("v", "x0", "eps")


class Denoise(nn.Module):
    """Mean squared error of what the network said, seen as v, x0 or eps.

    For a variance-preserving process with v-prediction the three differ by a weight alone, since
    x0_hat - x0 = -sigma (v_hat - v) and eps_hat - eps = alpha (v_hat - v). So the paper's "predicts the clean x0"
    with CogVideoX's weight 1 / (1 - abar) = 1 / sigma^2 *is* the plain v loss, and that is how it is computed:
    dividing by sigma would add rounding, and 0 / 0 where there is no noise.

    view: "v" (default): the network's own target, right for any process. "x0": error of the clean latent,
    = sigma^2 v-MSE; "eps": error of the noise, = alpha^2 v-MSE, which at zero terminal SNR is 0 and teaches nothing.
    from_frame: latent frames before it are given, not scored; 1 for models whose first frame goes in clean.
    inverse_noise_weight: multiply by 1 / (1 - abar), the weight of CogVideoX's public training code; only for x0.
    """

    taps = ()

    def __init__(self, weight: float = 1.0, view: str = "v", inverse_noise_weight: bool = False, from_frame: int = 0):
        super().__init__()
        if view not in VIEWS:
            raise ValueError(f"denoise: view={view!r} is unknown; choose one of {', '.join(VIEWS)}")
        if inverse_noise_weight and view != "x0":
            raise ValueError("denoise: the weight 1/(1-abar) belongs to view=x0 (it makes it the v loss)")
        self.weight = weight
        self.view = view
        self.inverse_noise_weight = inverse_noise_weight
        self.from_frame = from_frame

    def forward(self, step: Step) -> Tensor:  # (B,)
        error = (step.output.float() - step.target.float())[:, self.from_frame :].square().flatten(1).mean(1)
        if self.view == "eps":
            return error * step.alpha.float().flatten().square()
        if self.view == "x0" and not self.inverse_noise_weight:
            return error * step.sigma.float().flatten().square()
        return error
