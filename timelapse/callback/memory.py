"""Peak memory of a GPU, of training steps and of validations apart."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

log = logging.getLogger("timelapse")


class PeakMemory(Callback):
    """At the end of a fit, logs GiB that training steps and validations allocated and reserved at most.

    The allocator keeps what it once reserved: after a validation it gives it back, so that the steps' own is seen.
    Previews count as training.
    """

    def __init__(self) -> None:
        self.most = {"training": (0.0, 0.0), "validation": (0.0, 0.0)}  # allocated, reserved

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """What encoded the dataset before is neither."""
        self.empty(module.device)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.take("training", module.device)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.take("validation", module.device)
        self.empty(module.device)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.take("training", module.device)
        if any(map(any, self.most.values())):
            parts = (f"{part} {reserved:.1f} ({allocated:.1f})" for part, (allocated, reserved) in self.most.items())
            log.info(f"GiB of GPU memory reserved (allocated) at most: {', '.join(parts)}")

    def take(self, part: str, device: Any) -> None:
        """The peaks since they were last taken are of this part."""
        if device.type == "cuda":
            peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
            self.most[part] = tuple(max(most, peak / 2**30) for most, peak in zip(self.most[part], peaks))
            torch.cuda.reset_peak_memory_stats(device)

    def empty(self, device: Any) -> None:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
