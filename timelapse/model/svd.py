"""Stable Video Diffusion image-to-video: UNet, VAE, CLIP vision and noise process from plain numbers."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from timelapse import assets
from timelapse.edm import Edm
from timelapse.model import weights
from timelapse.model.svd_backbone import ROTATE, SvdBackbone
from timelapse.model.svd_codec import SvdCodec, inflate
from timelapse.model.weights import floating
from timelapse.types import Condition

log = logging.getLogger("timelapse")
FOLDERS = {"unet": "unet", "vae": "vae", "vision": "image_encoder"}  # of a diffusers pipeline


class SVD:
    """The parts of one Stable Video Diffusion model; each is built when first asked for, on torch's default device.

    unet, vae, vision: constructor numbers of `UNetSpatioTemporalConditionModel`, `AutoencoderKLTemporalDecoder` and
        `CLIPVisionConfig`. Numbers that differ from those of the weights are an error.
    weights: None (random, from `seed`); a hub id or folder of a diffusers pipeline; or a dict: part -> None, such a
        string, or the name of a weight shipped in `timelapse/assets`; for "vae" an image VAE's too, which is inflated.
    reverse: None, or the network of backward motion (`SvdBackbone`): {train, rotate, delta}. delta: None, or what
        training added, from a `delta.safetensors` (stage export) or a run directory that has one, of this or another
        checkpoint.
    fps, motion_bucket, noise_augmentation: what the UNet is told of every clip; frames a second reach it as fps - 1.
    norm_groups: of UNet and VAE; None: diffusers' 32. With few channels a group, as small networks would have,
    normalisation eats absolute colour. diffusers has no such option, so it cannot open an exported network as it is.
    joint, gradient_checkpointing, compile: see `SvdBackbone`. chunk: see `SvdCodec`.
    dtype: of the UNet's frozen or trained weights. frozen_dtype: of VAE and CLIP; the VAE stays in float32 under
    float16 when its config says `force_upcast`.
    name, stands_for: what reports call the shipped weights, and the network they replace.
    """

    def __init__(
        self,
        unet: dict[str, Any],
        vae: dict[str, Any],
        vision: dict[str, Any],
        process: Edm,
        weights: str | dict[str, str | None] | None = None,
        reverse: dict[str, Any] | None = None,
        fps: float = 7,
        motion_bucket: float = 127,
        noise_augmentation: float = 0.02,
        norm_groups: int | None = None,
        joint: bool = True,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        chunk: int = 0,
        dtype: str = "float32",
        frozen_dtype: str = "float32",
        seed: int = 0,
        name: str = "",
        stands_for: str | None = None,
    ):
        if unet["in_channels"] != 2 * vae["latent_channels"] or unet["out_channels"] != vae["latent_channels"]:
            raise ValueError(
                f"svd: unet.in_channels={unet['in_channels']}, unet.out_channels={unet['out_channels']}; expected "
                f"{2 * vae['latent_channels']} (noisy and image latents) and {vae['latent_channels']} = "
                f"vae.latent_channels"
            )
        if unet["cross_attention_dim"] != vision["projection_dim"]:
            raise ValueError(
                f"svd: unet.cross_attention_dim={unet['cross_attention_dim']} differs from "
                f"vision.projection_dim={vision['projection_dim']}; make them equal"
            )
        if reverse is not None and set(reverse) != {"train", "rotate", "delta"}:
            raise ValueError(f"svd: reverse has {sorted(reverse)}; expected train, rotate and delta, or reverse=null")
        if reverse is not None and not reverse["train"]:
            raise ValueError("svd: model.reverse.train is empty; name what learns, e.g. [to_v,to_out.0]")
        if reverse is not None and reverse["rotate"] not in ROTATE:
            raise ValueError(f"svd: reverse.rotate={reverse['rotate']!r}; choose one of {', '.join(ROTATE)}")
        if reverse is not None and reverse["delta"]:
            delta_file(reverse["delta"])
        self.numbers = {"unet": unet, "vae": vae, "vision": vision}
        self.process, self.weights, self.reverse, self.seed = process, weights, reverse, seed
        self.name, self.stands_for = name, stands_for
        self.ids = (fps - 1, motion_bucket, noise_augmentation)
        self.joint, self.gradient_checkpointing, self.compile = joint, gradient_checkpointing, compile
        self.chunk, self.norm_groups = chunk, norm_groups
        self.dtype, self.frozen_dtype = floating(dtype), floating(frozen_dtype)

    # -- parts -------------------------------------------------------------------------------------------------

    told_ends = True  # as pictures and CLIP tokens, which only one conditioning makes

    @cached_property
    def backbone(self) -> SvdBackbone:
        """The UNet. Under `torch.device("meta")` it has shapes only: shard it, `to_empty` it, then `materialise`."""
        unet = self._part("unet", UNetSpatioTemporalConditionModel, self.dtype)
        backbone = SvdBackbone(unet, self.ids, self.reverse, self.joint, self.gradient_checkpointing, self.compile)
        if self.reverse and self.reverse["delta"] and not weights.meta():
            backbone.add(read_delta(self.reverse))
        return backbone

    @cached_property
    def codec(self) -> SvdCodec:
        upcast = self.frozen_dtype == torch.float16 and self.numbers["vae"].get("force_upcast", True)
        vae = self._part("vae", AutoencoderKLTemporalDecoder, torch.float32 if upcast else self.frozen_dtype)
        return SvdCodec(vae, self._part("vision", CLIPVisionModelWithProjection, self.frozen_dtype), self.chunk)

    @cached_property
    def text(self) -> NoText:
        return NoText(self.numbers["vision"]["projection_dim"])

    def unconditional(self, condition: Condition) -> Condition:
        """The branch that guidance pushes away from: zero image latent and zero token, the same time ids."""
        zero = {"latent": torch.zeros_like(condition.latent), "tokens": torch.zeros_like(condition.tokens)}
        return replace(condition, **zero)

    def materialise(self, backbone: SvdBackbone) -> None:
        """Fill a backbone that was built on the meta device and given memory by `to_empty`; process 0 sends shards."""
        weights.fill(backbone, lambda: SVD.backbone.func(self))

    # -- shapes ------------------------------------------------------------------------------------------------

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(t,c,h,w) of a clip of `frames` pictures of height x width pixels; ValueError if the UNet cannot take it."""
        vae, unet = self.numbers["vae"], self.numbers["unet"]
        spatial = 2 ** (len(vae["block_out_channels"]) - 1)
        side = spatial * 2 ** (len(unet["block_out_channels"]) - 1)  # the UNet halves it, and doubles it again
        if height % side or width % side:
            raise ValueError(
                f"svd: video.height={height}, video.width={width}; expected multiples of {side}, e.g. "
                f"{max(side, round(height / side) * side)} and {max(side, round(width / side) * side)}"
            )
        if frames < unet["num_frames"]:
            raise ValueError(
                f"svd: video.frames={frames}, but this network makes {unet['num_frames']}; set "
                f"video.frames={unet['num_frames']}"
            )
        return frames, vae["latent_channels"], height // spatial, width // spatial

    def grid_of(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        return shape[1], shape[3], shape[4]

    # -- export ------------------------------------------------------------------------------------------------

    def export(self, folder: str | Path, backbone: SvdBackbone | None = None) -> None:
        """A network of backward motion: `delta.safetensors`, by UNet parameter name. A forward network: a folder that
        `StableVideoDiffusionPipeline.from_pretrained` opens."""
        from timelapse.model.svd_export import save_delta, save_pipeline

        if self.norm_groups and self.reverse is None:
            log.warning(f"svd: made with {self.norm_groups} norm groups, where diffusers has 32 written into its code")
        (save_pipeline if self.reverse is None else save_delta)(self, backbone or self.backbone, Path(folder))

    def ship(self, recipe: str, text: bool = False) -> list[Path]:
        """Write the UNet and the CLIP it was trained beside (or only what backward motion added) as shipped weights."""
        if self.reverse is not None:
            card = {"train": list(self.reverse["train"]), "rotate": self.reverse["rotate"], "recipe": recipe}
            return [assets.save("svd_tiny_backward", self.backbone.delta(), card)]
        parts = {"unet": self.backbone.unet, "vision": self.codec.vision}
        card = lambda part: {"config": self.numbers[part] | {"norm_groups": self.norm_groups}, "recipe": recipe}
        return [assets.save(f"svd_tiny_{name}", part.state_dict(), card(name)) for name, part in parts.items()]

    # -- weights -----------------------------------------------------------------------------------------------

    def _part(self, part: str, kind: type, dtype: torch.dtype) -> nn.Module:
        """The module of a part with its weights; only shapes when built on the meta device."""
        source = self.weights.get(part) if isinstance(self.weights, dict) else self.weights
        numbers, vision = self.numbers[part], part == "vision"
        if not weights.meta() and weights.is_hub(source):
            name = "dtype" if vision else "torch_dtype"  # transformers 5 renamed it, diffusers did not
            module = weights.from_hub("svd", kind.from_pretrained, source, FOLDERS[part], **{name: dtype})
            weights.compare("svd", part, source, numbers, module.config.to_dict() if vision else dict(module.config))
            return module
        with weights.seeded(self.seed), weights.norm_groups(self.norm_groups):
            module = kind(CLIPVisionConfig(**numbers)) if vision else kind(**numbers)
        if weights.meta() or source is None:
            return nn.Module.to(module, dtype)
        state, card = assets.load(source)
        if "post_quant_conv.weight" in state:  # an image VAE
            same = {name: numbers[name] for name in ("block_out_channels", "layers_per_block", "latent_channels")}
            numbers = same | {"norm_num_groups": self.norm_groups}
            weights.compare("svd", part, source, numbers, card["config"])
            inflate(module, state)
        else:
            weights.shipped("svd", part, source, module, numbers | {"norm_groups": self.norm_groups})
        return nn.Module.to(module, dtype)


class NoText(nn.Module):
    """SVD reads no captions: every caption is the zero token, which is also its unconditional one."""

    length = 1

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.register_buffer("token", torch.zeros(1, 1, width), persistent=False)

    def encode(self, captions: list[str]) -> Tensor:
        """(B,1,D) zeros."""
        return self.token.expand(len(captions), -1, -1)


def read_delta(reverse: dict[str, Any]) -> dict[str, Tensor]:
    """What `reverse["delta"]` names. ValueError where the JSON beside it (an export's, or a shipped weight's card) says
    that it was trained otherwise: a delta learned under other maps fits, and is wrong."""
    from safetensors.torch import load_file

    file = delta_file(reverse["delta"])
    about = file.with_suffix(".json")
    trained = json.loads(about.read_text()) if about.is_file() else {}
    for name in ("train", "rotate"):
        here = reverse[name]
        if name in trained and sorted(trained[name]) != sorted(here):  # matrices in any order
            typed = json.dumps(trained[name]).replace('"', "").replace(" ", "")
            raise ValueError(
                f"svd: {about} says that the delta was trained with {name}={typed}, the config has "
                f"model.reverse.{name}={here}; type 'model.reverse.{name}={typed}'"
            )
    return load_file(file)


def delta_file(source: str) -> Path:
    """The delta that `model.reverse.delta` names: a file, a run directory that exported one, or a shipped weight."""
    path = Path(source)
    for file in (path, path / "export" / "delta.safetensors", assets.FOLDER / f"{source}.safetensors"):
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"svd: model.reverse.delta={source}: no such file, and no run directory with export/delta.safetensors; "
        f"make one with stages=[export]"
    )
