"""The stream of training clips and the fixed validation clips, for one process or many.

The stream is a pure function: draw n is clip `permutation(seed, n // len)[n % len]`. Its state is therefore one
number, how many draws were consumed, and that follows from the trainer's step: resume is exact, on any number of
processes. Clips of several shapes (`dataset.shapes`) make a stream each, and global batches take turns among them.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from timelapse.randomness import keyed
from timelapse.types import Batch


class Stream(Dataset):
    """Endless shuffled view of a dataset; item n carries `draw` = n, which keys all its randomness.

    group: draws that go into one global batch, all of one shape. After epoch e each shape has had as few turns as show
    its clips e + 1 times, so what its last turn has too many, the next epochs have less; in shuffled order.
    """

    def __init__(self, dataset: Dataset, seed: int, group: int = 1):
        self.dataset, self.seed, self.group = dataset, seed, group
        shapes = shapes_of(dataset) or [None] * len(dataset)
        self.buckets = [[i for i, s in enumerate(shapes) if s == shape] for shape in dict.fromkeys(shapes)]
        self._permutation = lru_cache(maxsize=2 * len(self.buckets))(self._permute)
        self._turns = lru_cache(maxsize=2)(self._deal)

    def _permute(self, bucket: int, epoch: int) -> list[int]:
        members = self.buckets[bucket]
        return [members[i] for i in torch.randperm(len(members), generator=keyed(self.seed, "shuffle", epoch)).tolist()]

    def _before(self, epoch: int) -> list[int]:
        """Turns of each bucket before an epoch."""
        return [-(-epoch * len(members) // self.group) for members in self.buckets]

    def _deal(self, epoch: int) -> list[tuple[int, int]]:
        """(bucket, its turns before) of each turn of an epoch."""
        before, after = self._before(epoch), self._before(epoch + 1)
        order = [bucket for bucket, n in enumerate(before) for _ in range(after[bucket] - n)]
        dealt = []
        for i in torch.randperm(len(order), generator=keyed(self.seed, "turns", epoch)).tolist():
            dealt.append((order[i], before[order[i]]))
            before[order[i]] += 1
        return dealt

    def __getitem__(self, draw: int) -> dict[str, Any]:
        turn, slot = divmod(draw, self.group)
        epoch = draw // sum(map(len, self.buckets))  # or an earlier one, by turns that are not full
        while sum(self._before(epoch)) > turn:
            epoch -= 1
        bucket, before = self._turns(epoch)[turn - sum(self._before(epoch))]
        epoch, place = divmod(before * self.group + slot, len(self.buckets[bucket]))
        return {**self.dataset[self._permutation(bucket, epoch)[place]], "draw": draw}

    def __getstate__(self) -> dict[str, Any]:  # a cached bound method does not pickle (spawned workers)
        return {"dataset": self.dataset, "seed": self.seed, "group": self.group}

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


class Held(Dataset):
    """View of a dataset; item (i, weight) is clip i, which counts that often in the held-out numbers."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, place: tuple[int, float]) -> dict[str, Any]:
        i, weight = place
        return {**self.dataset[i], "weight": weight}


def collate(items: list[dict[str, Any]]) -> Batch:
    """Tensors are stacked, everything else becomes a list."""
    return {k: torch.stack(v) if isinstance((v := [i[k] for i in items])[0], Tensor) else v for k in items[0]}


def outlive_sigterm(worker: int) -> None:
    """SIGTERM comes to a whole process group: the process that trains saves, and needs its clips until then."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@atexit.register  # runs before multiprocessing's own, which sends daemons SIGTERM and waits for their end
def end_workers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler calls it an error
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def shapes_of(dataset: Dataset) -> list[tuple[int, int, int]] | None:
    """(frames, height, width) of each clip; None where all have the same."""
    shapes = getattr(dataset, "shapes", None)
    return shapes if shapes and len(set(shapes)) > 1 else None


def alike(dataset: Dataset, clips: Iterable[int], size: int) -> list[list[int]]:
    """Clips in batches of at most `size` neighbours that have one shape."""
    shapes = shapes_of(dataset)
    runs = [list(run) for _, run in groupby(clips, key=lambda i: shapes and shapes[i])]
    return [run[i : i + size] for run in runs for i in range(0, len(run), size)]


class Clips(L.LightningDataModule):
    """Training stream and validation clips.

    train, validation: map-style datasets. batch_size: per process. seed: of the shuffle. pin_memory: for a GPU.
    The global batch is batch_size x processes; keep it when the number of processes changes, and so do the losses.
    """

    def __init__(
        self,
        train: Dataset,
        validation: Dataset,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        pin_memory: bool = False,
    ):
        super().__init__()
        if len(train) == 0 or len(validation) == 0:
            raise ValueError(f"{len(train)} training and {len(validation)} validation clips; both need at least one")
        self.train, self.validation, self.seed = train, validation, seed
        self.batch_size, self.workers, self.pin_memory = batch_size, workers, pin_memory

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        group = trainer.accumulate_grad_batches * self.batch_size * trainer.world_size
        draws = Draws(trainer.global_step * group, self.batch_size, trainer.global_rank, trainer.world_size)
        return self._loader(Stream(self.train, self.seed, group), batch_sampler=draws)

    def val_dataloader(self) -> DataLoader:
        """Batches for this rank, as many as for each other, or collectives hang: what comes again for that weighs 0.

        Modules log with `batch_size=sum(batch["weight"])`, so each clip counts once on any number of processes. It is
        a float: Lightning takes the mean of the counts over processes too, and of whole numbers it drops the fraction.
        """
        rank, world = self.trainer.global_rank, self.trainer.world_size
        batches = alike(self.validation, range(len(self.validation)), self.batch_size)
        own = range(rank, -(-len(batches) // world) * world, world)
        places = [[(i, float(n < len(batches))) for i in batches[n % len(batches)]] for n in own]
        return self._loader(Held(self.validation), batch_sampler=places)

    def _loader(self, dataset: Dataset, batch_sampler: Any) -> DataLoader:
        return DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=collate,
            num_workers=self.workers,
            worker_init_fn=outlive_sigterm,
            persistent_workers=self.workers > 0,
            pin_memory=self.pin_memory,
        )
