"""Files that are written whole or not at all: a kill or a full disk leaves the one that was there. And a lock."""

from __future__ import annotations

import fcntl
import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write(path: Path, content: bytes | str) -> None:
    write_together({path: content})


def write_together(files: dict[Path, bytes | str]) -> None:
    """Beside each file first, then all in their places; under names that no other process, on any machine, writes."""
    parts = {path: path.with_name(f"{path.name}.{secrets.token_hex(4)}.part") for path in files}
    try:
        for path, content in files.items():
            parts[path].write_bytes(content.encode() if isinstance(content, str) else content)
        for path, part in parts.items():
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    write(path, as_json(content))


def as_json(content: Any) -> str:
    """NaN and infinity as null: JSON has no other word for them, and other readers stop at Python's."""
    return json.dumps(finite(content), indent=2, allow_nan=False) + "\n"


def finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@contextmanager
def alone(path: Path, otherwise: str) -> Iterator[None]:
    """Hold a lock on `path` within, which goes with this process however that ends; ValueError(otherwise) where another
    process holds it. File systems without locks let everyone in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        os.register_at_fork(after_in_child=file.close)  # a data worker would hold it on
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(otherwise) from None
        except OSError:
            pass
        yield
