"""Peak memory of a GPU, of training steps and of validations apart."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

log = logging.getLogger("timelapse")


class PeakMemory(Callback):
    """At the end of a fit, logs GiB: allocated at most by training steps, by validations, and reserved over both.

    The allocator keeps what it once reserved, so what it holds cannot be told apart. Previews count as training.
    """

    def __init__(self) -> None:
        self.allocated = {"training": 0.0, "validation": 0.0}
        self.reserved = 0.0

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """What encoded the dataset before is neither."""
        if module.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(module.device)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.take("training", module.device)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.take("validation", module.device)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.take("training", module.device)
        if self.reserved:
            parts = ", ".join(f"{part} {most:.1f}" for part, most in self.allocated.items())
            log.info(f"GiB of GPU memory at most: reserved {self.reserved:.1f}; allocated in {parts}")

    def take(self, part: str, device: Any) -> None:
        """The peak since it was last taken is of this part."""
        if device.type == "cuda":
            self.allocated[part] = max(self.allocated[part], torch.cuda.max_memory_allocated(device) / 2**30)
            self.reserved = max(self.reserved, torch.cuda.max_memory_reserved(device) / 2**30)
            torch.cuda.reset_peak_memory_stats(device)
