"""Two opinions about one clip made one: motion forward from its first frame, and backward from its last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from timelapse.sampler.euler import check_process, guidance_ramp
from timelapse.sampler.guide import Denoiser
from timelapse.types import Condition

WEIGHTS = ("average", "linear", "forward")


def fused(
    model: Any,
    condition: Condition,
    backbone: nn.Module | None = None,
    motion: str = "both",
    weights: str = "average",
    guidance: tuple[float, float] = (1.0, 3.0),
) -> Denoiser:
    """Guided predictions of both motions, fused: w v_forward + (1 - w) v_backward (arXiv:2408.15239, section 4.3).

    weights: "average": w = 1/2, and the guidance ramp averaged with its flip, so one constant scale on every frame.
    "linear": w falls from 1 at the first frame to 0 at the last, each motion has its own ramp from its known frame on.
    "forward": w = 1, and only one network is run. Both as in the public code. Weights sum to 1 and the motions share
    zt, so fusing v, z0 or the next latent is the same. Guidance acts on each motion before they are fused, and each
    branch of it reads its own branch's attention maps. A scale of 1 or less everywhere runs without the unconditional
    branch.
    motion: what `backbone` is asked for (SvdBackbone.forward): "both", or "twice" for one network seen from both ends.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"sampler.weights is {weights!r}; choose one of {', '.join(WEIGHTS)}")
    backbone, process = backbone or model.backbone, model.process
    check_process(process)
    motion = "forward" if weights == "forward" else motion
    frames, device = condition.latent.shape[1], condition.latent.device
    ramp = guidance_ramp(guidance, frames, device)
    if weights == "average":
        ramp = (ramp + ramp.flip(0)) / 2
    scale = torch.stack([ramp, ramp.flip(0)])[:, None, :, None, None, None]  # (2,1,T,1,1,1) in forward time
    weight = torch.linspace(1, 0, frames, device=device) if weights == "linear" else torch.full_like(ramp, 0.5)
    weight = weight[:, None, None, None]
    branches = [model.unconditional(condition), condition] if ramp.max() > 1 else [condition]
    told = Condition(*(cat([getattr(b, f) for b in branches]) for f in condition.__dataclass_fields__))

    def denoise(zt: Tensor, level: float) -> Tensor:
        time = torch.full((len(zt),), level, device=zt.device)
        repeat = len(branches)
        v, _ = backbone(torch.cat([zt] * repeat), time.repeat(repeat), told, motion=motion)
        v = v.float() if motion != "forward" else v.float()[None]  # (1 or 2, branches B, t,c,h,w)
        if repeat == 2:
            negative, positive = v.chunk(2, dim=1)
            v = negative + scale[: len(v)] * (positive - negative)
        v = v[0] if len(v) == 1 else weight * v[0] + (1 - weight) * v[1]
        return process.to_z0(zt, v, time)

    return denoise


def cat(values: list[Tensor | None]) -> Tensor | None:
    return None if values[0] is None else torch.cat(values)
