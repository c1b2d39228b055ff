"""Which stages of a run have ended well: a marker in its directory, so that sweeps skip them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from timelapse import assets
from timelapse.atomic import write

MARKER = "finished.json"
ASKED = ("sample.", "input.", "ckpt=")  # overrides that make other samples in the same run directory


SAMPLED = {"sample", "evaluate", "report"}  # stages that belong to one choice of samples; the others to the run


def finished(run_dir: Path, stages: Sequence[str], overrides: Sequence[str] = ()) -> bool:
    """Whether every one of these stages has ended well here, on the shipped weights of now, with the same samples
    asked for."""
    marker = _read(Path(run_dir) / MARKER)
    same = asked(overrides) == marker["asked"] or not SAMPLED & set(stages)
    return same and set(stages) <= set(marker["stages"]) and not assets.changed(Path(run_dir))


def mark_finished(run_dir: Path, stages: Sequence[str], overrides: Sequence[str] = ()) -> None:
    """Add stages to the run's marker; call it after the last of them has ended well."""
    path = Path(run_dir) / MARKER
    before, now = _read(path), asked(overrides)
    if SAMPLED & set(stages) and before["asked"] != now:  # what was made of other samples is gone
        before = {"stages": [s for s in before["stages"] if s not in SAMPLED], "asked": now}
    marker = {"stages": list(dict.fromkeys([*before["stages"], *stages])), "asked": before["asked"]}
    write(path, json.dumps(marker))


def asked(overrides: Sequence[str]) -> list[str]:
    """Those overrides that say which samples are wanted."""
    return sorted(o.lstrip("+") for o in overrides if o.lstrip("+").startswith(ASKED))


def _read(path: Path) -> dict[str, list[str]]:
    try:
        marker = json.loads(path.read_text())
        return {"stages": list(marker["stages"]), "asked": list(marker["asked"])}
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or cut short: run again rather than trust it
        return {"stages": [], "asked": []}
