"""A source: one video (or an event of it) or one folder of photographs, checked, with the time of every frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from timelapse.dataset.footage import Row, Skipped, caption_for
from timelapse.dataset.index import check_files, stamp
from timelapse.dataset.photos import Photo, capture_times
from timelapse.dataset.video import Video


@dataclass(frozen=True)
class Source:
    """`times` (n,) float64 seconds, increasing, of frames `first`, `first`+1, ... of the file or of `files`."""

    id: str
    name: str  # path under the root, for messages
    group: str  # sources of one group never lie on both sides of a split
    files: tuple[Path, ...]  # one video, or the photographs in order of time
    stamps: tuple[str, ...]  # size and modification time of each file when it was checked
    video: Video | None
    size: tuple[int, int]  # (width, height) as displayed
    times: np.ndarray
    caption: str
    split: str | None = None
    first: int = 0

    def part(self, start: float, end: float) -> Source:
        """Only the frames with start <= time < end."""
        low, high = np.searchsorted(self.times, [start, end])
        return replace(self, times=self.times[low:high], first=self.first + int(low))


def make_sources(
    base: Path,
    rows: list[Row],
    check: str,
    index: Path | None,
    caption: str | None = None,
    photo_interval: float | None = None,
) -> tuple[list[Source], Skipped]:
    """Sources of the rows, in order, and what had to be left out with its reason."""
    base = base.resolve()
    paths = [base / file for row in rows for file in ([row["file"]] if row.get("file") else row["frames"])]
    seen = check_files(list(dict.fromkeys(paths)), check, index)
    sources, skipped = [], []
    for row in rows:
        made = _video(base, row, seen) if row.get("file") else _photographs(base, row, seen, photo_interval, skipped)
        if isinstance(made, str):
            skipped.append((row.get("file") or row["source"], made))
            continue
        files, video, size, times, first = made
        sources.append(
            Source(
                id=row["id"],
                name=row.get("file") or row["source"],
                group=row["source"],
                files=files,
                stamps=tuple(map(stamp, files)),
                video=video,
                size=size,
                times=times,
                caption=caption_for(base, row, caption),
                split=row.get("split"),
                first=first,
            )
        )
    return sources, skipped


def _video(base: Path, row: Row, seen: dict) -> tuple | str:
    """Parts of a video's Source, or the reason to skip it."""
    path = base / row["file"]
    video = seen[path]
    if not isinstance(video, Video):
        return video if isinstance(video, str) else "not a readable video: it is a photograph"
    times, first = video.times(), 0
    if row.get("seconds"):
        start, end = row["seconds"]
        first, last = np.searchsorted(times, [start - 1e-6, end + 1e-6])
        times, first = times[first:last], int(first)
    if row.get("fps"):
        times = times * (video.fps / row["fps"])
    return (path,), video, (video.width, video.height), times, first


def _photographs(base: Path, row: Row, seen: dict, interval: float | None, skipped: Skipped) -> tuple | str:
    """Parts of a photograph folder's Source, or the reason to skip it; single bad photographs go to `skipped`."""
    given = dict(zip(row["frames"], row["seconds"])) if row.get("seconds") else None
    good = []
    for name in row["frames"]:
        if isinstance(seen[base / name], Photo):
            good.append(name)
        else:
            reason = seen[base / name]
            skipped.append((name, reason if isinstance(reason, str) else "not a readable photograph: it is a video"))
    if len(good) < 2:
        return f"too few photographs: {len(good)}"
    if given is not None:
        times = [given[name] for name in good]
    else:
        exif = [seen[base / name].taken for name in good]
        interval = 1 / row["fps"] if row.get("fps") else interval
        times, _ = capture_times([Path(name).name for name in good], exif, interval)
    if all(t is None for t in times):
        return "no capture times: neither EXIF nor file names tell; set dataset.photo_interval=SECONDS"
    ordered: dict[float, str] = {}
    for time, name in sorted((t, n) for t, n in zip(times, good) if t is not None):
        if time in ordered:
            skipped.append((name, f"same capture time as {Path(ordered[time]).name}"))
        else:
            ordered[time] = name
    skipped += [(name, "no capture time") for t, name in zip(times, good) if t is None]
    files = tuple(base / name for name in ordered.values())
    photo = seen[files[0]]
    return files, None, (photo.width, photo.height), np.array(list(ordered), dtype=np.float64), 0
