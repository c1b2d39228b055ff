"""Files that are written whole or not at all: a kill or a full disk leaves the one that was there."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any


def write(path: Path, content: bytes | str) -> None:
    """Beside the file first, then in its place; under a name that no other process, on any machine, writes."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    write(path, json.dumps(content, indent=2) + "\n")
