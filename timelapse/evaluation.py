"""The evaluate stage: metrics over samples/*.mkv, as numbers for scripts and as a table for the report."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from timelapse.atomic import write_json
from timelapse.build import build_all
from timelapse.dataset.fit import to_unit
from timelapse.dataset.write import read_video
from timelapse.metric.evaluate import evaluate

log = logging.getLogger("timelapse")


def evaluate_run(run: Any) -> float | None:
    """Write metrics.json (flat: name -> number) and evaluation.json (what each means, and each clip's).

    The exact .mkv files are measured, never the .mp4 made for looking. Returns the first metric's value.
    """
    folder = run.out / "samples"
    chosen = {path.stem: path for path in sorted(folder.glob("*.json"))}
    if not chosen:
        raise ValueError(f"{folder} has no samples to measure; add the stage: stages=[sample,evaluate,report]")
    metrics = build_all(run.cfg.get("metric") or {})
    for metric in metrics.values():
        for net in (metric.net, getattr(metric, "clip_net", None)):
            if net is not None:
                net.to(run.device)
    bar = tqdm(clips(folder, list(chosen)), total=len(chosen), desc="evaluate", leave=False)
    numbers, per_clip = evaluate(metrics, bar, alone=True)
    real, before = {}, {}  # of the real clips, and of what the network made before its training, where there are any
    if all((folder / f"{key}.before.mkv").exists() for key in chosen):
        bar = tqdm(clips(folder, list(chosen), ".before"), total=len(chosen), desc="evaluate before", leave=False)
        before, _ = evaluate(metrics, bar, alone=True)
    if any((folder / f"{key}.truth.mkv").exists() for key in chosen):
        bar = tqdm(truths(folder, list(chosen)), total=len(chosen), desc="evaluate the real clips", leave=False)
        real, _ = evaluate(metrics, bar, alone=True)
    n = {name: numbers.get(f"{name}_n") for name in metrics}
    write_json(run.out / "metrics.json", {**numbers, "seed": run.cfg.seed})
    write_json(
        run.out / "evaluation.json",
        {
            "metrics": {
                name: {
                    "value": numbers[name],
                    "truth": real.get(name),
                    "before": before.get(name),
                    "n": n[name],
                    "higher_is_better": metric.higher_is_better,
                    "range": list(metric.range),
                    "what": (type(metric).__doc__ or "").strip(),
                    "network": metric.backbone,
                }
                for name, metric in metrics.items()
                if name in numbers
            },
            "per_clip": {key: {name: values[i] for name, values in per_clip.items()} for i, key in enumerate(chosen)},
            "notes": stand_ins({name: metric for name, metric in metrics.items() if name in numbers}),
            "seed": run.cfg.seed,
        },
    )
    log.info(", ".join(f"{name} {numbers[name]:.4g} (n={n[name]})" for name in metrics if name in numbers))
    return next((numbers[name] for name in metrics if name in numbers), None)


def stand_ins(metrics: dict[str, Any]) -> list[str]:
    """Which feature network stands in for which, in which metrics: a sentence each."""
    read: dict[str, list[str]] = {}
    for name, metric in metrics.items():
        if getattr(metric.net, "stands_for", None):
            read.setdefault(f"{metric.net.name} stands in for {metric.net.stands_for}", []).append(name)
    return [f"{said} in {', '.join(names)}." for said, names in read.items()]


def truths(folder: Path, keys: list[str]) -> Iterator[dict[str, Tensor]]:
    """The real clips of those samples that have one, with the sample's `known`: what is measured from the given frame
    is measured from there in both."""
    for key in keys:
        path = folder / f"{key}.truth.mkv"
        if path.exists():
            video = to_unit(read_video(path))[None]
            yield {"video": video, "known": known_of(folder, key, video.shape[1])}


def known_of(folder: Path, key: str, frames: int) -> Tensor:
    """(1,T) bool: the frames that a sample was given; those that a shorter real clip has not are left out."""
    known = torch.zeros(1, frames, dtype=torch.bool)
    known[0, [f for f in json.loads((folder / f"{key}.json").read_text())["known"] if f < frames]] = True
    return known


def clips(folder: Path, keys: list[str], made: str = "") -> Iterator[dict[str, Tensor]]:
    """One clip a batch: video, truth or the given frames, known (B,T). made: ".before" for those before training."""
    for key in keys:
        video = to_unit(read_video(folder / f"{key}{made}.mkv"))[None]
        batch = {"video": video, "known": known_of(folder, key, video.shape[1])}
        for name in ("truth", "given"):
            path = folder / f"{key}.{name}.mkv"
            if path.exists():
                pictures = to_unit(read_video(path))[None]
                after = video.shape[1] - pictures.shape[1]  # chunks in a row are longer than what was given
                batch[name] = torch.cat([pictures, pictures[:, -1:].expand(-1, after, -1, -1, -1)], dim=1)
        yield batch
