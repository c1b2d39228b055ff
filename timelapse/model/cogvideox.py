"""CogVideoX image-to-video: transformer, VAE, T5 and noise process from plain numbers, with or without weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import nn
from transformers import AutoTokenizer, ByT5Tokenizer, T5Config, T5EncoderModel

from timelapse import assets
from timelapse.errors import choice
from timelapse.model import weights
from timelapse.model.cogvideox_backbone import Backbone
from timelapse.model.cogvideox_codec import CogVideoXCodec
from timelapse.model.text import Text
from timelapse.model.weights import floating
from timelapse.process import Process


class CogVideoX:
    """The parts of one CogVideoX model; each is built when first asked for, on torch's default device.

    `backbone` is trained and may be sharded; `codec` and `text` are frozen and are not its children, so that
    neither sharding nor materialising from the meta device touches them.

    transformer, vae, text: constructor numbers of `CogVideoXTransformer3DModel`, `AutoencoderKLCogVideoX` and
        `T5Config`. Numbers that differ from those of the weights are an error.
    weights: where the parts "transformer", "vae" and "text" come from. None: random, from `seed`. A string with
        a slash or an existing folder: a diffusers pipeline, by `from_pretrained`. A dict: part -> None, such a
        string, or the name of a weight shipped in `timelapse/assets`.
    lora: None (train everything) or {rank, alpha, targets}: only low-rank updates of named layers are trained.
    zero_init: a random transformer starts with closed gates and zero output (DiT, arXiv:2212.09748), which
        training from scratch needs.
    align: where alignment losses look, read by their configs: {layer, early_layer, width, hidden}.
    dtype: of the transformer's weights. frozen_dtype: of VAE and T5; a T5 that is trained goes on from there in
        float32. "float32", "bfloat16" or "float16".
    name, stands_for: what reports call the shipped weights, and the network they replace.
    """

    def __init__(
        self,
        transformer: dict[str, Any],
        vae: dict[str, Any],
        text: dict[str, Any],
        process: Process,
        weights: str | dict[str, str | None] | None = None,
        lora: dict[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        vae_slicing: bool = False,
        vae_tiling: bool = False,
        zero_init: bool = False,
        dtype: str = "float32",
        frozen_dtype: str = "float32",
        seed: int = 0,
        align: dict[str, int] | None = None,
        name: str = "",
        stands_for: str | None = None,
    ):
        if transformer["in_channels"] != 2 * vae["latent_channels"]:
            raise ValueError(
                f"cogvideox: transformer.in_channels is {transformer['in_channels']}, expected "
                f"{2 * vae['latent_channels']}: noisy and known latents of vae.latent_channels each"
            )
        if transformer["text_embed_dim"] != text["d_model"]:
            raise ValueError(
                f"cogvideox: transformer.text_embed_dim={transformer['text_embed_dim']} differs from "
                f"text.d_model={text['d_model']}; make them equal"
            )
        width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
        if align and align["width"] != width:
            raise ValueError(f"cogvideox: model.align.width={align['width']}, but the blocks are {width} wide; set it")
        if lora is not None and set(lora) != {"rank", "alpha", "targets"}:
            raise ValueError(f"cogvideox: lora has {sorted(lora)}; expected rank, alpha and targets, or lora=null")
        if lora and (isinstance(lora["targets"], str) or not lora["targets"]):
            said = f"model.lora.targets is {lora['targets']!r}; expected a list of layers' names, e.g. [to_q,to_k]"
            raise ValueError(f"cogvideox: {said}")
        self.numbers = {"transformer": transformer, "vae": vae, "text": text}
        self.process = process
        self.weights, self.lora, self.seed = weights, lora, seed
        self.name, self.stands_for = name, stands_for
        self.gradient_checkpointing, self.compile, self.zero_init = gradient_checkpointing, compile, zero_init
        self.vae_slicing, self.vae_tiling = vae_slicing, vae_tiling
        self.dtype, self.frozen_dtype = floating(dtype), floating(frozen_dtype)

    # -- parts -------------------------------------------------------------------------------------------------

    @cached_property
    def backbone(self) -> Backbone:
        """The transformer to train. Under `torch.device("meta")` it has shapes only: shard it, `to_empty` it on the
        device, then call `materialise`."""
        transformer = self._part("transformer", CogVideoXTransformer3DModel, self.dtype)
        if self.lora:
            from peft import LoraConfig

            check_targets(transformer, self.lora["targets"])
            transformer.requires_grad_(False)
            with weights.seeded(self.seed):
                transformer.add_adapter(
                    LoraConfig(
                        r=self.lora["rank"],
                        lora_alpha=self.lora["alpha"],
                        target_modules=list(self.lora["targets"]),
                        init_lora_weights=True,
                    )
                )
            for p in transformer.parameters():  # what is trained stays in float32 over half-precision weights
                if p.requires_grad:
                    p.data = p.data.float()
        return Backbone(transformer, self.gradient_checkpointing, self.compile)

    @cached_property
    def codec(self) -> CogVideoXCodec:
        """Pixels to latents and back; frozen."""
        vae = self._part("vae", AutoencoderKLCogVideoX, self.frozen_dtype)
        return CogVideoXCodec(vae, slicing=self.vae_slicing, tiling=self.vae_tiling)

    @cached_property
    def text(self) -> Text:
        """Captions to tokens; frozen. Without a hub's tokenizer, tokens are bytes."""
        encoder, source = self._part("text", T5EncoderModel, self.frozen_dtype), self._source("text")
        load = AutoTokenizer.from_pretrained
        hub = weights.is_hub(source)
        tokenizer = weights.from_hub("cogvideox", load, source, "tokenizer") if hub else ByT5Tokenizer()
        if tokenizer.unk_token_id in tokenizer("a time-lapse of a flower").input_ids:
            raise ValueError(
                f"cogvideox: the tokenizer of model.weights={source} came without its vocabulary; its file is "
                f"spiece.model, which needs `pip install sentencepiece`"
            )
        return Text(encoder, tokenizer, self.numbers["transformer"]["max_text_seq_length"])

    @property
    def text_key(self) -> str | None:
        """Tells the published text encoder and its precision from others without loading it; None: ask its weights."""
        key = weights.files_key(self._source("text"), "text_encoder", "tokenizer")
        return key and f"{key} {self.frozen_dtype} {self.numbers['transformer']['max_text_seq_length']}"

    def materialise(self, backbone: Backbone) -> None:
        """Fill a backbone that was built on the meta device, sharded or not, and given memory by `to_empty`."""
        weights.fill(backbone, lambda: CogVideoX.backbone.func(self))

    @property
    def layers(self) -> int:
        """Number of blocks that a loss may read."""
        return self.numbers["transformer"]["num_layers"]

    # -- shapes ------------------------------------------------------------------------------------------------

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(t,c,h,w) of a clip of `frames` pictures of height x width pixels; ValueError if it does not fit."""
        vae, net = self.numbers["vae"], self.numbers["transformer"]
        spatial, temporal = 2 ** (len(vae["block_out_channels"]) - 1), int(vae["temporal_compression_ratio"])
        shape = (frames - 1) // temporal + 1, vae["latent_channels"], height // spatial, width // spatial
        side = spatial * net["patch_size"]
        # Latent frames are decoded in twos, the first three at once: an even number of them comes back longer.
        fits = (frames - 1) % (2 * temporal) == 0 and height % side == 0 and width % side == 0
        wanted = f"1 + {2 * temporal} n frames of multiples of {side} pixels"
        if fits and net.get("use_learned_positional_embeddings"):
            table = net["sample_frames"], net["sample_height"] * spatial, net["sample_width"] * spatial
            fits, wanted = (frames, height, width) == table, "its learned positions are for {} x {} x {}".format(*table)
        if not fits:
            raise ValueError(f"cogvideox: video.frames, height, width are {frames}, {height}, {width}; {wanted}")
        return shape

    def grid_of(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(t,h,w) of the video tokens of a latent of `shape` (B,t,c,h,w)."""
        p = self.numbers["transformer"]["patch_size"]
        return shape[1], shape[3] // p, shape[4] // p

    # -- export ------------------------------------------------------------------------------------------------

    def export(self, folder: str | Path, backbone: Backbone | None = None, merge: bool = False) -> None:
        """Write what was trained in the form that plain diffusers opens.

        Full finetuning, or LoRA with `merge`: a pipeline folder for
        `CogVideoXImageToVideoPipeline.from_pretrained(folder)`. LoRA without `merge`: one small file for
        `pipeline.load_lora_weights(folder)` on top of the pipeline that `weights` names.
        """
        from timelapse.model.cogvideox_export import save_lora, save_pipeline

        backbone = backbone or self.backbone
        if self.lora and not merge:
            save_lora(backbone, folder)
        else:
            save_pipeline(self, backbone, folder)

    def ship(self, recipe: str, text: bool = False) -> list[Path]:
        """Write the transformer (and the text encoder) to the weights that ship, each with its numbers and recipe."""
        parts = {"transformer": self.backbone.transformer} | ({"text": self.text.encoder} if text else {})
        card = lambda part: {"config": self.numbers[part], "recipe": recipe}
        return [assets.save(f"cogvideox_tiny_{p}", module.state_dict(), card(p)) for p, module in parts.items()]

    # -- weights -----------------------------------------------------------------------------------------------

    def _source(self, part: str) -> str | None:
        return self.weights.get(part) if isinstance(self.weights, dict) else self.weights

    def _part(self, part: str, kind: type, dtype: torch.dtype) -> nn.Module:
        """The module of a part with its weights; only shapes when built on the meta device."""
        source, numbers = self._source(part), self.numbers[part]
        if not weights.meta() and weights.is_hub(source):
            folder = {"text": "text_encoder"}.get(part, part)
            name = "dtype" if part == "text" else "torch_dtype"  # transformers 5 renamed it, diffusers did not
            module = weights.from_hub("cogvideox", kind.from_pretrained, source, folder, **{name: dtype})
            theirs = module.config.to_dict() if part == "text" else dict(module.config)
            weights.compare("cogvideox", part, source, numbers, theirs)
            return module
        with weights.seeded(self.seed):
            module = kind(T5Config(**numbers)) if part == "text" else kind(**numbers)
        if not weights.meta():
            if source is not None:
                weights.shipped("cogvideox", part, source, module, numbers)
            elif part == "transformer" and self.zero_init:
                _close_gates(module)
        return nn.Module.to(module, dtype)  # diffusers' own `to` warns about modules it keeps in float32: none here


def check_targets(network: nn.Module, targets: Sequence[str]) -> None:
    """ValueError for a target that names no layer: peft goes on in silence where another one does."""
    layers = [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d))]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            inner = sorted({name.split(".", 2)[2] for name in layers if name.startswith("transformer_blocks.")})
            raise ValueError(f"cogvideox: model.lora.targets: no layer is called {target}; {choice(target, inner)}")


@torch.no_grad()
def _close_gates(transformer: CogVideoXTransformer3DModel) -> None:
    """Each block starts as the identity and the output as zero."""
    closed = [layer.linear for block in transformer.transformer_blocks for layer in (block.norm1, block.norm2)]
    for layer in (*closed, transformer.proj_out):
        layer.weight.zero_()
        layer.bias.zero_()
