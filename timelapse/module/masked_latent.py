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
from timelapse.encoder.grid import encoder_pixels
from timelapse.encoder.probe import effective_rank
from timelapse.module.masking import BlockMask, split
from timelapse.module.optimizer import NormClipping, check_kind, optimizer_of
from timelapse.randomness import keyed_each
from timelapse.types import Batch


class MaskedLatent(NormClipping, L.LightningModule):
    """From the shown tokens of a clip, predict what a slow copy of the encoder says of the hidden ones.

    Loss: L1 between the prediction and the layer-normed target. No gradient reaches the target, whose weights
    are a moving average of the encoder's. Two numbers show a collapse when it comes: `train/rank`, the
    effective rank of the target tokens (1 to the width), and `train/clip_variance`, the share of their
    variance that lies between clips at the same place (0: features know only positions). Without more, our
    minutes of training collapse (rank 6 to 1.8 within 110 steps), so the encoder's tokens also bear VICReg's
    variance and covariance terms (Bardes et al. 2022), as in C-JEPA (Mo & Tong 2024). Most steps see a few
    latent frames of a clip, drawn at random and kept at their own positions in time; the last ones see all.
    V-JEPA 2 likewise goes from short clips to long ones: the early steps are cheap.
    """

    def __init__(
        self,
        network: VJEPA2Model,
        masks: list[BlockMask],
        steps: int,
        learning_rate: float,
        warmup: int,
        weight_decay: float = 0.04,
        ema: tuple[float, float] = (0.998, 0.9995),
        variance: float = 0.1,
        covariance: float = 0.005,
        times: list[tuple[int, float]] = ((2, 0.85), (8, 0.15)),
        cycles: int = 1,
        optimizer: str = "adamw",
        seed: int = 0,
    ):
        """network: encoder and predictor to train. masks: prediction tasks, taken in turn by step.

        steps: optimizer steps of the whole run; `cycles`: how often the schedules run through in it (warm restarts,
        Loshchilov & Hutter 2017). They are: learning rate with linear `warmup` and a cosine down to a hundredth;
        decay of the moving average from `ema[0]` to `ema[1]`; `times`, pairs of latent frames seen a clip and share
        of the cycle, in order. variance, covariance: weights of the terms against collapse; 0 for V-JEPA's loss alone.
        optimizer: its kind (timelapse.module.optimizer).
        """
        super().__init__()
        check_kind(optimizer)
        self.network, self.optimizer = network, optimizer
        self.target = copy.deepcopy(network.encoder).requires_grad_(False).eval()
        self.masks, self.cycle = list(masks), max(1, steps // cycles)
        self.learning_rate, self.warmup, self.weight_decay = learning_rate, warmup, weight_decay
        self.ema, self.seed = tuple(ema), seed
        self.variance, self.covariance = variance, covariance
        self.times = [(int(count), float(share)) for count, share in times]
        config = network.config
        self.latents, self.side = config.frames_per_clip // config.tubelet_size, config.crop_size // config.patch_size
        if any(not 1 <= count <= self.latents for count, _ in self.times):
            raise ValueError(f"masked_latent: times {self.times} must be 1..{self.latents}; set module.times")

    def train(self, mode: bool = True) -> MaskedLatent:
        super().train(mode)
        self.target.eval()
        return self

    # -- one step ------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, index: int) -> Tensor:
        names = [f"{self.global_step}:{key}" for key in batch["key"]]
        video, ids = self.view(batch["video"], names)
        target = self.targets(video, ids)
        mask = self.masks[self.global_step % len(self.masks)]
        error, context = self.predict(video, ids, target, mask, names)
        variance, covariance = vicreg(context.flatten(0, 1))
        total = error + self.variance * variance + self.covariance * covariance
        for name, value in {"loss": total, "error": error, "variance": variance, "covariance": covariance}.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name == "error", sync_dist=True)
        if self.global_step % 20 == 0:
            self.log("train/rank", effective_rank(target.flatten(0, 1)), prog_bar=True, sync_dist=True)
            self.log("train/clip_variance", clip_variance(target), prog_bar=True, sync_dist=True)
            self.log("train/chance", (target - target.mean((0, 1))).abs().mean(), sync_dist=True)  # error of one guess
        return total

    def view(self, video: Tensor, names: list[str]) -> tuple[Tensor, Tensor]:
        """(B,T,3,H,W) in [-1,1] -> the pixels of some latent frames (B,f,3,crop,crop), normalised, and the
        numbers (B,N) that their tokens have in the whole clip.
        """
        config, per_frame = self.network.config, self.side**2
        if video.shape[1] < config.frames_per_clip:
            raise ValueError(
                f"masked_latent: clips have {video.shape[1]} frames, the network reads {config.frames_per_clip}; "
                f"set video.frames to at least that"
            )
        clips, ids = [], []
        for clip, g in zip(video, keyed_each(names, self.seed, "view")):
            start = int(torch.randint(len(clip) - config.frames_per_clip + 1, (), generator=g))
            seen = torch.randperm(self.latents, generator=g)[: self.count()].sort()[0]
            tubelets = clip[start : start + config.frames_per_clip].unflatten(0, (self.latents, -1))
            clips.append(tubelets[seen].flatten(0, 1))
            ids.append((seen[:, None] * per_frame + torch.arange(per_frame)).flatten())
        pixels = encoder_pixels(torch.stack(clips), (config.crop_size, config.crop_size))
        return pixels, torch.stack(ids).to(video.device)

    def count(self) -> int:
        """Latent frames seen at this step."""
        done, until = self.global_step % self.cycle / self.cycle, 0.0
        for count, share in self.times:
            until += share
            if done < until:
                return count
        return self.times[-1][0]

    @torch.no_grad()
    def targets(self, video: Tensor, ids: Tensor) -> Tensor:
        """(B,f,3,crop,crop), token numbers (B,N) -> (B,N,D) layer-normed tokens of the slow encoder."""
        everything = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        tokens = encode(self.target, video, everything, ids)
        return F.layer_norm(tokens, tokens.shape[-1:])

    def predict(
        self, video: Tensor, ids: Tensor, target: Tensor, mask: BlockMask, names: list[str]
    ) -> tuple[Tensor, Tensor]:
        """Mean L1 error of the predictor on the hidden tokens, and the encoder's shown tokens (B,n,D)."""
        grid = (ids.shape[1] // self.side**2, self.side, self.side)
        generators = keyed_each(names, self.seed, "mask")
        shown, hidden = (i.to(ids.device) for i in split([mask.hidden(grid, g) for g in generators]))
        context = encode(self.network.encoder, video, shown, ids)
        # The predictor gathers its context out of a row of all tokens of the clip; the others are never read.
        row = context.new_zeros(len(ids), self.latents * self.side**2, context.shape[-1])
        shown, places = ids.gather(1, shown), ids.gather(1, hidden)
        row = row.scatter(1, _wide(shown, context), context)
        guess = self.network.predictor(row, [shown], [places]).last_hidden_state
        return F.l1_loss(guess, target.gather(1, _wide(hidden, target))), context

    # -- optimizer and the slow encoder --------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = optimizer_of(self.optimizer, [self.network], self.learning_rate, self.weight_decay, (0.9, 0.999))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warm_cosine(step % self.cycle, self.warmup, self.cycle)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        with torch.enable_grad():  # the closure runs the training step
            super().optimizer_step(*args, **kwargs)
        first, last = self.ema
        decay = first + (last - first) * (self.global_step % self.cycle) / self.cycle
        for slow, fast in zip(self.target.parameters(), self.network.encoder.parameters()):
            slow.lerp_(fast.detach(), 1 - decay)

    @property
    def backbone(self) -> nn.Module:
        """What stages and callbacks call the trained network."""
        return self.network

    def ship(self, recipe: str, name: str = "vjepa_tiny") -> Path:
        """Write the slow encoder alone to the shipped weights; recipe: the command that made it."""
        card = {"config": self.network.config.to_diff_dict(), "recipe": recipe, "numbers": {}}
        return assets.save(name, self.target.state_dict(), card)


def encode(encoder: nn.Module, video: Tensor, shown: Tensor, ids: Tensor) -> Tensor:
    """Run a VJEPA2Encoder on some tokens of a clip: (B,f,3,H,W), which (B,n), their numbers (B,N) -> (B,n,D).

    shown: indices into the tokens of `video`. ids: the number of each of those tokens in the whole clip,
    which says where it is. transformers' encoder takes no mask, but its layers take such numbers to rotate
    by; with all tokens of a whole clip this is the encoder's own forward.
    """
    tokens = encoder.embeddings(video)
    tokens, ids = tokens.gather(1, _wide(shown, tokens)), ids.gather(1, shown)
    for layer in encoder.layer:
        tokens = layer(tokens, ids)[0]
    return encoder.layernorm(tokens)


def vicreg(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(n,D) -> VICReg's variance and covariance terms (Bardes et al. 2022, equations 1 and 4), scalars.

    Mean over dimensions of max(0, 1 - standard deviation); sum of squared off-diagonal covariances over D.
    """
    centred = tokens - tokens.mean(0)
    cov = centred.T @ centred / (len(tokens) - 1)
    spread = F.relu(1 - (cov.diagonal() + 1e-4).sqrt()).mean()
    overlap = (cov.pow(2).sum() - cov.diagonal().pow(2).sum()) / cov.shape[0]
    return spread, overlap


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
