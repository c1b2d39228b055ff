"""manifest.jsonl: one event a line, as curation writes it and `dataset=clips` reads it.

A row is a dict:
    id           unique name of the event
    source       what it was cut from; rows of one source are never split between train and val
    file         video, relative to the manifest's folder; or instead
    frames       photographs, relative likewise, in order of time
    seconds      capture time of each photograph; for a video its event's [start, end] in seconds of playback, or null
    fps          frames per second of the process itself where known (0.0033 for one frame in 5 minutes), or null: the
                 file's own
    caption      text or null
    accepted_by  the rule that let the event in
    split        train, val, another name, or null: drawn by source
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from timelapse.atomic import write

FIELDS = ("id", "source", "file", "frames", "seconds", "fps", "caption", "accepted_by", "split")


def inside(root: Path, relative: str) -> Path:
    """root / relative. ValueError where that would leave the root: absolute, by `..`, or by a symbolic link."""
    absolute = PurePosixPath(relative).is_absolute() or PureWindowsPath(relative).drive or relative.startswith("\\")
    if absolute or ".." in PurePosixPath(relative.replace("\\", "/")).parts:
        raise ValueError(f"path {relative!r} leaves its root; give a path relative to {root} without '..'")
    path = root / relative
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"path {relative!r} leaves its root through a symbolic link; put the file inside {root}")
    return path


def write_manifest(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows; the known fields first, absent ones as null, further ones kept. All or nothing on a full disk."""
    path = Path(path)
    lines = []
    for row in rows:
        _check(row, path.parent, f"row {len(lines) + 1}")
        lines.append(json.dumps({name: row.get(name) for name in FIELDS} | row, ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, "".join(line + "\n" for line in lines))


def read_manifest(path: str | Path) -> list[dict[str, Any]]:
    """Rows with every known field. ValueError names the line that is malformed or leaves the manifest's folder.

    Whether the files exist is not asked here: a missing one is skipped and counted later.
    """
    path = Path(path)
    rows = []
    for number, row in json_lines(path):
        where = f"{path} line {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object with the fields {', '.join(FIELDS)}")
        _check(row, path.parent, where)
        rows.append(dict.fromkeys(FIELDS) | row)
    return rows


def _check(row: dict[str, Any], root: Path, where: str) -> None:
    file, frames, seconds = row.get("file"), row.get("frames"), row.get("seconds")
    texts = [name for name in ("id", "source", "file", "caption", "split") if not isinstance(row.get(name), str | None)]
    if texts:
        raise ValueError(f"{where}: {texts[0]} must be a text or null")
    if not row.get("id"):
        raise ValueError(f"{where}: every row needs an id of its own")
    if (file is None) == (frames is None):
        raise ValueError(f"{where}: expected either file (a video) or frames (a list of photographs)")
    if frames is not None and not (isinstance(frames, list) and all(isinstance(f, str) for f in frames)):
        raise ValueError(f"{where}: frames must be a list of paths")
    number = lambda x: isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
    expected = 2 if frames is None else len(frames)
    if seconds is not None and not (
        isinstance(seconds, list) and len(seconds) == expected and all(number(s) for s in seconds)
    ):
        what = "[start, end] of a video's event" if frames is None else "one capture time a photograph"
        raise ValueError(f"{where}: seconds must be {what}")
    if row.get("fps") is not None and not (number(row["fps"]) and row["fps"] > 0):
        raise ValueError(f"{where}: fps must be a positive number or null")
    for relative in [file] if frames is None else frames:
        try:
            inside(root, relative)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, what it holds) of every line that is not blank; ValueError names one that is not JSON."""
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path} line {number}: not JSON ({error}); expected one object a line") from None
