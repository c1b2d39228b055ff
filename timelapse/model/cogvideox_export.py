"""Finetuned weights in the forms that plain diffusers opens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from torch import Tensor

from timelapse.model.cogvideox_backbone import Backbone
from timelapse.model.export import save_parts

if TYPE_CHECKING:
    from timelapse.model.cogvideox import CogVideoX


def save_pipeline(model: CogVideoX, backbone: Backbone, folder: str | Path) -> None:
    """A folder for `CogVideoXImageToVideoPipeline.from_pretrained`: all parts, LoRA merged into the weights.

    A LoRA's file that an earlier export left there goes: whoever loaded it too would add it twice.
    """
    source = backbone.transformer
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel.from_config(source.config)
    transformer.load_state_dict(_merged(source), assign=True)
    pipeline = CogVideoXImageToVideoPipeline(
        tokenizer=model.text.tokenizer,
        text_encoder=model.text.encoder,
        vae=_with_scalar_scale(model.codec.vae),
        transformer=transformer,
        scheduler=scheduler(model),
    )
    (Path(folder) / LORA_WEIGHT_NAME_SAFE).unlink(missing_ok=True)
    save_parts(pipeline, folder)


def save_lora(backbone: Backbone, folder: str | Path) -> None:
    """`pytorch_lora_weights.safetensors` with rank and alpha in its header, for `pipeline.load_lora_weights`."""
    from peft import get_peft_model_state_dict

    if (Path(folder) / "model_index.json").exists():
        raise ValueError(f"{folder} holds a pipeline with the LoRA merged into it already; delete it, or move it away")
    transformer = backbone.transformer
    CogVideoXImageToVideoPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )


def scheduler(model: CogVideoX) -> CogVideoXDPMScheduler:
    """The process as diffusers' scheduler; its DDIM twin takes the same config by `from_config`."""
    process = model.process
    return CogVideoXDPMScheduler(
        num_train_timesteps=process.steps,
        beta_start=process.beta_start,
        beta_end=process.beta_end,
        beta_schedule=process.schedule,
        clip_sample=False,
        prediction_type={"v": "v_prediction", "epsilon": "epsilon"}[process.prediction],
        timestep_spacing="trailing",
        rescale_betas_zero_snr=process.zero_terminal_snr,
        snr_shift_scale=process.snr_shift,
    )


def _merged(transformer: CogVideoXTransformer3DModel) -> dict[str, Tensor]:
    """State dict of the plain network: W + alpha / rank B A where a layer has a LoRA."""
    from peft.tuners.lora import LoraLayer

    state = {}
    for key, value in transformer.state_dict().items():
        if ".lora_" not in key:
            state[key.replace(".base_layer", "")] = value.detach()
    for name, layer in transformer.named_modules():
        if isinstance(layer, LoraLayer):
            state[f"{name}.weight"] = (state[f"{name}.weight"] + layer.get_delta_weight("default")).detach()
    return state


@torch.no_grad()
def _with_scalar_scale(vae: AutoencoderKLCogVideoX) -> AutoencoderKLCogVideoX:
    """The same VAE in latent units that need only `scaling_factor`, all that plain pipelines apply.

    A per-channel std moves into the weights exactly: the encoder's last layer is divided by it, and every layer of
    the decoder that reads latents is multiplied. A mean cannot: the decoder pads latents with zeros.
    """
    if vae.config.latents_mean is None and vae.config.latents_std is None:
        return vae
    if any(vae.config.latents_mean or []):
        raise ValueError(
            "cogvideox export: the VAE has per-channel latents_mean, which a plain diffusers pipeline does not "
            "apply; train it with model.vae.latents_mean=null (latents_std is folded into the weights)"
        )
    config = {**vae.config, "latents_mean": None, "latents_std": None}
    with torch.device("meta"):
        plain = AutoencoderKLCogVideoX.from_config(config)
    std = torch.tensor(vae.config.latents_std, device=vae.device)
    state = {k: v.detach().clone() for k, v in vae.state_dict().items()}
    c = len(std)
    state["encoder.conv_out.conv.weight"][:c] /= std.reshape(-1, 1, 1, 1, 1)
    state["encoder.conv_out.conv.bias"][:c] /= std
    state["encoder.conv_out.conv.bias"][c:] -= 2 * std.log()  # log variance
    for key, value in state.items():
        reads_latent = key == "decoder.conv_in.conv.weight" or ("conv_y" in key or "conv_b" in key)
        if key.startswith("decoder.") and reads_latent and key.endswith("weight"):
            value *= std.reshape(1, -1, 1, 1, 1)
    plain.load_state_dict(state, assign=True)
    return plain
