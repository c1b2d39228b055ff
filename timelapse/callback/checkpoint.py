"""Checkpoints that survive a kill, and a clean end on SIGTERM."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint


def checkpoints(folder: Path, every: int, keep: int = 2) -> ModelCheckpoint:
    """Every `every` steps and at the end; the newest `keep` stay, `last.ckpt` is the newest.

    Lightning writes to a temporary file and renames it, so a kill or a full disk leaves the previous one whole.
    """
    return ModelCheckpoint(
        dirpath=folder,
        filename="step{step:06d}",
        auto_insert_metric_name=False,
        monitor="step",
        mode="max",
        save_top_k=keep,
        save_last=True,
        every_n_train_steps=every,
        enable_version_counter=False,
    )


class EndOnSignal(Callback):
    """SIGTERM (a cluster's preemption) ends training after the step in hand, with a checkpoint.

    Lightning's own handler raises in the middle of the loop without saving. `ended` is True afterwards.
    """

    def __init__(self) -> None:
        self.ended = False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._before = signal.signal(signal.SIGTERM, self._note)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if trainer.strategy.reduce_boolean_decision(self.ended, all=False):
            self.ended = trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        signal.signal(signal.SIGTERM, self._before)
        if self.ended:
            last = Path(trainer.checkpoint_callback.dirpath) / "last.ckpt"
            trainer.save_checkpoint(last)

    def _note(self, *_: Any) -> None:
        self.ended = True
