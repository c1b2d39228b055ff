"""Samples while training: the same few validation clips, from the same noise, every so many steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from timelapse.dataset.module import alike, collate
from timelapse.dataset.write import write_video
from timelapse.input import given


class Samples(Callback):
    """Writes `<folder>/step000200/<key>.mp4`, hands videos to a logger that takes them, logs SC and MD.

    every: steps between samples. clips: a map-style validation dataset; the first `count` are used.
    known_frames: which pixel frames are given. metrics: name -> timelapse metric (may be empty).
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        clips: Any,
        count: int,
        known_frames: int | list[int],
        sampler: Any,
        metrics: dict[str, Any],
    ):
        self.folder, self.every, self.clips, self.count = folder, every, clips, count
        self.known_frames, self.sampler, self.metrics = known_frames, sampler, metrics

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        step = trainer.global_step
        if (index + 1) % trainer.accumulate_grad_batches or step % self.every:  # parts of a step share its number
            return
        from timelapse.metric.evaluate import evaluate

        chosen = alike(self.clips, range(min(self.count, len(self.clips))), self.count)[0]
        batch = collate([self.clips[i] for i in chosen])
        known = given(self.known_frames, batch["video"].shape[1]).expand(len(batch["key"]), -1)
        modes, _ = {part: part.training for part in module.modules()}, module.eval()
        # On every rank: a sharded forward is collective. Of chunks in a row only the first, which has a truth.
        pieces = module.stream(batch, known, self.sampler, progress=trainer.is_global_zero, precision=trainer.precision)
        videos = next(pieces)
        for part, training in modes.items():  # frozen parts among them stay in eval
            part.training = training
        if not trainer.is_global_zero:
            return
        out = self.folder / f"step{step:06d}"
        out.mkdir(parents=True, exist_ok=True)
        for key, video in zip(batch["key"], videos):
            write_video(out / f"{key}.mp4", video.cpu())
        numbers, _ = evaluate(
            self.metrics, [{"video": videos.cpu(), "truth": batch["video"].cpu(), "known": known.cpu()}], alone=True
        )
        values = {f"sample/{name}": value for name, value in numbers.items() if not name.endswith("_n")}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step - 1)  # as Lightning numbers the step just done, and its validation
            if hasattr(logger, "log_video"):  # W&B
                logger.log_video("samples", [str(out / f"{key}.mp4") for key in batch["key"]], step=step)
