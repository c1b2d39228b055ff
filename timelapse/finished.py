"""Which stages of a run have ended well: a marker in its directory, so that sweeps skip them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from timelapse import assets
from timelapse.atomic import write

MARKER = "finished.json"
ASKED = ("sample.", "input.", "ckpt=")  # overrides that make other samples in the same run directory
EXPORTED = ("export.", "ckpt=")  # and those that make another export
SAMPLED = {"sample", "evaluate", "report"}  # stages that belong to one choice of samples; the others to the run


def finished(run_dir: Path, stages: Sequence[str], overrides: Sequence[str] = ()) -> bool:
    """Whether every one of these stages has ended well here, on the shipped weights of now, with the same samples
    asked for."""
    marker = _read(Path(run_dir) / MARKER)
    same = asked(overrides) == marker["asked"] or not SAMPLED & set(stages)
    return same and {*kinds(stages, overrides)} <= {*marker["stages"]} and not outdated(Path(run_dir), stages)


def outdated(run_dir: Path, stages: Sequence[str]) -> bool:
    """Whether shipped weights that these stages read changed since the run began; without `fit`, the model's alone."""
    try:
        config = yaml.safe_load((run_dir / "config.yaml").read_text()) or {}
        return bool(assets.changed(run_dir, None if "fit" in stages else assets.digests(config.get("model"))))
    except OSError:
        return bool(assets.changed(run_dir))
    except (ValueError, yaml.YAMLError):  # a damaged record: the run itself says so
        return True


def mark_finished(run_dir: Path, stages: Sequence[str], overrides: Sequence[str] = ()) -> None:
    """Add stages to the run's marker; call it after the last of them has ended well."""
    path = Path(run_dir) / MARKER
    before, now = _read(path), asked(overrides)
    if SAMPLED & set(stages) and before["asked"] != now:  # what was made of other samples is gone
        before = {"stages": [s for s in before["stages"] if s not in SAMPLED], "asked": now}
    if "export" in stages:  # there is one folder for all
        before["stages"] = [s for s in before["stages"] if s.split()[0] != "export"]
    marker = {"stages": list(dict.fromkeys([*before["stages"], *kinds(stages, overrides)])), "asked": before["asked"]}
    write(path, json.dumps(marker))


def asked(overrides: Sequence[str], of: tuple[str, ...] = ASKED) -> list[str]:
    """Those overrides that say which samples are wanted."""
    return sorted(o.lstrip("+") for o in overrides if o.lstrip("+").startswith(of))


def kinds(stages: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Stages as the marker has them: an export with what was asked of it."""
    return [" ".join([s, *asked(overrides, EXPORTED)]) if s == "export" else s for s in stages]


def _read(path: Path) -> dict[str, list[str]]:
    try:
        marker = json.loads(path.read_text())
        return {"stages": list(marker["stages"]), "asked": list(marker["asked"])}
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or cut short: run again rather than trust it
        return {"stages": [], "asked": []}
