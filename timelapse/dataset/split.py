"""Train or val: by source, so that no frame and no sibling of a clip is ever on both sides.

Where there is only one source, by blocks of time: its last part is held out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from timelapse.dataset.source import Source
from timelapse.randomness import keyed_seed

Clip = TypeVar("Clip")


def choose(
    sources: list[Source], split: str, share: float, seed: int, make: Callable[[Source], list[Clip]], enough: int = 1
) -> tuple[list[Clip], str]:
    """The split's clips, and by what it was held out: `manifest`, `source`, `time` or `nothing`.

    make: source -> its clips. enough: clips that a block of time should hold. Nothing is held out with share 0 (val
    is then train), and where one source is too short (val is then empty).
    """
    splits = assign(sources, share, seed)
    clips = lambda name: [clip for s in sources if splits[s.group] == name for clip in make(s)]
    how = "manifest" if any(s.split for s in sources) else "source"
    if split == "all":
        return [clip for s in sources for clip in make(s)], "nothing"
    if lone := [s for s in sources if splits[s.group] == "undecided"]:
        if halves := blocks_of_time(lone, share, make, enough):
            return clips(split) + halves.get(split, []), "time"
        return clips(split) + (clips("undecided") if split == "train" else []), "nothing"
    if share <= 0 and "val" not in splits.values():
        return clips("train" if split == "val" else split), "nothing"
    return clips(split), how


def assign(sources: list[Source], share: float, seed: int) -> dict[str, str]:
    """Group -> split.

    A split that a manifest names holds for the whole group. If none is named `val`, `share` of the other groups (one
    at least) is held out, in an order drawn from the seed and the group's name alone: a new video moves few others.
    A single group without a name is left to `blocks_of_time` and comes back as `undecided`.
    """
    splits: dict[str, str] = {}
    for source in sources:
        if source.split and splits.setdefault(source.group, source.split) != source.split:
            raise ValueError(
                f"source {source.group} is in {splits[source.group]} and in {source.split}; "
                f"give all rows of a source one split"
            )
    free = sorted({s.group for s in sources} - set(splits))
    if share <= 0 or "val" in splits.values():
        return splits | dict.fromkeys(free, "train")
    if len(free) < 2:
        return splits | dict.fromkeys(free, "undecided")
    order = sorted(free, key=lambda group: keyed_seed(seed, "hold out", group))
    held = order[: min(len(order) - 1, max(1, round(share * len(order))))]
    return splits | {group: "val" if group in held else "train" for group in free}


def blocks_of_time(
    sources: list[Source], share: float, make: Callable[[Source], list[Clip]], enough: int = 1
) -> dict[str, list[Clip]] | None:
    """Clips of one group: the last `share` of its time is held out, more (up to half) where that holds too few.

    The smallest cut that leaves `enough` clips on both sides; else the one whose poorer side is richest; None where
    no cut leaves a clip on both sides.
    """
    start = min(float(s.times[0]) for s in sources)
    end = max(float(s.times[-1]) for s in sources)
    best, poorer = None, 0
    for percent in range(min(50, round(100 * share)), 51):
        cut = end - (end - start) * percent / 100
        train = [clip for s in sources for clip in make(s.part(float("-inf"), cut))]
        val = [clip for s in sources for clip in make(s.part(cut, float("inf")))]
        if min(len(train), len(val)) > poorer:
            best, poorer = {"train": train, "val": val}, min(len(train), len(val))
        if poorer >= enough:
            break
    return best
