"""Masked autoencoding of pixels: how the small VideoMAE is made (Tong et al. 2022)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from transformers import VideoMAEForPreTraining

from timelapse import assets
from timelapse.encoder.grid import encoder_pixels
from timelapse.module.masked_latent import warm_cosine
from timelapse.module.masking import TubeMask
from timelapse.module.optimizer import NormClipping, check_kind, optimizer_of
from timelapse.randomness import keyed_each
from timelapse.types import Batch


class MaskedPixel(NormClipping, L.LightningModule):
    """From the shown tubes of a clip, predict the pixels of the hidden ones.

    Loss: transformers' own, mean squared error on pixels normalised within each tubelet patch and colour
    channel (`config.norm_pix_loss`): 1 is what predicting the patch's mean scores.
    """

    def __init__(
        self,
        network: VideoMAEForPreTraining,
        mask: TubeMask,
        steps: int,
        learning_rate: float,
        warmup: int,
        weight_decay: float = 0.05,
        views: int = 1,
        optimizer: str = "muon",
        seed: int = 0,
    ):
        """network: encoder and decoder to train. steps: of the whole run, for the schedule of the learning rate
        (linear `warmup`, then a cosine). views: masks drawn of each clip in a step ("repeated sampling", Feichtenhofer
        et al. 2022): decoding or painting a clip costs more than a pass over the few tubes that are shown.
        optimizer: its kind (timelapse.module.optimizer).
        """
        super().__init__()
        check_kind(optimizer)
        self.views, self.optimizer = views, optimizer
        self.network, self.mask, self.steps, self.seed = network, mask, steps, seed
        self.learning_rate, self.warmup, self.weight_decay = learning_rate, warmup, weight_decay

    def training_step(self, batch: Batch, index: int) -> Tensor:
        names = [f"{self.global_step}:{key}:{view}" for key in batch["key"] for view in range(self.views)]
        loss = self.loss(batch["video"].repeat_interleave(self.views, 0), names)
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)
        return loss

    def loss(self, video: Tensor, names: list[str]) -> Tensor:
        """(B,T,3,H,W) in [-1,1] with at least config.num_frames frames -> scalar; `names` key window and
        mask.
        """
        config = self.network.config
        generators = keyed_each(names, self.seed, "mask")
        if video.shape[1] < config.num_frames:
            raise ValueError(
                f"masked_pixel: clips have {video.shape[1]} frames, the network reads {config.num_frames}; "
                f"set video.frames to at least that"
            )
        clips = []
        for clip, g in zip(video, generators):
            start = int(torch.randint(len(clip) - config.num_frames + 1, (), generator=g))
            clips.append(clip[start : start + config.num_frames])
        pixels = encoder_pixels(torch.stack(clips), (config.image_size, config.image_size))
        side = config.image_size // config.patch_size
        grid = (config.num_frames // config.tubelet_size, side, side)
        hidden = torch.stack([self.mask.hidden(grid, g).flatten() for g in generators]).to(video.device)
        return self.network(pixels, bool_masked_pos=hidden).loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = optimizer_of(self.optimizer, [self.network], self.learning_rate, self.weight_decay, (0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, self.warmup, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def backbone(self) -> nn.Module:
        """What stages and callbacks call the trained network."""
        return self.network

    def ship(self, recipe: str, name: str = "videomae_tiny") -> Path:
        """Write the encoder alone to the shipped weights; recipe: the command that made it."""
        card = {"config": self.network.config.to_diff_dict(), "recipe": recipe, "numbers": {}}
        return assets.save(name, self.network.videomae.state_dict(), card)
