"""What a run directory holds, read for a report; whatever is missing is empty."""

from __future__ import annotations

import glob
import json
import math
import shlex
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import yaml

from timelapse.callback.history import read_rows
from timelapse.dataset.write import read_video

Curve = tuple[list[int], list[float]]  # steps, values


@dataclass
class Sample:
    """One clip of samples/. `videos`: what it is ('truth', 'given', 'sample', a variant) -> mp4, in that order."""

    key: str
    caption: str
    known: list[int]  # given pixel frames
    frames: int
    seconds: list[float] | None
    videos: dict[str, Path]
    metrics: dict[str, float] = field(default_factory=dict)
    weights: str = ""  # a checkpoint, or "weights before finetuning"; "" where no network made it, or nobody noted it

    @cached_property
    def clip(self) -> tuple:
        """What samples of the same clip with the same frames given have in common: worlds and folders share keys."""
        exact = (self.videos[name].with_suffix(".mkv") for name in ("truth", "given") if name in self.videos)
        pictures = [read_video(path).numpy().tobytes() for path in exact if path.exists()]  # a file's own bytes differ
        return self.key, *self.known, *(blake2b(picture, digest_size=8).digest() for picture in pictures)


@dataclass
class RunFiles:
    """A run directory: config.yaml, metrics.json, evaluation.json, metrics.csv, samples/, notes.json.

    config, command: those that made the samples, where these have their own; else the run's.
    """

    folder: Path
    config: dict[str, Any]
    config_text: str
    command: str
    metrics: dict[str, dict[str, Any]]  # name -> value, n, higher_is_better, range, what, network
    samples: list[Sample]
    curves: dict[str, Curve]  # column of metrics.csv -> its cells, without blanks
    skipped: list[tuple[str, str]]  # file, reason
    notes: list[str]  # what stands in for what
    footage: dict[str, dict[str, Any]] = field(default_factory=dict)  # split -> what the dataset says of itself
    began: str = ""  # commit of the run's own training, which samples may be younger than; "" where nobody noted it

    @property
    def name(self) -> str:
        return str(self.config.get("name", self.folder.name))

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")


def read_run(folder: Path | str) -> RunFiles:
    """ValueError when the folder is not a run directory."""
    folder = Path(folder)
    parts = ("config.yaml", "metrics.json", "evaluation.json", "metrics.csv", "samples")
    if not any((folder / name).exists() for name in parts):
        raise ValueError(f"{folder} is not a run directory (none of {', '.join(parts)}); give one like runs/NAME/...")
    own, made = (read_text(folder / name) for name in ("config.yaml", "samples/config.yaml"))
    config = yaml.safe_load(made or own) or {}
    trained_here = bool(made) and config.get("ckpt") is None and any((folder / "checkpoints").glob("step*.ckpt"))
    evaluation = read_json(folder / "evaluation.json")
    notes = read_json(folder / "notes.json")
    metrics = evaluation.get("metrics") or flat_metrics(read_json(folder / "metrics.json"))
    return RunFiles(
        folder=folder,
        config=config,
        config_text=made or own,
        command=command(folder),
        metrics={name: restored(said) for name, said in metrics.items()},
        samples=read_samples(folder / "samples", evaluation.get("per_clip") or {}),
        curves=read_curves(folder / "metrics.csv"),
        skipped=[(str(path), str(reason)) for path, reason in notes.get("skipped", [])],
        notes=[str(note) for note in [*notes.get("notes", []), *evaluation.get("notes", [])]],
        footage=notes.get("footage", {}),
        began=str((yaml.safe_load(own) or {}).get("git_commit") or "") if trained_here else "",
    )


def read_text(path: Path) -> str:
    """Empty when the file is missing."""
    return path.read_text() if path.exists() else ""


def read_json(path: Path) -> dict[str, Any]:
    """{} when the file is missing; ValueError when it is damaged."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run stages=[evaluate,report]") from None


def flat_metrics(numbers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """metrics.json (name -> number, name_n -> clips) as name -> {value, n}."""
    names = [n for n in numbers if n != "seed" and not (n.endswith("_n") and n[:-2] in numbers)]
    return {name: {"value": numbers[name], "n": numbers.get(f"{name}_n")} for name in names}


def restored(said: dict[str, Any]) -> dict[str, Any]:
    """With NaN for a value, and infinity for an end of the range, that the file has as null."""
    low, high = said.get("range") or (0.0, 1.0)
    ends = [-math.inf if low is None else low, math.inf if high is None else high]
    value = math.nan if said["value"] is None else said["value"]
    return said | {"value": value} | ({"range": ends} if said.get("range") else {})


def read_curves(path: Path) -> dict[str, Curve]:
    """A value per step and column; what was logged last counts."""
    cells: dict[str, dict[int, float]] = defaultdict(dict)
    for row in read_rows(path):
        for name, value in row.items():
            if name not in ("step", "epoch"):
                cells[name][int(row["step"])] = float(value)
    return {name: (sorted(points), [points[s] for s in sorted(points)]) for name, points in cells.items()}


def read_samples(folder: Path, per_clip: dict[str, dict[str, float]]) -> list[Sample]:
    """Clips in the order of their keys; one without any mp4 is left out."""
    about = {path.stem: path for path in sorted(folder.glob("*.json"))}
    samples = []
    for key, path in about.items():
        beside = sorted(folder.glob(f"{glob.escape(key)}.*.mp4"))
        found = {p.name[len(key) + 1 : -4]: p for p in beside if p.stem not in about}
        main = folder / f"{key}.mp4"
        videos = {name: found.pop(name) for name in ("truth", "given") if name in found}
        videos |= ({"sample": main} if main.exists() else {}) | found
        if not videos:
            continue
        said = read_json(path)
        known = said.get("known", [])
        samples.append(
            Sample(
                key=key,
                caption=str(said.get("caption", "")),
                known=[known] if isinstance(known, int) else list(known),
                frames=int(said.get("frames", 0)),
                seconds=said.get("seconds"),
                weights=str(said.get("weights") or ""),
                videos=videos,
                metrics={n: v for n, v in (per_clip.get(key) or {}).items() if v is not None and math.isfinite(v)},
            )
        )
    return samples


def command(folder: Path) -> str:
    """What was typed; without `stages`, which say how far it went. Beside a checkpoint of elsewhere nothing is
    fitted, so that what follows the fit is named."""
    places = ("samples", ".", ".hydra")  # of the samples; of the run; of the last command in it
    noted = [folder / place / "overrides.yaml" for place in places]
    path = next((path for path in noted if path.exists()), noted[0])
    overrides = (yaml.safe_load(path.read_text()) or []) if path.exists() else []
    kept = [str(o) for o in overrides if not str(o).startswith("stages=")]
    if any(o.startswith("ckpt=") for o in kept):
        kept.append("stages=[sample,evaluate,report]")
    return shlex.join(["python", "-m", "timelapse.run", *kept]) if overrides else ""
