"""The stream of training clips and the fixed validation clips, for one process or many.

The stream is a pure function: draw n is clip `permutation(seed, n // len)[n % len]`. Its state is therefore one
number, how many draws were consumed, and that follows from the trainer's step: resume is exact, on any number of
processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from timelapse.randomness import keyed
from timelapse.types import Batch


class Stream(Dataset):
    """Endless shuffled view of a dataset; item n carries `draw` = n, which keys all its randomness."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed = dataset, seed
        self._permutation = lru_cache(maxsize=2)(self._permute)

    def _permute(self, epoch: int) -> list[int]:
        return torch.randperm(len(self.dataset), generator=keyed(self.seed, "shuffle", epoch)).tolist()

    def __getitem__(self, draw: int) -> dict[str, Any]:
        epoch, place = divmod(draw, len(self.dataset))
        return {**self.dataset[self._permutation(epoch)[place]], "draw": draw}

    def __getstate__(self) -> dict[str, Any]:  # a cached bound method does not pickle (spawned workers)
        return {"dataset": self.dataset, "seed": self.seed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


class Draws(Sampler):
    """Batches of draw numbers of one rank, from `start` on; no length, so that no epoch ends a resumed run early.

    Every global batch is `batch_size * world` consecutive draws; rank r takes the r-th slice.
    """

    def __init__(self, start: int, batch_size: int, rank: int, world: int):
        self.start, self.batch_size, self.rank, self.world = start, batch_size, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        at = self.start + self.rank * self.batch_size
        while True:
            yield list(range(at, at + self.batch_size))
            at += self.batch_size * self.world


def collate(items: list[dict[str, Any]]) -> Batch:
    """Tensors are stacked, everything else becomes a list."""
    return {k: torch.stack(v) if isinstance((v := [i[k] for i in items])[0], Tensor) else v for k in items[0]}


class Clips(L.LightningDataModule):
    """Training stream and validation clips.

    train, validation: map-style datasets. batch_size: per process. seed: of the shuffle.
    The global batch is batch_size x processes; keep it when the number of processes changes, and so do the losses.
    """

    def __init__(self, train: Dataset, validation: Dataset, batch_size: int, seed: int = 0, workers: int = 0):
        super().__init__()
        if len(train) == 0 or len(validation) == 0:
            raise ValueError(f"{len(train)} training and {len(validation)} validation clips; both need at least one")
        self.train, self.validation = Stream(train, seed), validation
        self.batch_size, self.workers = batch_size, workers

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        start = trainer.global_step * trainer.accumulate_grad_batches * self.batch_size * trainer.world_size
        draws = Draws(start, self.batch_size, trainer.global_rank, trainer.world_size)
        return self._loader(self.train, batch_sampler=draws)

    def val_dataloader(self) -> DataLoader:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        batches = [
            list(range(i, min(i + self.batch_size, len(self.validation))))
            for i in range(0, len(self.validation), self.batch_size)
        ]
        batches += batches[: -len(batches) % world]  # every rank the same number of steps, or collectives hang
        return self._loader(self.validation, batch_sampler=batches[rank::world])

    def _loader(self, dataset: Dataset, batch_sampler: Any) -> DataLoader:
        return DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=collate,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
