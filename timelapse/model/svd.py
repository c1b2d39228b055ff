"""Stable Video Diffusion image-to-video: UNet, VAE, CLIP vision and noise process from plain numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
from timelapse.model.svd_backbone import SvdBackbone
from timelapse.model.svd_codec import SvdCodec
from timelapse.types import Condition

FOLDERS = {"unet": "unet", "vae": "vae", "vision": "image_encoder"}  # of a diffusers pipeline


class SVD:
    """The parts of one Stable Video Diffusion model; each is built when first asked for, on torch's default device.

    unet, vae, vision: constructor numbers of `UNetSpatioTemporalConditionModel`, `AutoencoderKLTemporalDecoder` and
        `CLIPVisionConfig`. Numbers that differ from those of the weights are an error.
    weights: None (random, from `seed`); a hub id or folder of a diffusers pipeline; or a dict: part -> None, such a
        string, or the name of a weight shipped in `timelapse/assets`.
    reverse: None, or the network of backward motion (`SvdBackbone`): {train, rotate, delta}. delta: None, or what
        training added, from a `delta.safetensors` (stage export) or a run directory that has one, of this or another
        checkpoint.
    fps, motion_bucket, noise_augmentation: what the UNet is told of every clip; frames a second reach it as fps - 1.
    joint, gradient_checkpointing, compile: see `SvdBackbone`. chunk: see `SvdCodec`.
    dtype: of the UNet's frozen or trained weights. frozen_dtype: of VAE and CLIP; the VAE stays in float32 under
    float16 when its config says `force_upcast`.
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
        joint: bool = True,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        chunk: int = 0,
        dtype: str = "float32",
        frozen_dtype: str = "float32",
        seed: int = 0,
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
        self.numbers = {"unet": unet, "vae": vae, "vision": vision}
        self.process, self.weights, self.reverse, self.seed = process, weights, reverse, seed
        self.ids = (fps - 1, motion_bucket, noise_augmentation)
        self.joint, self.gradient_checkpointing, self.compile = joint, gradient_checkpointing, compile
        self.chunk = chunk
        self.dtype, self.frozen_dtype = getattr(torch, dtype), getattr(torch, frozen_dtype)

    # -- parts -------------------------------------------------------------------------------------------------

    @cached_property
    def backbone(self) -> SvdBackbone:
        """The UNet. Under `torch.device("meta")` it has shapes only: shard it, `to_empty` it, then `materialise`."""
        unet = self._part("unet", UNetSpatioTemporalConditionModel, self.dtype)
        backbone = SvdBackbone(unet, self.ids, self.reverse, self.joint, self.gradient_checkpointing, self.compile)
        if self.reverse and self.reverse["delta"] and torch.get_default_device().type != "meta":
            from safetensors.torch import load_file

            backbone.add(load_file(delta_file(self.reverse["delta"])))
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
        from torch.distributed import get_rank, is_initialized
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        start = {}
        if not is_initialized() or get_rank() == 0:
            with torch.device("cpu"):
                start = SVD.backbone.func(self).state_dict()
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=is_initialized())
        set_model_state_dict(backbone, start, options=options)

    # -- shapes ------------------------------------------------------------------------------------------------

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(t,c,h,w) of a clip of `frames` pictures of height x width pixels."""
        vae = self.numbers["vae"]
        spatial = 2 ** (len(vae["block_out_channels"]) - 1)
        return frames, vae["latent_channels"], height // spatial, width // spatial

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(t,h,w) of the latent."""
        return self.grid_of((1, *self.latent_shape(frames, height, width)))

    def grid_of(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        return shape[1], shape[3], shape[4]

    # -- export ------------------------------------------------------------------------------------------------

    def export(self, folder: str | Path, backbone: SvdBackbone | None = None) -> None:
        """A network of backward motion: `delta.safetensors`, by UNet parameter name. A forward network: a folder that
        `StableVideoDiffusionPipeline.from_pretrained` opens."""
        from timelapse.model.svd_export import save_delta, save_pipeline

        (save_pipeline if self.reverse is None else save_delta)(self, backbone or self.backbone, Path(folder))

    def ship(self, recipe: str, text: bool = False) -> list[Path]:
        """Write the UNet (or only what backward motion added to it) to the weights that ship."""
        if self.reverse is not None:
            card = {"train": list(self.reverse["train"]), "rotate": self.reverse["rotate"], "recipe": recipe}
            return [assets.save("svd_tiny_backward", self.backbone.delta(), card)]
        card = {"config": self.numbers["unet"], "recipe": recipe}
        return [assets.save("svd_tiny_unet", self.backbone.unet.state_dict(), card)]

    # -- weights -----------------------------------------------------------------------------------------------

    def _part(self, part: str, kind: type, dtype: torch.dtype) -> nn.Module:
        """The module of a part with its weights; only shapes when built on the meta device."""
        source = self.weights.get(part) if isinstance(self.weights, dict) else self.weights
        numbers, meta = self.numbers[part], torch.get_default_device().type == "meta"
        if not meta and source is not None and ("/" in source or Path(source).is_dir()):
            module = self._from_hub(kind, source, part, dtype)
            self._compare(part, source, module.config.to_dict() if part == "vision" else dict(module.config))
            return module
        with self._seeded():
            module = kind(CLIPVisionConfig(**numbers)) if part == "vision" else kind(**numbers)
        if not meta and source is not None:
            state, card = assets.load(source)
            self._compare(part, source, card.get("config", {}))
            module.load_state_dict(state)
        return nn.Module.to(module, dtype)

    def _compare(self, part: str, source: str, theirs: dict[str, Any]) -> None:
        plain = lambda value: list(value) if isinstance(value, tuple) else value
        for key, value in self.numbers[part].items():
            if key in theirs and plain(theirs[key]) != plain(value):
                raise ValueError(
                    f"svd: the weights '{source}' have {part}.{key}={theirs[key]}, the config says {value}; "
                    f"set model.{part}.{key}={theirs[key]} or choose other model.weights"
                )

    def _from_hub(self, kind: type, source: str, part: str, dtype: torch.dtype) -> nn.Module:
        name = "dtype" if part == "vision" else "torch_dtype"  # transformers 5 renamed it, diffusers did not
        try:
            return kind.from_pretrained(source, subfolder=FOLDERS[part], **{name: dtype})
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"svd: cannot open '{FOLDERS[part]}' of model.weights={source}: {reason} Download it with "
                f"`hf download {source} --local-dir DIR` (accept its licence on the hub first) and set "
                f"model.weights=DIR, or set model.weights=null for random weights"
            ) from error

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(self.seed)
            yield


class NoText(nn.Module):
    """SVD reads no captions: every caption is the zero token, which is also its unconditional one."""

    length = 1

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("token", torch.zeros(1, 1, width), persistent=False)

    def encode(self, captions: list[str]) -> Tensor:
        """(B,1,D) zeros."""
        return self.token.expand(len(captions), -1, -1)


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
