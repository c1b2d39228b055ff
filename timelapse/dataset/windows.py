"""Which frames a clip is made of: T instants at one interval, each served by the frame nearest in time.

Capture times may be uneven (every 3 h by day, 18 h at night), so frames are chosen by time and never by index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DAY = 86400.0


@dataclass(frozen=True)
class Window:
    """One clip of a source: `frames` (T,) indices into its times, `interval` between the instants in seconds."""

    interval: float
    frames: tuple[int, ...]


def serve(times: np.ndarray, starts: np.ndarray, interval: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Serve `count` instants from each start by the nearest frames.

    times (n,) increasing seconds, starts (S,) seconds -> indices (S,count) and whether each window holds (S,): every
    frame lies within half the interval of its instant, and no frame serves two instants.
    """
    instants = starts[:, None] + interval * np.arange(count)
    after = np.searchsorted(times, instants).clip(1, len(times) - 1)
    before = after - 1
    nearest = np.where(instants - times[before] <= times[after] - instants, before, after)
    near = np.abs(times[nearest] - instants) <= interval / 2 * (1 + 1e-9)
    return nearest, near.all(1) & (np.diff(nearest, axis=1) > 0).all(1)


def photo_intervals(times: np.ndarray, count: int, fractions: Sequence[float]) -> list[float]:
    """Intervals that suit the capture times: the fractions of the whole span, and the same hour of each day.

    An interval of a day or more is rounded down to whole days, so that the light is the same hour's in every frame.
    """
    span = float(times[-1] - times[0])
    wanted = [span * fraction / (count - 1) for fraction in fractions]
    wanted = [w // DAY * DAY if w >= DAY else w for w in wanted]
    return sorted({w for w in [*wanted, DAY] if 0 < w and w * (count - 1.5) <= span}, reverse=True)


def photo_windows(times: np.ndarray, count: int, intervals: Sequence[float], most: int) -> tuple[list[Window], int]:
    """Up to `most` windows for each interval, evenly spread over those that hold, and how many starts did not hold."""
    windows, rejected = [], 0
    if len(times) < count:
        return windows, rejected
    for interval in intervals:
        starts = times[times + interval * (count - 1.5) <= times[-1] + 1e-6 * interval]
        served, holds = serve(times, starts, interval, count)
        rejected += int((~holds).sum())
        windows += [Window(interval, tuple(map(int, served[i]))) for i in _spread(np.flatnonzero(holds), most)]
    return windows, rejected


def video_windows(
    times: np.ndarray, count: int, fractions: Sequence[float], strides: Sequence[int], most: int
) -> list[Window]:
    """Windows of a video whose frames are even: spans of its length, or (T-1) strides, up to `most` starts for each.

    Frames are round(linspace(0, span - 1, T)) from the start; a span under T frames is left out, and spans that come
    out equal are one (a video of exactly T frames gives one clip).
    """
    spans = {int(len(times) * f) for f in fractions} | {(count - 1) * int(s) + 1 for s in strides}
    windows = []
    for span in sorted(spans, reverse=True):
        if not count <= span <= len(times):
            continue
        offsets = np.linspace(0, span - 1, count).round().astype(int)
        for start in _spread(np.arange(len(times) - span + 1), most):
            frames = tuple(int(start + o) for o in offsets)
            windows.append(Window(float(times[frames[-1]] - times[frames[0]]) / (count - 1), frames))
    return windows


def is_even(times: np.ndarray) -> bool:
    """Whether frames are as good as evenly spaced: none is half a frame or more from its place."""
    return bool(np.abs(times - np.linspace(times[0], times[-1], len(times))).max() < 0.5 * np.diff(times).mean())


def _spread(candidates: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the candidates, first and last among them (the first alone where one is asked for)."""
    places = np.linspace(0, len(candidates) - 1, min(most, len(candidates))).round().astype(int)
    return candidates[places]
