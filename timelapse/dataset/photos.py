"""Photographs: when they were taken, and reading them upright.

All clock times are read as they stand, without time zones: the machine's own zone and its summer time never enter.
"""

from __future__ import annotations

import calendar
import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

EXTENSIONS = frozenset(".jpg .jpeg .jpe .png .webp .tif .tiff .bmp .heic .heif .avif".split())
EXIF_IFD, DATE_TIME_ORIGINAL, SUBSECONDS_ORIGINAL, ORIENTATION = 0x8769, 0x9003, 0x9291, 0x0112

# 1588251633 or, in milliseconds, 1588251633000: 2004 to 2033 (below lie the running numbers of Android's gallery).
UNIX = re.compile(r"(?<!\d)(1[1-9]\d{8})(\d{3})?(?!\d)")
# 2020-05-01T12-00-00, IMG_20200501_120000, PXL_20200501_120000123, 2020-05-01 12.00.00, 20200501; time may be absent.
DATE = re.compile(
    r"(?<!\d)((?:19|20)\d\d)([-_.:]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])"
    r"(?:[T _.-]*([01]\d|2[0-3])([-_.:h]?)([0-5]\d)(?:[-_.:m]?([0-5]\d)(?:[.,_]?(\d{3}))?)?)?(?!\d)"
)


@dataclass(frozen=True)
class Photo:
    """What one picture file says. Width and height are upright; `taken` is EXIF time, seconds since 1970, or None."""

    width: int
    height: int
    taken: float | None


def probe(path: str | Path, check: str = "full") -> Photo:
    """Look at a picture once. Raises ValueError whose text is the reason to skip it. `full` reads it to its end."""
    if Path(path).stat().st_size == 0:
        raise ValueError("empty file")
    try:
        with Image.open(path) as image:
            width, height = upright_size(image)
            taken = exif_seconds(image.getexif())
            if check == "full":
                image.draft(None, (64, 64))  # a small JPEG decode still has to reach the end
                image.load()
    except Exception as error:  # PIL raises nearly anything on damaged files
        hint = ": HEIC, save it as JPEG" if Path(path).suffix.lower() in (".heic", ".heif") else f": {error}"
        raise ValueError("not a readable photograph" + hint.replace(str(path), "").strip()) from None
    return Photo(width, height, taken)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after the turn that EXIF asks for."""
    return image.size[::-1] if image.getexif().get(ORIENTATION, 1) >= 5 else image.size


def read_photo(path: str | Path, height: int, width: int) -> np.ndarray:
    """(H,W,3) uint8 RGB, upright. A large JPEG comes at 1/2 to 1/8 of its size, never under twice the target's.

    Raises OSError naming the path.
    """
    try:
        with Image.open(path) as image:
            scale = 2 * max(height, width) / min(image.size)
            if scale < 0.5:  # JPEG can be decoded at 1/2, 1/4 or 1/8 for a fraction of the time
                image.draft(None, (int(image.width * scale) + 1, int(image.height * scale) + 1))
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bit grey: PIL would clip it at 255
                grey = (np.asarray(upright, dtype=np.float64) / 257).round().clip(0, 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.array(upright.convert("RGB"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such photograph (any more)") from None
    except Exception as error:
        raise OSError(f"{path}: cannot read this photograph: {' '.join(str(error).split())}") from None


def exif_seconds(exif: Image.Exif) -> float | None:
    """DateTimeOriginal as seconds since 1970, or None where it is absent or was never set."""
    inner = exif.get_ifd(EXIF_IFD)
    try:
        moment = datetime.datetime.strptime(str(inner[DATE_TIME_ORIGINAL]).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except (KeyError, ValueError):
        return None
    digits = str(inner.get(SUBSECONDS_ORIGINAL, "")).strip("\0 ")
    return calendar.timegm(moment.timetuple()) + (float(f"0.{digits}") if digits.isdigit() else 0.0)


def name_seconds(name: str, clock: bool = True) -> float | None:
    """Capture time in a file name as seconds since 1970: Unix seconds, or a date with or without a time.

    clock: False reads dates alone; what stands behind them is another number.
    """
    if found := UNIX.search(name):
        return float(found[1]) + float(found[2] or 0) / 1000
    if not (found := DATE.search(name)):
        return None
    year, _, month, day, hour, _, minute, second, milli = found.groups()
    hour, minute, second, milli = (hour, minute, second, milli) if clock else (None,) * 4
    try:
        moment = datetime.datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0))
    except ValueError:  # 31 February
        return None
    return calendar.timegm(moment.timetuple()) + float(milli or 0) / 1000


def numbered(name: str) -> bool:
    """Whether a number that is no time of day follows the date: 20200501_0060."""
    found = None if UNIX.search(name) else DATE.search(name)
    return bool(found and found[5] is None and re.match(r"[T _.-]*\d", name[found.end() :]))


def capture_times(
    names: Sequence[str], exif: Sequence[float | None], interval: float | None = None
) -> tuple[list[float | None], str]:
    """One time a photograph, in seconds, and the rule that gave them; None where the rule gives none.

    One rule serves the whole folder, since a camera's clock and the names' may disagree: the one of EXIF and file
    name that tells the most photographs apart (EXIF on a tie), else the user's interval in the order they are given in.
    Where what follows a date is no time of day in one name, it is none in any: plant_20200501_0001 to _0120.
    """
    clock = not any(numbered(name) for name in names)
    named = [name_seconds(name, clock) for name in names]
    distinct = lambda times: len({t for t in times if t is not None})
    if max(distinct(exif), distinct(named)) >= 2:
        return (list(exif), "EXIF") if distinct(exif) >= distinct(named) else (named, "file name")
    if interval is None:
        return [None] * len(names), "nothing"
    return [place * float(interval) for place in range(len(names))], "photo_interval"


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which img2 comes before img10."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", name) if p]
