"""Look at every file once and remember what was seen, so that the next start does not read it again.

One JSON line a file in a cache folder outside the footage, keyed by path, size, modification time and kind of check.
Lines are only ever appended: a run killed half way keeps what it has seen, and a torn last line is ignored.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from timelapse.dataset import photos, video

log = logging.getLogger(__name__)
CHECKS = ("full", "probe", "none")
# Permission, a lost disk, too many files: may be better tomorrow, so it is not remembered.
PASSING = {errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE}
VERSION = 3  # raise it when what is remembered of a file changes


def default_index(root: Path) -> Path:
    """Where a root's index lies unless the user says otherwise: $XDG_CACHE_HOME or ~/.cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "timelapse" / "footage" / f"{hashlib.blake2b(str(root).encode(), digest_size=8).hexdigest()}.jsonl"


def check_files(
    paths: list[Path], check: str = "full", index: Path | None = None
) -> dict[Path, video.Video | photos.Photo | str]:
    """What each file is, or the reason (a text) to skip it. Files of unknown extension are not given here.

    paths: absolute. check: see `video.probe`. index: file to remember in; None remembers nothing.
    """
    if check not in CHECKS:
        raise ValueError(f"check={check}: expected one of {', '.join(CHECKS)}; set dataset.check=full")
    known = _load(index) if index else {}
    seen: dict[Path, video.Video | photos.Photo | str] = {}
    keys: dict[Path, str] = {}
    for path in paths:
        try:
            keys[path] = f"{path}|{stamp(path)}|{check}|{VERSION}"
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            seen[path] = "no such file" if missing else f"cannot be opened: {error.strerror}"
            continue
        if keys[path] in known:
            seen[path] = _revive(known[keys[path]])
    fresh = [path for path in paths if path not in seen]
    with _Appender(index) as remember, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        progress = tqdm(total=len(fresh), desc="checking footage", unit="file", delay=3, leave=False)
        for path, (result, lasting) in zip(fresh, pool.map(lambda p: _look(p, check), fresh)):
            seen[path] = result
            if lasting:
                remember(keys[path], result)
            progress.update()
        progress.close()
    return seen


def stamp(path: Path) -> str:
    """Size and modification time: changes when the file does. OSError where there is none."""
    stat = path.stat()
    return f"{stat.st_size}|{stat.st_mtime_ns}"


def _look(path: Path, check: str) -> tuple[video.Video | photos.Photo | str, bool]:
    """The file's record or the reason to skip it, and whether that will hold until the file changes."""
    probe = photos.probe if path.suffix.lower() in photos.EXTENSIONS else video.probe
    try:
        return probe(path, check), True
    except ValueError as error:
        return str(error), getattr(error.__context__, "errno", None) not in PASSING
    except OSError as error:
        return f"cannot be opened: {error.strerror or error}", False
    except Exception as error:  # one strange file among thousands stops nobody
        return f"cannot be read: {type(error).__name__} {' '.join(str(error).split())}", False


def _load(index: Path) -> dict[str, dict]:
    known = {}
    if index.is_file():
        for line in index.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                known[record["file"]] = record
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill or another hand: the file is looked at again
    return known


def _revive(record: dict) -> video.Video | photos.Photo | str:
    if "reason" in record:
        return record["reason"]
    return video.Video(**record["video"]) if "video" in record else photos.Photo(**record["photo"])


class _Appender:
    """Appends records to the index; a folder that cannot be written costs one warning, not the run."""

    def __init__(self, index: Path | None):
        self.file = None
        if index is None:
            return
        try:
            index.parent.mkdir(parents=True, exist_ok=True)
            self.file = index.open("a", buffering=1, encoding="utf-8")  # line by line: a kill loses one
            self.file.write("\n")  # ends a torn line
        except OSError as error:
            log.warning("%s: cannot remember the check of the footage (%s); set dataset.index", index, error.strerror)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.file:
            self.file.close()

    def __call__(self, key: str, result: video.Video | photos.Photo | str) -> None:
        if self.file is None:
            return
        kind = {video.Video: "video", photos.Photo: "photo"}.get(type(result), "reason")
        content = result if kind == "reason" else asdict(result)
        try:
            self.file.write(json.dumps({"file": key, kind: content}) + "\n")
        except OSError:  # disk full
            self.file = None
