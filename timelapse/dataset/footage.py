"""What lies under `dataset.root` -> rows as a manifest has them, and what had to be left out.

A root is a folder of videos and of folders of photographs, one video, a manifest.jsonl, or a CSV of captions.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from timelapse.dataset import photos, video
from timelapse.dataset.manifest import inside, read_manifest

log = logging.getLogger(__name__)
Row = dict[str, Any]
Skipped = list[tuple[str, str]]  # path, reason

# What public caption files call the two columns (ChronoMagic: videoid, name), matched without case.
ID_COLUMNS = ("videoid", "video_id", "id", "path", "file", "filename", "file_name", "video")
CAPTION_COLUMNS = ("name", "caption", "text", "prompt")
CAMERAS = frozenset("img dsc dscn dscf vid pxl mvi mov gopr gh gx dji wp p t z".split())
BESIDE = frozenset(".txt .json .jsonl .csv .md .log .srt .vtt .xmp .db .ini".split())  # no footage, and no mistake


def find_footage(root: str | Path, captions: str | Path | None = None) -> tuple[Path, list[Row], Skipped]:
    """The folder that paths are relative to, the rows found there, and what was skipped with its reason.

    captions: CSV that names the files under `root` to take; a root that is itself a CSV means its own folder.
    """
    root = Path(root).expanduser()
    if captions is not None:
        return _with_captions(root, Path(captions).expanduser())
    suffix = root.suffix.lower()
    if root.is_dir() and not (root / "manifest.jsonl").is_file():
        return root, *scan(root)
    if root.is_dir() or (root.is_file() and suffix == ".jsonl"):
        manifest = root / "manifest.jsonl" if root.is_dir() else root
        return manifest.parent, *_distinct(read_manifest(manifest))
    if root.is_file() and suffix == ".csv":
        return _with_captions(root.parent, root)
    if root.is_file() and suffix in video.EXTENSIONS:
        return root.parent, [_row(root.parent, root.name, file=root.name)], []
    what = "is not footage" if root.exists() else "does not exist"
    raise ValueError(
        f"dataset.root={root} {what}; expected a folder of videos or photographs, a manifest.jsonl, "
        f"a .csv of captions or one video"
    )


def scan(root: Path) -> tuple[list[Row], Skipped]:
    """Every video is one source; so are the photographs of one folder together. Hidden files are not looked at."""
    rows, skipped, visited = [], [], set()
    for folder, inner, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link back up
            inner.clear()
            continue
        visited.add(real)
        inner[:] = sorted(d for d in inner if not d.startswith((".", "__MACOSX")))
        relative = Path(folder).relative_to(root)
        pictures = []
        for name in sorted(files, key=photos.natural):
            path, suffix = (relative / name).as_posix(), Path(name).suffix.lower()
            if name.startswith(".") or suffix in BESIDE:
                continue
            if suffix in photos.EXTENSIONS:
                pictures.append(path)
            elif suffix in video.EXTENSIONS:
                rows.append(_row(root, path, file=path))
            else:
                skipped.append((path, "not a video or photograph"))
        if pictures:
            rows.append(_row(root, relative.as_posix(), frames=pictures))
    return sorted(rows, key=lambda row: row["source"]), skipped


def read_captions(path: Path) -> list[tuple[str, str]]:
    """(file id, caption) of each row of a CSV. The header is read; ValueError where it has no such columns."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file)
        header = {str(name).strip().lower(): name for name in reader.fieldnames or []}
        columns = [next((header[c] for c in names if c in header), None) for names in (ID_COLUMNS, CAPTION_COLUMNS)]
        if None in columns:
            raise ValueError(
                f"{path}: its header is {', '.join(header) or 'empty'}; expected a column for the file "
                f"({', '.join(ID_COLUMNS)}) and one for the caption ({', '.join(CAPTION_COLUMNS)})"
            )
        return [tuple((row[c] or "").strip() for c in columns) for row in reader if (row[columns[0]] or "").strip()]


def caption_for(base: Path, row: Row, given: str | None) -> str:
    """The row's own caption, else a text file beside the footage, else the user's, else words of the file's name."""
    if row.get("caption"):
        return row["caption"]
    if row.get("file"):
        path = base / row["file"]
        beside = [path.with_suffix(".txt")]
    else:
        path = (base / row["frames"][0]).parent
        beside = [path / "caption.txt"] + ([path.with_suffix(".txt")] if path != base else [])
    for text in beside:
        if text.is_file():
            words = " ".join(text.read_text(encoding="utf-8", errors="replace")[:5000].split())
            if words:
                return words
    path = path.resolve()
    return given or clean_name(path.stem if row.get("file") else path.name) or "a time-lapse"


def clean_name(name: str) -> str:
    """Words of a file name: plant_garden -> plant garden; dates, numbers and cameras' prefixes are no words."""
    letters = re.sub(r"\b[0-9a-fA-F]*\d[0-9a-fA-F]{6,}\b", " ", name.replace("_", " "))  # without hashes
    words = re.split(r"[^A-Za-z\u00c0-\uffff]+", letters)
    return " ".join(w for w in words if w and w.lower() not in CAMERAS).lower()


def unique_name(name: str, path: str) -> str:
    """File-name-safe id: readable part and a digest of the path, e.g. plant_garden-3f2ab81c."""
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:40] or "clip"
    return f"{readable}-{hashlib.blake2b(path.encode(), digest_size=4).hexdigest()}"


def _row(root: Path, path: str, **files: Any) -> Row:
    name = root.resolve().name if path == "." else PurePosixPath(path).name
    readable = PurePosixPath(name).stem if "file" in files else name
    return {"id": unique_name(readable, path), "source": path, **files}


def _with_captions(base: Path, table: Path) -> tuple[Path, list[Row], Skipped]:
    """Scanned rows that the CSV names, by path or name, with or without extension."""
    if not table.is_file() or not base.is_dir():
        raise ValueError(f"dataset.captions={table} with dataset.root={base}: expected a CSV file and a folder")
    rows, skipped = scan(base)
    named: dict[str, list[Row]] = {}
    for row in rows:
        path = PurePosixPath(row["source"])
        names = {str(path), path.name} | ({str(path.with_suffix("")), path.stem} if "file" in row else set())
        for name in names:
            named.setdefault(name, []).append(row)
    taken: dict[str, Row] = {}
    for identity, caption in read_captions(table):
        try:
            inside(base, identity)
            found = named.get(PurePosixPath(identity).as_posix(), [])
            if len(found) == 1:
                for path in [found[0]["file"]] if "file" in found[0] else found[0]["frames"]:
                    inside(base, path)
        except ValueError:
            skipped.append((identity, "path outside the root"))
            continue
        if len(found) != 1:
            reason = f"several files of that name: {found[0]['source']}, {found[1]['source']}" if found else ""
            skipped.append((identity, reason or "caption row without file"))
        elif found[0]["id"] in taken:
            skipped.append((identity, "second caption row of the same file"))
        else:
            taken[found[0]["id"]] = {**found[0], "caption": caption or None}
    if len(taken) < len(rows):
        log.info("%s: %d sources under %s have no row and are left out", table, len(rows) - len(taken), base)
    return base, list(taken.values()), skipped


def _distinct(rows: list[Row]) -> tuple[list[Row], Skipped]:
    taken, skipped = {}, []
    for row in rows:
        if row["id"] in taken:
            skipped.append((row["id"], "second row with the same id"))
            continue
        safe = re.fullmatch(r"[A-Za-z0-9._-]{1,80}", row["id"])
        where = row["file"] or (PurePosixPath(row["frames"][0]).parent.as_posix() if row["frames"] else row["id"])
        taken[row["id"]] = {
            **row,
            "source": row["source"] or where,
            "id": row["id"] if safe else unique_name(row["id"], row["id"]),
        }
    return list(taken.values()), skipped
