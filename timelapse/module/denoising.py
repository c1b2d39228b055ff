"""Finetuning a video denoiser: one optimizer, a list of losses, noise keyed by draw and clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from timelapse.check import check_losses
from timelapse.module.average import WeightAverage
from timelapse.module.optimizer import NormClipping, check_kind, optimizer_of
from timelapse.randomness import keyed_each, randn
from timelapse.sampler.init import still
from timelapse.types import Batch, Condition, Conditioning, Step

MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # Lightning's names
MIXED |= {"bf16": torch.bfloat16, "16": torch.float16}  # and its short ones


class Denoising(NormClipping, WeightAverage, L.LightningModule):
    """Trains `model.backbone` and whatever the losses own.

    model: a bundle with `backbone`, `codec`, `text`, `process`, `grid_of` (timelapse/model/README.md).
    losses: name -> loss; each has `weight`, `taps` and returns (B,). The codec, text encoder and `encoder` are frozen
    and stay outside of this module's tree, so that sharding never touches their loaded weights.
    noise_law: of the noise, in training and at the start of sampling (config group `noise`).
    learning_rate, weight_decay, betas: AdamW; optimizer: its kind (timelapse.module.optimizer).
    warmup: steps of linear warm-up, then constant, then linear to zero over the last `cooldown` share of `steps`.
    caption_dropout: share of clips told the empty caption, for guidance. train_text: train the text encoder too
    (pretraining a small one from scratch; nothing of it is cached then).
    ema_decay: decay of the average of the trained weights that samples are made with; 0 for none.
    noises_per_clip: noise levels, each with its noise, that a step draws for every clip of the batch; the clip, its
    condition and its features are encoded once for all of them, which pays where nothing can be cached (any_frame).
    held_out_timesteps: validation loss is measured at these, with noise that never changes.
    """

    strict_loading = False  # a checkpoint holds what was trained, not frozen pretrained weights

    def __init__(
        self,
        model: Any,
        conditioning: Conditioning,
        losses: dict[str, nn.Module],
        encoder: nn.Module | None = None,
        noise_law: Callable[..., Tensor] = randn,
        learning_rate: float = 1e-4,
        warmup: int = 0,
        steps: int = 0,
        cooldown: float = 0.0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        optimizer: str = "adamw",
        ema_decay: float = 0.0,
        seed: int = 0,
        held_out_timesteps: tuple[float, ...] = (100, 400, 700, 999),
        caption_dropout: float = 0.1,
        train_text: bool = False,
        noises_per_clip: int = 1,
    ):
        super().__init__()
        check_kind(optimizer)
        if not isinstance(noises_per_clip, int) or noises_per_clip < 1:
            raise ValueError(f"module.noises_per_clip={noises_per_clip}; type a whole number of 1 or more")
        check_losses(losses)
        # Plain containers hide them from nn.Module: frozen parts must not enter the sharded tree or the checkpoint.
        self._frozen = {"model": model, "encoder": encoder}
        self.conditioning, self.noise_law = conditioning, noise_law
        self.backbone: nn.Module | None = None
        self.losses = nn.ModuleDict(losses)
        self.taps = tuple(sorted({layer for loss in losses.values() for layer in loss.taps}))
        self.learning_rate, self.warmup, self.steps, self.cooldown = learning_rate, warmup, steps, cooldown
        self.constants: dict[str, Tensor] = {}  # tokens of the empty caption and of the negative prompt
        self.caption_dropout, self.train_text = caption_dropout, train_text
        if train_text:
            self.text = model.text.float().requires_grad_(True)  # over a frozen codec of 16 bits too
        self.weight_decay, self.betas, self.optimizer = weight_decay, tuple(betas), optimizer
        self.ema_decay, self.ema = ema_decay, nn.ParameterDict()
        self.seed, self.held_out_timesteps = seed, tuple(held_out_timesteps)
        self.noises_per_clip = noises_per_clip
        self.parts: list[Tensor] = []  # what the parts of the step in hand gave
        self.shown: dict[str, float] = {}  # in the progress bar

    @property
    def model(self) -> Any:
        return self._frozen["model"]

    @property
    def encoder(self) -> nn.Module | None:
        return self._frozen["encoder"]

    # -- set-up ------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Runs once a stage, so it is idempotent; shards when the strategy does."""
        from timelapse.sharding import Fsdp2

        strategy = self.trainer.strategy
        self.materialise(strategy if isinstance(strategy, Fsdp2) else None)

    def materialise(self, strategy: Any = None, averaged: bool | None = None) -> None:
        """Put the backbone (sharded by `strategy`) and the average of its weights in place.

        averaged: whether there is such an average; None: where `ema_decay` says so.
        """
        if self.backbone is None:
            if strategy is None:
                with torch.device("cpu"):  # Lightning's context would draw a LoRA with a GPU's own generator
                    self.backbone = self.model.backbone
            else:  # no process ever holds the whole model: shapes, shards, then each its part of the weights
                from timelapse.sharding import shard

                with torch.device("meta"):
                    self.backbone = self.model.backbone
                shard(self.backbone, self.losses, strategy.mesh, strategy.half, strategy.offload)
                self.backbone.to_empty(device=strategy.home)
                self.model.materialise(self.backbone)
        averaged = self.ema_decay > 0 if averaged is None else averaged
        if averaged and not self.ema:  # after sharding: copies of sharded parameters are sharded alike
            self.begin_average()

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trainable parameters of the backbone: what is averaged and exported."""
        return ((n, p) for n, p in self.backbone.named_parameters() if p.requires_grad)

    def setup(self, stage: str) -> None:
        self.model.codec.to(self.device)  # text and vision encoders come when they are needed: they may all be cached

    def configure_optimizers(self) -> dict[str, Any]:
        parts = (self.backbone, self.losses, *([self.text] if self.train_text else []))
        optimizer = optimizer_of(self.optimizer, parts, self.learning_rate, self.weight_decay, self.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate(self, step: int) -> float:
        """Factor of the learning rate at a step, in [0, 1]."""
        up = min(1.0, (step + 1) / max(1, self.warmup))
        down = min(1.0, (self.steps - step) / max(1.0, self.cooldown * self.steps)) if self.cooldown else 1.0
        return up * max(0.0, down)

    # -- one step ----------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, index: int) -> Tensor:
        draws = [f"{d}:{k}" for d, k in zip(batch["draw"], batch["key"])]
        batch, condition = self.prepare(self.drop_captions(batch, draws), draws)
        if self.noises_per_clip > 1:
            n = self.noises_per_clip
            many = lambda x: x.repeat_interleave(n, 0) if isinstance(x, Tensor) else [i for i in x for _ in range(n)]
            batch = {name: many(x) for name, x in batch.items() if name != "video"}  # large, and losses read latents
            condition = condition.repeat(n)
            draws = [f"{draw}:{i}" for draw in draws for i in range(n)]
        t = self.model.process.draw(keyed_each(draws, self.seed, "t"))
        step = self.step(batch, condition, t.to(self.device), draws)
        values = {name: loss(step).mean() for name, loss in self.losses.items()}
        total = sum(self.losses[name].weight * value for name, value in values.items())
        self.parts.append(torch.stack([total, *values.values()]).detach())
        return total

    def on_train_batch_end(self, outputs: Any, batch: Batch, index: int) -> None:
        """Log the step: one number a term, averaged over its parts and over processes.

        Not by `self.log`, which costs milliseconds and a collective a name.
        """
        trainer = self.trainer
        if (index + 1) % trainer.accumulate_grad_batches:
            return
        values, self.parts = torch.stack(self.parts).mean(0), []
        if self.global_step % trainer.log_every_n_steps == 0:
            names = ("loss", *self.losses)
            row = dict(zip(names, trainer.strategy.reduce(values, reduce_op="mean").tolist()))
            self.shown = {"train/loss": row["loss"]}
            for logger in trainer.loggers:
                logger.log_metrics({f"train/{name}": x for name, x in row.items()}, step=self.global_step - 1)

    def validation_step(self, batch: Batch, index: int) -> None:
        names = batch["key"]
        batch, condition = self.prepare(batch, names)
        with self.averaged():
            for t in self.held_out_timesteps:
                step = self.step(batch, condition, torch.full((len(names),), t, device=self.device), names)
                for name, loss in self.losses.items():
                    self.log(f"val/{name}_t{t}", loss(step).mean(), sync_dist=True, batch_size=sum(batch["weight"]))

    def step(self, batch: Batch, condition: Condition, t: Tensor, names: list[str]) -> Step:
        """Noise the clips that `prepare` made ready and run the network. `names` key the noise, one a clip."""
        model, z0 = self.model, batch["latent"]
        noise = self.noise_law(tuple(z0.shape[1:]), keyed_each(names, self.seed, "noise"), self.device)
        zt = model.process.noise(z0, noise, t)
        output, hidden = self.backbone(zt, t, condition, taps=self.taps)
        return Step(
            z0=z0,
            noise=noise,
            zt=zt,
            t=t,
            alpha=model.process.alpha(t),
            sigma=model.process.sigma(t),
            output=output,
            target=model.process.target(z0, noise, t),
            z0_hat=model.process.to_z0(zt, output, t),
            hidden=hidden,
            grid=model.grid_of(z0.shape),
            batch=batch,
            condition=condition,
        )

    def tokens(self, captions: list[str]) -> Tensor:
        """(B,L,D) on the device; the text encoder comes there when it is first needed."""
        return self.model.text.to(self.device).encode(captions)

    def constant(self, caption: str) -> Tensor:
        """(1,L,D) of a caption of ours, encoded once: where captions are cached, the text encoder leaves the device."""
        if self.train_text:
            return self.tokens([caption])
        if caption not in self.constants:
            with torch.autocast(self.device.type, enabled=False), torch.no_grad():  # as cached captions are
                self.constants[caption] = self.tokens([caption])
            self.rest_text()
        self.constants[caption] = self.constants[caption].to(self.device)  # once: the cache's is in main memory
        return self.constants[caption]

    def rest_text(self) -> None:
        """The text encoder leaves the device; where all captions are cached it was never built, and is not now."""
        if "text" in vars(self.model):
            self.model.text.to("cpu")

    def drop_captions(self, batch: Batch, names: list[str]) -> Batch:
        """Tell a share of the clips the empty caption."""
        draws = [torch.rand((), generator=g).item() for g in keyed_each(names, self.seed, "caption")]
        drop = [d < self.caption_dropout for d in draws]
        if any(drop):
            batch = {**batch, "caption": ["" if d else c for d, c in zip(drop, batch["caption"])]}
            if "tokens" in batch and not self.train_text:
                where = torch.tensor(drop, device=self.device)[:, None, None]
                batch["tokens"] = torch.where(where, self.constant(""), batch["tokens"])
        return batch

    @torch.no_grad()
    def prepare(self, batch: Batch, names: list[str]) -> tuple[Batch, Condition]:
        """The batch with what the cache did not fill in, and what the network is told of it. `names` key the draws.

        Filled in are the latent (posterior resampled), text tokens and encoder features.
        """
        batch, model = dict(batch), self.model
        posterior = keyed_each(names, self.seed, "posterior")
        with torch.autocast(self.device.type, enabled=False):
            if "mean" in batch:
                batch["latent"] = batch["mean"] + batch["std"] * randn(
                    tuple(batch["mean"].shape[1:]), posterior, self.device
                )
            else:
                batch["latent"] = model.codec.encode(batch["video"], posterior)
            if "tokens" not in batch or self.train_text:
                with torch.set_grad_enabled(self.train_text and self.training):
                    batch["tokens"] = self.tokens(batch["caption"])
            if self.taps and "feature" not in batch:
                batch["feature"] = self.encoder.to(self.device)(batch["video"], model.grid_of(batch["latent"].shape))
        return batch, self.condition(batch, names)

    @torch.no_grad()
    def condition(self, batch: Batch, names: list[str], known: Tensor | None = None) -> Condition:
        """Known frames as latents, fresh noise each draw, and the text."""
        with torch.autocast(self.device.type, enabled=False):
            condition = self.conditioning(
                batch, self.model.codec, keyed_each(names, self.seed, "condition"), known=known
            )
        if condition.tokens is None:  # else the conditioning made them, from the picture
            condition.tokens = batch["tokens"]
        return condition.to(self.device)

    # -- sampling ----------------------------------------------------------------------------------------------

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        """Videos (B,T,3,H,W) in [-1,1]: all that `stream` gives, in one piece."""
        return torch.cat(list(self.stream(*args, **kwargs)), dim=1)

    @torch.no_grad()
    def stream(
        self,
        batch: Batch,
        known: Tensor,
        sampler: Any,
        negative_prompt: str = "",
        weights: str = "ema",
        progress: bool = False,
        layout: Tensor | None = None,
        lead: Any = None,
        precision: str = "32-true",
    ) -> Iterator[Tensor]:
        """Videos (B,T,3,H,W) in [-1,1] from the frames of `batch["video"]` that `known` (B,T) marks.

        With `sampler.n_chunks` of more than one, chunk after chunk (B,T-1,3,H,W) follows: each has the last frame of
        the one before as its first, which is not given again. Memory does not grow with their number.
        layout: (B,T,3,H,W) in [-1,1], whose coarse shape a sampler with `start` follows; None: known frames at rest.
        lead: the sampler of the first chunk where it follows a layout; None: `sampler`. precision: the trainer's, as
        Lightning names it: in a mixed one the network runs as it does in training, not codec and encoders.
        The start noise is keyed by (seed, clip key): variants that share the seed share it.
        """
        model, names, mixed = self.model, batch["key"], MIXED.get(str(precision))
        place = lambda x: x.to(self.device, torch.float32 if x.is_floating_point() else None)
        batch = {name: place(x) if isinstance(x, Tensor) else x for name, x in batch.items()}
        if "tokens" not in batch or self.train_text:
            batch["tokens"] = self.tokens(batch["caption"])
        negative = self.constant(negative_prompt).expand(len(names), -1, -1)
        if not self.train_text:  # at paper scale it takes as much memory as the network
            self.rest_text()
        condition = self.condition(batch, names, known=known.to(self.device))
        shape = tuple(condition.latent.shape[1:])
        video = batch["video"]
        chunks = getattr(sampler, "n_chunks", 1)
        for chunk in range(chunks):
            part = (chunk,) if chunk else ()  # the first chunk's draws are those of a single clip
            led = layout is not None and not chunk
            by = lead if led and lead is not None else sampler
            if getattr(by, "start", None) is not None:
                condition.layout = (
                    model.codec.encode(place(layout))
                    if led
                    else still(video, condition.known, model.codec, condition.latent)
                )
            noise = self.noise_law(shape, keyed_each(names, self.seed, "start", *part), self.device)
            way = keyed_each(names, self.seed, "sampler", *part)  # of noise added on the way
            half = torch.autocast(self.device.type, mixed, enabled=mixed is not None)
            with self.averaged() if weights == "ema" else nullcontext(), half:
                latent = by(
                    model,
                    condition,
                    negative,
                    noise,
                    partial(self.noise_law, shape, way, self.device),
                    backbone=self.backbone,
                    progress=progress,
                )
            made = model.codec.decode(latent).clamp(-1, 1)
            yield made[:, 1:] if chunk else made
            if chunk + 1 < chunks:
                condition, video = self.follow(batch, condition, latent, made)

    def follow(self, batch: Batch, condition: Condition, latent: Tensor, video: Tensor) -> tuple[Condition, Tensor]:
        """Condition of the next chunk, whose frame 0 is the last of this one, and its known pixels.

        The latent itself goes on where known frames are frames of the latent clip (ConsistI2V, section 5.5); for
        other models the last picture is encoded as any known frame is.
        """
        known = torch.zeros_like(condition.known)
        known[:, 0] = True
        video = video[:, -1:].expand_as(video)
        if not getattr(self.model, "keeps_known", False):
            return self.condition({**batch, "video": video}, batch["key"], known=known), video
        told = torch.zeros_like(condition.latent)
        told[:, 0] = latent[:, -1]
        return replace(condition, latent=told, known=known), video

    # -- checkpoints -------------------------------------------------------------------------------------------

    def ship(self, recipe: str) -> list[Path]:
        """Write the averaged backbone (and the text encoder, when trained) as shipped weights."""
        with self.averaged():
            return self.model.ship(recipe, text=self.train_text)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Of the backbone only what is trained: frozen weights and position tables come from where they came from."""
        trained = {f"backbone.{name}" for name, _ in self.trained()}
        state = checkpoint["state_dict"]
        kept = {k: v for k, v in state.items() if not k.startswith("backbone.") or k in trained}
        checkpoint["state_dict"] = kept
