"""Masked latent prediction: how the small V-JEPA 2 is made (Bardes et al. 2024; Assran et al. 2025)."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import VJEPA2Model

from timelapse import assets
from timelapse.encoder.grid import imagenet_pixels
from timelapse.encoder.probe import effective_rank
from timelapse.module.masking import BlockMask, split
from timelapse.randomness import keyed_each
from timelapse.types import Batch


class MaskedLatent(L.LightningModule):
    """From the shown tokens of a clip, predict what a slow copy of the encoder says of the hidden ones.

    Loss: L1 between the prediction and the layer-normed target. No gradient reaches the target, whose weights
    are a moving average of the encoder's. Two numbers show a collapse when it comes: `train/rank`, the
    effective rank of the target tokens (1 to the width), and `train/clip_variance`, the share of their
    variance that lies between clips at the same place (0: features know only positions). Training goes from
    short to long clips, as V-JEPA 2's does: the early steps are cheap.
    """

    def __init__(
        self,
        model: VJEPA2Model,
        masks: list[BlockMask],
        steps: int,
        learning_rate: float,
        warmup: int,
        weight_decay: float = 0.04,
        ema: tuple[float, float] = (0.99, 0.9998),
        short_frames: int = 8,
        short_until: float = 0.6,
        seed: int = 0,
    ):
        """model: encoder and predictor to train. masks: each is a prediction task of every step.

        steps: optimizer steps of the whole run, which the schedules follow: learning rate with linear
        `warmup` and a cosine down to a hundredth; decay of the moving average from `ema[0]` to `ema[1]`;
        clips of `short_frames` up to the share `short_until` of the run, then of config.frames_per_clip.
        """
        super().__init__()
        self.model = model
        self.target = copy.deepcopy(model.encoder).requires_grad_(False).eval()
        self.masks, self.steps = list(masks), steps
        self.learning_rate, self.warmup, self.weight_decay = learning_rate, warmup, weight_decay
        self.ema, self.seed = tuple(ema), seed
        self.short_frames, self.short_until = short_frames, short_until

    def train(self, mode: bool = True) -> MaskedLatent:
        super().train(mode)
        self.target.eval()
        return self

    # -- one step ------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, index: int) -> Tensor:
        names = [f"{self.global_step}:{key}" for key in batch["key"]]
        video = self.window(batch["video"], names)
        target = self.targets(video)
        losses = [self.predict(video, target, mask, names) for mask in self.masks]
        loss = torch.stack(losses).mean()
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        for i, value in enumerate(losses):
            self.log(f"train/mask{i}", value.detach(), sync_dist=True)
        if self.global_step % 20 == 0:
            self.log("train/rank", effective_rank(target.flatten(0, 1)), prog_bar=True, sync_dist=True)
            self.log("train/clip_variance", clip_variance(target), prog_bar=True, sync_dist=True)
        return loss

    def window(self, video: Tensor, names: list[str]) -> Tensor:
        """(B,T,3,H,W) in [-1,1] -> (B,f,3,crop,crop) normalised: consecutive frames, or every second of a
        short clip.
        """
        config = self.model.config
        short = self.global_step < self.short_until * self.steps
        length = min(self.short_frames if short else config.frames_per_clip, video.shape[1])
        clips = []
        for clip, g in zip(video, keyed_each(names, self.seed, "window")):
            strides = 2 if short and 2 * length <= len(clip) else 1
            stride = 1 + int(torch.randint(strides, (), generator=g))
            start = int(torch.randint(len(clip) - stride * (length - 1), (), generator=g))
            clips.append(clip[start : start + stride * length : stride])
        return imagenet_pixels(torch.stack(clips), (config.crop_size, config.crop_size))

    @torch.no_grad()
    def targets(self, video: Tensor) -> Tensor:
        """(B,f,3,crop,crop) -> (B,N,D) layer-normed tokens of the slow encoder."""
        tokens = self.target(video).last_hidden_state
        return F.layer_norm(tokens, tokens.shape[-1:])

    def predict(self, video: Tensor, target: Tensor, mask: BlockMask, names: list[str]) -> Tensor:
        """Mean L1 error of the predictor on the hidden tokens of each clip."""
        config, generators = self.model.config, keyed_each(names, self.seed, "mask", repr(mask))
        side = config.crop_size // config.patch_size
        grid = (video.shape[1] // config.tubelet_size, side, side)
        shown, hidden = (ids.to(video.device) for ids in split([mask.hidden(grid, g) for g in generators]))
        context = encode_shown(self.model.encoder, video, shown)
        # The predictor gathers its context out of a full row of tokens; the hidden ones are never read.
        row = torch.zeros_like(target).scatter(1, _wide(shown, context), context.to(target.dtype))
        guess = self.model.predictor(row, [shown], [hidden]).last_hidden_state
        return F.l1_loss(guess, target.gather(1, _wide(hidden, target)))

    # -- optimizer and the slow encoder --------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Any]:
        decayed, plain = [], []
        for p in self.model.parameters():
            (decayed if p.ndim > 1 else plain).append(p)  # biases and norms are not pulled to zero
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warm_cosine(step, self.warmup, self.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        with torch.enable_grad():  # the closure runs the training step
            super().optimizer_step(*args, **kwargs)
        first, last = self.ema
        decay = first + (last - first) * min(1.0, self.global_step / self.steps)
        for slow, fast in zip(self.target.parameters(), self.model.encoder.parameters()):
            slow.lerp_(fast.detach(), 1 - decay)

    @property
    def backbone(self) -> nn.Module:
        """What stages and callbacks call the trained network."""
        return self.model

    def ship(self, recipe: str, name: str = "vjepa_tiny") -> Path:
        """Write the slow encoder alone to the shipped weights; recipe: the command that made it."""
        card = {"config": self.model.config.to_diff_dict(), "recipe": recipe, "numbers": {}}
        return assets.save(name, self.target.state_dict(), card)


def encode_shown(encoder: nn.Module, video: Tensor, shown: Tensor) -> Tensor:
    """Run a VJEPA2Encoder on some tokens of a clip: (B,f,3,H,W), token numbers (B,n) -> (B,n,D).

    transformers' encoder takes no mask, but its layers take token numbers to rotate by. With all tokens shown
    this is the encoder's own forward.
    """
    tokens = encoder.embeddings(video)
    tokens = tokens.gather(1, _wide(shown, tokens))
    for layer in encoder.layer:
        tokens = layer(tokens, shown)[0]
    return encoder.layernorm(tokens)


def clip_variance(tokens: Tensor) -> Tensor:
    """(B,N,D) -> scalar in [0,1]: variance between clips at the same place / that of all tokens."""
    between = tokens.var(0, unbiased=False).mean()
    return between / tokens.flatten(0, 1).var(0, unbiased=False).mean().clamp_min(1e-12)


def warm_cosine(step: int, warmup: int, steps: int, floor: float = 0.01) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine from 1 down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def _wide(ids: Tensor, tokens: Tensor) -> Tensor:
    return ids[..., None].expand(-1, -1, tokens.shape[-1])
