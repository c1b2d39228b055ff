"""Text to video by way of a picture: the first frame from a text-to-image model (ConsistI2V, appendix F)."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import torch

from timelapse.atomic import write
from timelapse.randomness import keyed

log = logging.getLogger("timelapse")


def first_picture(
    source: str | None,
    prompt: str | None,
    height: int,
    width: int,
    folder: Path,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> str:
    """Path of a PNG that the diffusers pipeline at `source` (hub id or folder) made of the prompt, at its own size.

    The paper takes Stable Diffusion 2.1-base. The picture is drawn from (seed, prompt): it is made once and kept.
    height, width: of the video; the picture has its shape, with the short side of the pipeline's own size.
    """
    check_asked(source, prompt)
    from hashlib import blake2b

    name = blake2b(f"{source}\x1f{prompt}\x1f{seed}".encode(), digest_size=6).hexdigest()
    path = folder / f"first_picture_{name}.png"
    if path.exists():
        return str(path)
    from diffusers import AutoPipelineForText2Image

    try:
        pipeline = AutoPipelineForText2Image.from_pretrained(source).to(device)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"input.text_to_image={source} cannot be opened: {reason}") from error
    size = size_of(source, pipeline, height, width)
    picture = pipeline(prompt, generator=keyed(seed, "first picture", prompt), **size).images[0]
    whole = io.BytesIO()
    picture.save(whole, "PNG")
    write(path, whole.getvalue())
    log.info(f"first picture by {source}: {path}")
    return str(path)


def size_of(source: str, pipeline: Any, height: int, width: int) -> dict[str, int]:
    """Height and width in the video's shape, the shorter side as the pipeline was trained, both of whole tokens."""
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    config = getattr(network, "config", {})
    latent = config.get("sample_size") or getattr(pipeline, "default_sample_size", None)
    if not isinstance(latent, int):
        raise ValueError(
            f"input.text_to_image={source}: a {type(pipeline).__name__} does not say what size it paints; make the "
            f"picture by itself and give input.image=FILE"
        )
    # Flux and its kin, whose networks name no size, pack two by two latents into a token.
    patch = config.get("patch_size", 1) if config.get("sample_size") else 2
    step = pipeline.vae_scale_factor * patch
    scale = latent * pipeline.vae_scale_factor / min(height, width)
    return {k: round(n * scale / step) * step for k, n in (("height", height), ("width", width))}


def check_asked(source: str | None, prompt: str | None) -> None:
    """ValueError unless both are given."""
    if not source or not prompt:
        raise ValueError(
            "input.image=generate needs input.prompt='...' and input.text_to_image=ID, a diffusers text-to-image "
            "pipeline, e.g. stabilityai/stable-diffusion-2-1-base or a downloaded folder"
        )
