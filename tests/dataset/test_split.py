from pathlib import Path

import numpy as np
import pytest

from timelapse.dataset.source import Source
from timelapse.dataset.split import assign, blocks_of_time, choose


def source(name, frames=10, split=None, group=None):
    return Source(
        id=name,
        name=name,
        group=group or name,
        files=(Path(name),),
        stamps=("",),
        video=None,
        size=(8, 8),
        times=np.arange(frames, dtype=float),
        caption="",
        split=split,
    )


def clips_of_four(source):
    """Windows of 4 neighbouring frames, as (source, frame numbers)."""
    return [
        (source.id, tuple(range(source.first + i, source.first + i + 4))) for i in range(max(0, len(source.times) - 3))
    ]


def frames_of(clips):
    return {(name, frame) for name, frames in clips for frame in frames}


def test_train_and_val_share_no_source():
    sources = [source(f"event{i}", group=f"video{i // 3}") for i in range(60)]
    train, how = choose(sources, "train", 0.2, 0, clips_of_four)
    val, _ = choose(sources, "val", 0.2, 0, clips_of_four)
    groups = lambda clips: {int(name[5:]) // 3 for name, _ in clips}
    assert how == "source" and groups(train).isdisjoint(groups(val))
    assert (len(groups(train)), len(groups(val))) == (16, 4)
    assert len(train) + len(val) == len(choose(sources, "all", 0.2, 0, clips_of_four)[0])


def test_the_draw_depends_on_seed_and_names_alone():
    sources = [source(f"video{i}") for i in range(30)]
    held = lambda s, seed=0: {g for g, split in assign(s, 0.2, seed).items() if split == "val"}
    assert held(sources) == held(sources[::-1]) and held(sources) != held(sources, seed=1)
    more = held(sources + [source("new")])  # one newcomer takes at most one place
    assert len(held(sources) - more) <= 1
    assert len(held(sources[:2])) == 1  # never all, never none


def test_one_source_is_cut_by_time():
    train, how = choose([source("a", 40)], "train", 0.25, 0, clips_of_four)
    val, _ = choose([source("a", 40)], "val", 0.25, 0, clips_of_four)
    assert how == "time" and frames_of(train).isdisjoint(frames_of(val))
    assert max(frames_of(train)) < min(frames_of(val)) and len(frames_of(val)) == 10


def test_a_block_of_time_grows_until_it_holds_enough():
    sizes = lambda *a: tuple(len(frames_of(c)) for c in blocks_of_time(*a).values())
    assert sizes([source("a", 20)], 0.1, clips_of_four, 1) == (16, 4)
    assert sizes([source("a", 20)], 0.1, clips_of_four, 3) == (14, 6)
    assert sizes([source("a", 8)], 0.1, clips_of_four, 9) == (4, 4)  # never enough: as fair as it gets
    assert blocks_of_time([source("a", 7)], 0.1, clips_of_four) is None


def test_too_short_to_hold_a_part_out():
    assert choose([source("a", 7)], "val", 0.1, 0, clips_of_four) == ([], "nothing")
    assert choose([source("a", 7)], "train", 0.1, 0, clips_of_four)[0] == clips_of_four(source("a", 7))


def test_nothing_held_out_when_asked_for():
    sources = [source("a"), source("b")]
    assert choose(sources, "val", 0, 0, clips_of_four) == choose(sources, "train", 0, 0, clips_of_four)
    assert choose(sources, "val", 0, 0, clips_of_four)[1] == "nothing"


def test_a_manifest_decides_where_it_speaks():
    sources = [source("a", split="val"), source("b"), source("c", group="a"), source("d", split="bench")]
    assert assign(sources, 0.5, 0) == {"a": "val", "b": "train", "d": "bench"}
    assert choose(sources, "bench", 0.5, 0, clips_of_four) == (clips_of_four(sources[3]), "manifest")
    without_val = [source("a", split="bench"), *[source(n) for n in "bcde"]]
    drawn = assign(without_val, 0.25, 0)
    assert drawn["a"] == "bench" and sorted(drawn.values()) == ["bench", "train", "train", "train", "val"]
    with pytest.raises(ValueError, match="source g is in train and in val"):
        assign([source("a", split="train", group="g"), source("b", split="val", group="g")], 0.1, 0)
