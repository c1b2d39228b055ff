"""From a backbone's hidden tokens to the space of frozen features; used in training only, never exported."""

from __future__ import annotations

from torch import Tensor, nn

from timelapse.types import Step


class Projector(nn.Sequential):
    """Three linear layers with SiLU between, (...,width) -> (...,feature_width).

    Source: VideoREPA's 3072 -> 2048 -> 2048 -> 768, which is REPA's (arXiv:2410.06940).
    """

    def __init__(self, width: int, hidden: int, feature_width: int):
        super().__init__(
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, feature_width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self[0].weight.dtype))


def aligned_tokens(step: Step, layer: int, width: int, feature_width: int) -> tuple[Tensor, Tensor, int]:
    """Hidden tokens (B,N,width) of `layer` without the first latent frame, features (B,N,feature_width), frame count.

    The first latent frame holds one pixel frame, every other one several, so encoders that pool frames have nothing
    to compare it with; `batch["feature"]` comes without it already.
    """
    if "feature" not in step.batch:
        raise ValueError(
            'alignment losses need frozen features in batch["feature"]; choose an encoder, e.g. encoder=vjepa_tiny'
        )
    if layer not in step.hidden:
        raise ValueError(f"hidden tokens of layer {layer} were not recorded; recorded: {sorted(step.hidden)}")
    t, h, w = step.grid
    hidden, feature = step.hidden[layer], step.batch["feature"]
    if hidden.shape[1] != t * h * w or feature.shape[1] != (t - 1) * h * w:
        raise ValueError(
            f"token grid {t}x{h}x{w} means {t * h * w} hidden tokens and {(t - 1) * h * w} features (first latent "
            f"frame dropped); got {hidden.shape[1]} and {feature.shape[1]}"
        )
    if hidden.shape[2] != width or feature.shape[2] != feature_width:
        raise ValueError(
            f"built for hidden width {width} and feature width {feature_width}, got {hidden.shape[2]} and "
            f"{feature.shape[2]}; set the loss's width and feature_width (from model.align.width and encoder.width)"
        )
    return hidden[:, h * w :], feature.to(hidden.device), t - 1
