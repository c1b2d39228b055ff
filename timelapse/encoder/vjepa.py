"""V-JEPA 2 (Assran et al. 2025) as a frozen encoder: transformers' `VJEPA2Model` without its predictor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import VJEPA2Config, VJEPA2Model

from timelapse import assets
from timelapse.encoder.grid import after_first, encoder_pixels, to_grid


class VJEPA2(nn.Module):
    """Last hidden state of the encoder (after its norm) on the token grid.

    The input is always a square of `config.crop_size`: the model's rotary positions assume that square,
    another size runs without error and with scrambled positions (`ids // grid**2`). A wide picture is
    squeezed into the square and its features are stretched back, so a token still sees its own place.
    """

    def __init__(self, model: VJEPA2Model, name: str, stands_for: str | None = None):
        """model: taken over, frozen. name: what reports call it; stands_for: the network it replaces, if it
        does.
        """
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.name, self.stands_for = name, stands_for
        self.width = model.config.hidden_size

    def train(self, mode: bool = True) -> VJEPA2:
        return super().train(False)  # frozen: never follows the module that holds it

    @torch.no_grad()
    def forward(self, video: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """(B,T,3,H,W) in [-1,1], token grid (t,h,w) -> (B,(t-1)*h*w,D) float32, first frame dropped."""
        config = self.model.config
        frames = after_first(video, grid, config.tubelet_size)
        side = config.crop_size // config.patch_size
        with torch.autocast(video.device.type, enabled=False):
            pixels = encoder_pixels(frames, (config.crop_size, config.crop_size))
            tokens = self.model(pixels, skip_predictor=True).last_hidden_state
            return to_grid(tokens.unflatten(1, (-1, side, side)), (grid[0] - 1, *grid[1:]))


def shipped(asset: str, width: int, name: str, stands_for: str | None = None) -> VJEPA2:
    """The small V-JEPA 2 that ships with the package (recipe: `+experiment=pretrain_vjepa`)."""
    state, card = assets.load(asset)
    model = VJEPA2Model(VJEPA2Config(**card["config"]))
    model.encoder.load_state_dict(state)
    return _encoder_only(model, width, name, stands_for)


def published(weights: str, width: int, name: str, stands_for: str | None = None) -> VJEPA2:
    """weights: hub id or local folder. ValueError says how to get them."""
    try:
        model = VJEPA2Model.from_pretrained(weights, dtype=torch.float32)
    except OSError as e:
        raise ValueError(
            f"V-JEPA 2: no weights at {weights!r}; set HF_HUB_OFFLINE=0 to download them, or elsewhere "
            f"`hf download facebook/vjepa2-vitl-fpc64-256 --local-dir DIR` and give encoder.weights=DIR"
        ) from e
    return _encoder_only(model, width, name, stands_for)


def _encoder_only(model: VJEPA2Model, width: int, name: str, stands_for: str | None) -> VJEPA2:
    if model.config.hidden_size != width:  # the YAML's width sizes projectors before any weight is at hand
        raise ValueError(
            f"{name}: features are {model.config.hidden_size} wide; set encoder.width to that, not {width}"
        )
    model.predictor = nn.Identity()  # never run
    return VJEPA2(model, name, stands_for)
