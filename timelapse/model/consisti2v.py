"""ConsistI2V: an image diffusion UNet inflated to video, its VAE, CLIP text encoder and noise process from numbers."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import ByT5Tokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from timelapse import assets
from timelapse.model import consisti2v_published as published
from timelapse.model.consisti2v_unet import InflatedUNet
from timelapse.model.kl_codec import KlCodec
from timelapse.model.text import Text
from timelapse.model.weights import compare, files_key, fill, floating, from_hub, is_hub, meta, seeded, shipped
from timelapse.process import Process

log = logging.getLogger(__name__)
PUBLISHED = {  # what those weights were made with
    "rope": "half",
    "temporal_time": False,
    "window": 3,
    "first_frame": True,
    "process.schedule": "linear",
    "process.prediction": "epsilon",
}


class ConsistI2V:
    """The parts of one ConsistI2V model; each is built when first asked for, on torch's default device.

    `backbone` is trained and may be sharded; `codec` and `text` are frozen and are not its children.

    unet, vae, text: constructor numbers of `UNet2DConditionModel`, `AutoencoderKL` and `CLIPTextConfig`. Numbers that
        differ from those of the weights are an error.
    weights: where the parts "unet", "vae" and "text" come from. None: random, from `seed`. A string with a slash or an
        existing folder: a diffusers folder, either of Stable Diffusion, which is inflated, or the published ConsistI2V.
        A dict: part -> None, such a string, or the name of a weight shipped in `timelapse/assets`.
    window, rope, first_frame, temporal_heads, temporal_time, gamma, unit_seconds, interval, intervals,
        gradient_checkpointing: see `InflatedUNet`.
    chunk: pictures that the VAE takes at a time; 0 for all at once.
    align: where alignment losses look, read by their configs: {layer, early_layer, width, hidden}; layers are blocks in
        the order they run, and tokens lie on the grid of `layer`'s output.
    dtype: of the UNet's weights. frozen_dtype: of VAE and text encoder.
    name, stands_for: what reports call the shipped weights, and the network they replace.
    """

    keeps_known = True  # a known frame is a frame of the latent clip itself
    told = ([0],)  # which frames may be known, together

    def __init__(
        self,
        unet: dict[str, Any],
        vae: dict[str, Any],
        text: dict[str, Any],
        process: Process,
        weights: str | dict[str, str | None] | None = None,
        window: int = 3,
        rope: str = "heads",
        first_frame: bool = True,
        temporal_heads: int = 8,
        temporal_time: bool = True,
        gamma: float = 1.0,
        unit_seconds: float = 1 / 30,
        interval: float = 3.0,
        intervals: tuple[float, float] = (1.0, 5.0),
        gradient_checkpointing: bool = False,
        chunk: int = 0,
        dtype: str = "float32",
        frozen_dtype: str = "float32",
        seed: int = 0,
        align: dict[str, int] | None = None,
        name: str = "",
        stands_for: str | None = None,
    ):
        if unet["in_channels"] != vae["latent_channels"]:
            raise ValueError(
                f"consisti2v: unet.in_channels is {unet['in_channels']}, vae.latent_channels {vae['latent_channels']}; "
                f"make them equal: the first frame is told on the frame axis, not in more channels"
            )
        if unet["cross_attention_dim"] != text["hidden_size"]:
            raise ValueError(
                f"consisti2v: unet.cross_attention_dim={unet['cross_attention_dim']} differs from "
                f"text.hidden_size={text['hidden_size']}; make them equal"
            )
        if not isinstance(gamma, int | float) or not 0 <= gamma <= 1:
            raise ValueError(f"consisti2v: model.gamma={gamma}; expected 0..1, the image network's share in the mix")
        self.numbers = {"unet": unet, "vae": vae, "text": text}
        self.process, self.weights, self.seed, self.align = process, weights, seed, align
        self.name, self.stands_for = name, stands_for
        self.options = {
            "window": window,
            "rope": rope,
            "first_frame": first_frame,
            "temporal_heads": temporal_heads,
            "temporal_time": temporal_time,
            "gamma": gamma,
            "unit_seconds": unit_seconds,
            "interval": interval,
            "intervals": intervals,
            "gradient_checkpointing": gradient_checkpointing,
        }
        self.chunk = chunk
        self.dtype, self.frozen_dtype = floating(dtype), floating(frozen_dtype)
        if align and align["width"] != self._block(align["layer"])[1]:
            raise ValueError(
                f"consisti2v: model.align.width={align['width']}, but block {align['layer']} is "
                f"{self._block(align['layer'])[1]} wide; set it"
            )

    # -- parts -------------------------------------------------------------------------------------------------

    @cached_property
    def backbone(self) -> InflatedUNet:
        """The network to train. Under `torch.device("meta")` it has shapes only: shard it, `to_empty` it on the device,
        then call `materialise`."""
        made = self._made()
        made.constrain()  # the public code does so in its forward pass: published weights may lie beside the range
        return made

    def _made(self) -> InflatedUNet:
        source = None if meta() else self._source("unet")
        if is_hub(source):
            config = from_hub("consisti2v", UNet2DConditionModel.load_config, source, "unet")
            compare("consisti2v", "unet", source, self.numbers["unet"], config)
            heads = {"temporal_heads": config["n_temp_heads"]} if "n_temp_heads" in config else {}
            compare("consisti2v", "", source, self.options, heads)
            if not published.is_published(config):  # an image network: inflate it
                load = UNet2DConditionModel.from_pretrained
                return self._inflated(from_hub("consisti2v", load, source, "unet", torch_dtype=self.dtype))
            wrong = self._unlike_published()
            if wrong:
                raise ValueError(
                    f"consisti2v: the published weights in {source} were made with {wrong}, and with noise.alpha=1.0; "
                    f"type that, or +experiment=consisti2v_published"
                )
            backbone = self._inflated(UNet2DConditionModel(**self.numbers["unet"]))
            backbone.load_state_dict(published.read(_folder(source)))
            return nn.Module.to(backbone, self.dtype)
        with seeded(self.seed):
            backbone = self._inflated(UNet2DConditionModel(**self.numbers["unet"]))
        if source is not None:
            shipped("consisti2v", "unet", source, backbone, self.numbers["unet"], self._meaning())
        return nn.Module.to(backbone, self.dtype)

    @cached_property
    def codec(self) -> KlCodec:
        """Pixels to latents and back; frozen."""
        return KlCodec(self._frozen("vae", AutoencoderKL, "vae"), self.chunk)

    @cached_property
    def text(self) -> Text:
        """Captions to tokens; frozen. Without a hub's tokenizer, tokens are bytes."""
        encoder, source = self._frozen("text", CLIPTextModel, "text_encoder"), self._source("text")
        load = CLIPTokenizer.from_pretrained
        tokenizer = from_hub("consisti2v", load, source, "tokenizer") if is_hub(source) else ByT5Tokenizer()
        return Text(encoder, tokenizer, self.numbers["text"]["max_position_embeddings"])

    @property
    def text_key(self) -> str | None:
        """Tells the published text encoder and its precision from others without loading it; None: ask its weights."""
        key = files_key(self._source("text"), "text_encoder", "tokenizer")
        return key and f"{key} {self.frozen_dtype} {self.numbers['text']['max_position_embeddings']}"

    def materialise(self, backbone: InflatedUNet) -> None:
        """Fill a backbone that was built on the meta device and given memory by `to_empty`."""
        fill(backbone, lambda: ConsistI2V.backbone.func(self))

    # -- shapes ------------------------------------------------------------------------------------------------

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(t,c,h,w) of a clip of `frames` pictures of height x width pixels; ValueError if the VAE cannot take them."""
        vae = self.numbers["vae"]
        spatial = 2 ** (len(vae["block_out_channels"]) - 1)
        if height % spatial or width % spatial:
            h, w = (max(spatial, round(size / spatial) * spatial) for size in (height, width))
            raise ValueError(
                f"consisti2v: video.height={height}, video.width={width}; expected multiples of {spatial}, "
                f"e.g. {h} and {w}"
            )
        return frames, vae["latent_channels"], height // spatial, width // spatial

    def grid_of(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(t,h,w) of the tokens that alignment losses see, of a latent of `shape` (B,t,c,h,w)."""
        level = self._block(self.align["layer"])[0] if self.align else 0
        smaller = lambda n: -(-n // 2**level)  # each level halves and rounds up
        return shape[1], smaller(shape[3]), smaller(shape[4])

    def _block(self, i: int) -> tuple[int, int]:
        """(times its output was halved, width of its output) of block i."""
        widths = self.numbers["unet"]["block_out_channels"]
        n = len(widths)
        levels = [*(min(j + 1, n - 1) for j in range(n)), n - 1, *(max(n - 2 - j, 0) for j in range(n))]
        if not 0 <= i < len(levels):
            raise ValueError(f"consisti2v: model.align.layer={i} is outside of the blocks 0..{len(levels) - 1}")
        return levels[i], [*widths, widths[-1], *reversed(widths)][i]

    # -- export ------------------------------------------------------------------------------------------------

    def export(self, folder: str | Path, backbone: InflatedUNet | None = None) -> None:
        """Write the published layout's `unet`, which the public code opens beside its other folders."""
        differs = self._unlike_published()
        if differs:
            log.warning(
                f"consisti2v: the export is for the public code alone, and that runs these weights with {differs}, "
                f"which they were not trained with; as model.weights the folder is refused, keep the checkpoint"
            )
        state = (backbone or self.backbone).state_dict()
        heads = self.options["temporal_heads"]
        published.write(Path(folder) / "unet", state, self.numbers["unet"], 16, heads)

    def _unlike_published(self) -> str:
        """What to type for this to be what the published layout stands for; empty where it is."""
        have = self.options | {f"process.{k}": getattr(self.process, k) for k in ("schedule", "prediction")}
        return " ".join(f"model.{k}={str(v).lower()}" for k, v in PUBLISHED.items() if have[k] != v)

    def ship(self, recipe: str, text: bool = False) -> list[Path]:
        """Write the UNet (and the text encoder) to the weights that ship, each with its numbers and recipe."""
        parts = {"unet": (self.backbone, self.numbers["unet"] | self._meaning())}
        parts |= {"text": (self.text.encoder, self.numbers["text"])} if text else {}
        save = lambda name, module, card: assets.save(name, module.state_dict(), {"config": card, "recipe": recipe})
        return [save(f"consisti2v_tiny_{part}", *made) for part, made in parts.items()]

    def _meaning(self) -> dict[str, Any]:
        """What the UNet's weights were trained to be, beside its numbers; on the card of those that ship."""
        kept = {k: self.options[k] for k in ("rope", "temporal_heads", "temporal_time", "unit_seconds")}
        return kept | {f"process.{k}": getattr(self.process, k) for k in ("prediction", "schedule")}

    # -- weights -----------------------------------------------------------------------------------------------

    def _source(self, part: str) -> str | None:
        return self.weights.get(part) if isinstance(self.weights, dict) else self.weights

    def _inflated(self, unet: UNet2DConditionModel) -> InflatedUNet:
        with seeded(self.seed):
            return nn.Module.to(InflatedUNet(unet, **self.options), self.dtype)

    def _frozen(self, part: str, kind: type, folder: str) -> nn.Module:
        source, numbers = self._source(part), self.numbers[part]
        if not meta() and is_hub(source):
            name = "dtype" if part == "text" else "torch_dtype"  # transformers 5 renamed it, diffusers did not
            module = from_hub("consisti2v", kind.from_pretrained, source, folder, **{name: self.frozen_dtype})
            theirs = module.config.to_dict() if part == "text" else dict(module.config)
            compare("consisti2v", part, source, numbers, theirs)
            return module
        with seeded(self.seed):
            module = kind(CLIPTextConfig(**numbers)) if part == "text" else kind(**numbers)
        if not meta() and source is not None:
            shipped("consisti2v", part, source, module, numbers)
        return nn.Module.to(module, self.frozen_dtype)


def _folder(source: str) -> Path:
    """The `unet` folder of a checkpoint on disk or on the hub."""
    if Path(source).is_dir():
        return Path(source) / "unet"
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, allow_patterns="unet/*")) / "unet"
