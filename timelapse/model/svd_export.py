"""What was trained on SVD, in forms that others open: a diffusers pipeline folder, or the delta of backward motion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
from safetensors.torch import save_file
from transformers import CLIPImageProcessor

from timelapse.model.export import save_parts
from timelapse.model.svd_backbone import SvdBackbone


def scheduler(model: Any) -> EulerDiscreteScheduler:
    """diffusers' scheduler with the numbers of `model.process`, configured as the published pipelines are."""
    process = model.process
    if process.rho != 7.0:
        raise ValueError(f"svd export: process.rho is {process.rho}; diffusers' scheduler has rho 7 built in")
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        sigma_min=process.minimum,
        sigma_max=process.maximum,
        use_karras_sigmas=True,
        timestep_type="continuous",
        timestep_spacing="leading",
        steps_offset=1,
    )


def image_processor(model: Any) -> CLIPImageProcessor:
    size = model.numbers["vision"]["image_size"]
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def save_pipeline(model: Any, backbone: SvdBackbone, folder: Path) -> None:
    """Plain diffusers resizes pictures to 224 pixels for CLIP, whatever its size: a CLIP of another size (the tiny one)
    must be given 'input.image' through this project instead."""
    pipeline = StableVideoDiffusionPipeline(
        vae=model.codec.vae,
        image_encoder=model.codec.vision,
        unet=backbone.unet,
        scheduler=scheduler(model),
        feature_extractor=image_processor(model),
    )
    save_parts(pipeline, folder)


def save_delta(model: Any, backbone: SvdBackbone, folder: Path) -> None:
    """`delta.safetensors`: UNet parameter name -> what training added. Adding it to the UNet of any SVD checkpoint,
    and the rotated maps, give that checkpoint's network of backward motion. `delta.json`: which maps it needs
    rotated; `model.reverse.delta` compares it with the config."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: d.cpu().contiguous() for name, d in backbone.delta().items()}, folder / "delta.safetensors")
    about = {"train": list(model.reverse["train"]), "rotate": model.reverse["rotate"]}
    (folder / "delta.json").write_text(json.dumps(about, indent=2) + "\n")
