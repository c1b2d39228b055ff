"""Files that are written whole or not at all: a kill or a full disk leaves the one that was there."""

from __future__ import annotations

import json
import math
import secrets
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
