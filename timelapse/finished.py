"""Which stages of a run have ended well: a marker in its directory, so that sweeps skip them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

MARKER = "finished.json"


def finished(run_dir: Path, stages: Sequence[str]) -> bool:
    """Whether every one of these stages has ended well in this run directory."""
    try:
        return set(stages) <= set(json.loads((Path(run_dir) / MARKER).read_text())["stages"])
    except (OSError, ValueError, KeyError):
        return False


def mark_finished(run_dir: Path, stages: Sequence[str]) -> None:
    """Add stages to the run's marker; call it after the last of them has ended well."""
    path = Path(run_dir) / MARKER
    try:
        before = json.loads(path.read_text())["stages"]
    except (OSError, ValueError, KeyError):
        before = []
    path.with_suffix(".part").write_text(json.dumps({"stages": list(dict.fromkeys([*before, *stages]))}))
    path.with_suffix(".part").replace(path)
