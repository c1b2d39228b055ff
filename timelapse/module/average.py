"""The moving average of trained weights that samples are made with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """Of a LightningModule with `backbone`, `trained()` and `ema_decay`: `ema` follows what is trained, step by step.

    It is a copy of each parameter, sharded as that is, by its name with "/" for "."; saved with the module.
    """

    ema: nn.ParameterDict
    averages: list[tuple[nn.Parameter, nn.Parameter]] = []  # of `ema`, and what it follows

    def begin_average(self) -> None:
        """At the present weights; after sharding."""
        for name, p in self.trained():
            self.ema[name.replace(".", "/")] = nn.Parameter(p.detach().clone(), requires_grad=False)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if hasattr(self.backbone, "constrain"):  # weights that have a range
            self.backbone.constrain()
        if self.ema:
            self.update_average()

    @torch.no_grad()
    def update_average(self) -> None:
        """One step of the average; early ones average over what there is (decay (1+n)/(10+n), as TensorFlow's EMA)."""
        n = self.global_step
        decay = min(self.ema_decay, (1 + n) / (10 + n))
        if not self.averages:  # walking the modules for their names costs more than averaging a small network
            self.averages = [(self.ema[name.replace(".", "/")], p) for name, p in self.trained()]
        averages, trained = zip(*self.averages)
        torch._foreach_lerp_(list(averages), list(trained), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the backbone has its averaged weights; a no-op without them."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:  # in place: FSDP2 keeps views of its shards
        if self.ema:
            from timelapse.sharding import reshard

            reshard(self.backbone)
            if self.device.type == "cuda":  # shards that wait in main memory may still be on their way to the device
                torch.cuda.synchronize(self.device)
            for name, p in self.trained():
                average = self.ema[name.replace(".", "/")]
                held = p.detach().clone()
                p.copy_(average)
                average.copy_(held)
