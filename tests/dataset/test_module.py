"""The training stream: every clip once an epoch, whatever the number of processes and wherever it starts."""

import multiprocessing
import os
import signal
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

from timelapse.dataset.module import Clips, Draws, Stream, collate


class Numbers(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        return {"key": f"clip-{i}", "value": torch.tensor(float(i))}


def clips_of(data: Clips, batches: int, step: int = 0, rank: int = 0, world: int = 1) -> list[list[str]]:
    data.trainer = SimpleNamespace(global_step=step, accumulate_grad_batches=1, global_rank=rank, world_size=world)
    return [batch["key"] for batch in islice(data.train_dataloader(), batches)]


def test_an_epoch_holds_every_clip_once_and_epochs_differ():
    stream = Stream(Numbers(), seed=3)
    first, second = ([stream[n]["key"] for n in range(e * 10, e * 10 + 10)] for e in (0, 1))
    assert sorted(first) == sorted(second) == sorted(f"clip-{i}" for i in range(10))
    assert first != second


def test_a_resumed_stream_goes_on_where_it_was():
    data = Clips(Numbers(), Numbers(), batch_size=3, seed=1)
    whole = clips_of(data, 8)
    assert clips_of(data, 3, step=5) == whole[5:]


@pytest.mark.parametrize("world", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_processes(world):
    alone = clips_of(Clips(Numbers(), Numbers(), batch_size=4, seed=1), 5)
    many = Clips(Numbers(), Numbers(), batch_size=4 // world, seed=1)
    ranks = [clips_of(many, 5, rank=r, world=world) for r in range(world)]
    assert [sum(parts, []) for parts in zip(*ranks)] == alone


def test_draws_name_the_place_in_the_stream():
    assert list(islice(Draws(start=6, batch_size=2, rank=1, world=3), 2)) == [[8, 9], [14, 15]]
    assert collate([Stream(Numbers(), 0)[n] for n in (12, 13)])["draw"] == [12, 13]


class Shaped(Numbers):
    """Six clips of one shape, three of another, one of a third."""

    shapes = [(5, 8, 8)] * 6 + [(5, 8, 12)] * 3 + [(9, 8, 8)]

    def __getitem__(self, i):
        return {**super().__getitem__(i), "shape": self.shapes[i]}


@pytest.mark.parametrize("group", [1, 2, 4])
def test_a_global_batch_has_one_shape_and_every_clip_of_a_shape_comes_before_any_comes_again(group):
    stream = Stream(Shaped(), seed=0, group=group)
    items = [stream[n] for n in range(60 * group)]
    assert all(len({item["shape"] for item in items[i : i + group]}) == 1 for i in range(0, len(items), group))
    for shape in set(Shaped.shapes):
        seen, members = [item["key"] for item in items if item["shape"] == shape], Shaped.shapes.count(shape)
        for i in range(0, len(seen) - members, members):
            assert len(set(seen[i : i + members])) == members
    turns = [items[i]["shape"] for i in range(0, len(items), group)]
    for epoch in range(1, 6):
        needed = {shape: -(-epoch * Shaped.shapes.count(shape) // group) for shape in Shaped.shapes}
        assert Counter(turns[: sum(needed.values())]) == needed  # a rare shape is not shown more often


def test_shapes_too_are_the_same_on_any_number_of_processes_and_after_a_resume():
    alone = clips_of(Clips(Shaped(), Shaped(), batch_size=4, seed=1), 8)
    two = Clips(Shaped(), Shaped(), batch_size=2, seed=1)
    ranks = [clips_of(two, 5, step=3, rank=r, world=2) for r in range(2)]
    assert [sum(parts, []) for parts in zip(*ranks)] == alone[3:]


def test_validation_batches_have_one_shape():
    data, dataset = Clips(Shaped(), Shaped(), batch_size=4), Shaped()
    data.trainer = SimpleNamespace(global_rank=0, world_size=1)
    batches = [[int(key.split("-")[1]) for key in batch["key"]] for batch in data.val_dataloader()]
    assert batches == [[0, 1, 2, 3], [4, 5], [6, 7, 8], [9]]
    assert all(len({dataset.shapes[i] for i in batch}) == 1 for batch in batches)


@pytest.mark.parametrize("world", [1, 3, 11])
def test_every_rank_validates_the_same_number_of_batches_and_every_clip_counts_once(world):
    data, weights, lengths = Clips(Numbers(), Numbers(), batch_size=3), Counter(), set()  # 4 batches
    for rank in range(world):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        batches = list(data.val_dataloader())
        lengths.add(len(batches))
        for batch in batches:
            weights.update(dict(zip(batch["key"], batch["weight"])))
    assert lengths == {-(-4 // world)} and weights == {f"clip-{i}": 1 for i in range(10)}


def test_workers_ranks_and_a_resume_deal_every_clip_out_once_an_epoch():
    """Two ranks with two workers each for three steps, then one rank that goes on, through two epochs."""
    seen = []
    for rank in range(2):
        seen += clips_of(Clips(Numbers(), Numbers(), batch_size=2, workers=2), 3, rank=rank, world=2)
    seen += clips_of(Clips(Numbers(), Numbers(), batch_size=4, workers=2), 2, step=3)
    keys = sum(seen, [])
    assert {key: keys.count(key) for key in keys} == {f"clip-{i}": 2 for i in range(10)}


def test_workers_go_on_when_sigterm_comes_to_the_whole_process_group():
    data = Clips(Numbers(), Numbers(), batch_size=1, workers=2)
    data.trainer = SimpleNamespace(global_step=0, accumulate_grad_batches=1, global_rank=0, world_size=1)
    batches = iter(data.train_dataloader())
    first = [next(batches)["draw"] for _ in range(2)]  # one of each worker
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGTERM)
    assert first + [next(batches)["draw"] for _ in range(12)] == [[n] for n in range(14)]
