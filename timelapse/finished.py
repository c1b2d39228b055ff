"""Which stages of a run have ended well, and whether its config still says what it said: sweeps skip what is done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import yaml

from timelapse import assets
from timelapse.atomic import write

MARKER = "finished.json"
ASKED = ("sample.", "input.", "ckpt=")  # overrides that make other samples in the same run directory
EXPORTED = ("export.", "ckpt=")  # and those that make another export
SAMPLED = {"sample", "evaluate", "report"}  # stages that belong to one choice of samples; the others to the run
# Parts of a config that shape what is trained, and beside them what is sampled of it.
SHAPED = ("model", "conditioning", "noise", "loss", "dataset", "encoder", "module", "video", "seed", "cache")
SHOWN = ("sampler", "metric", "sample")
STEPPED = ("steps", "clip_norm", "validation_clips")  # of `train`; and the clips of a process in a step


def finished(
    run_dir: Path, stages: Sequence[str], overrides: Sequence[str] = (), config: Mapping[str, Any] | None = None
) -> bool:
    """Whether every one of these stages has ended well here, on the shipped weights of now, with the same samples
    asked for. config: of now, resolved; where it is told, the files behind it must say what they said then, too."""
    marker = _read(Path(run_dir) / MARKER)
    same = asked(overrides) == marker["asked"] or not SAMPLED & set(stages)
    same = same and (config is None or not changed(Path(run_dir), stages, config))
    return same and {*kinds(stages, overrides)} <= {*marker["stages"]} and not outdated(Path(run_dir), stages)


def changed(run_dir: Path, stages: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """Parts of the config that are not what these stages last ran with: a file in conf/ was edited since, say."""
    own = run_dir / "config.yaml"
    made = run_dir / "samples" / "config.yaml"
    reads = [(own, SHAPED)] if {"fit", "cache"} & {*stages} else []
    reads += [(made if made.exists() else own, (*SHAPED, *SHOWN))] if SAMPLED & {*stages} else []
    differ: list[str] = []
    for path, parts in reads:
        if path.exists():  # a damaged one is the run's to tell
            then = _as_read(path.read_text())
            differ += [part for part in parts if then.get(part) != config.get(part)]
            if path == own and stepped(then.get("train")) != stepped(config.get("train")):
                differ.append("train")
    return differ


def stepped(train: Mapping[str, Any] | None) -> list[Any]:
    """What of `train` shapes a run; how a process's clips are split into batches does not."""
    train = train or {}
    return [train.get(name) for name in STEPPED] + [(train.get("batch_size") or 1) * (train.get("accumulate") or 1)]


def differs(old: Any, new: Any) -> bool:
    """Whether a part of a config was changed; a number that its class did not know then had the class's default."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return old != new
    if "_target_" not in new and old.keys() != new.keys():
        return True
    then = {k: default(new["_target_"], k, new[k]) for k in new.keys() - old.keys()} | old
    return any(differs(then[k], new[k]) for k in new)


def default(target: str, name: str, otherwise: Any) -> Any:
    """Of a number of a class, as a config would have it; `otherwise` where it has none."""
    from hydra.utils import get_object

    try:
        value = signature(get_object(target)).parameters[name].default
    except (KeyError, ImportError, ValueError):
        return otherwise
    return otherwise if value is Parameter.empty else list(value) if isinstance(value, tuple) else value


def _as_read(text: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    try:
        return OmegaConf.to_container(OmegaConf.create(text)) or {}
    except (ValueError, yaml.YAMLError):
        return {}


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
    """Those overrides that say which samples are wanted; a checkpoint with the moment when it was written."""
    return sorted(o.lstrip("+") + written(o) for o in overrides if o.lstrip("+").startswith(of))


def written(override: str) -> str:
    """When the newest checkpoint that `ckpt=` names was written, " at <nanoseconds>": it may have been trained anew."""
    key, _, value = override.lstrip("+").partition("=")
    if key != "ckpt":
        return ""
    place = Path(value.strip("'\"").replace("\\'", "'").replace("\\\\", "\\"))
    found = [*(place / "checkpoints").glob("step*.ckpt")] or [place]
    times = [path.stat().st_mtime_ns for path in found if path.exists()]
    return f" at {max(times)}" if times else ""


def kinds(stages: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Stages as the marker has them: an export with what was asked of it."""
    return [" ".join([s, *asked(overrides, EXPORTED)]) if s == "export" else s for s in stages]


def _read(path: Path) -> dict[str, list[str]]:
    try:
        marker = json.loads(path.read_text())
        return {"stages": list(marker["stages"]), "asked": list(marker["asked"])}
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or cut short: run again rather than trust it
        return {"stages": [], "asked": []}
