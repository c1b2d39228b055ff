"""Which metric sees which failure: AUC of clean against failed synthetic clips, every metric by every failure.

    python experiments/metric_separation/separate.py --clips 70 --seed 0

prints the table and writes it, with the numbers, to --out (runs/metric_separation). About two minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from timelapse.dataset.failures import FAILURES
from timelapse.dataset.synthetic import Synthetic
from timelapse.metric.colour_drift import ColourDrift
from timelapse.metric.evaluate import describe, evaluate
from timelapse.metric.flicker import Flicker, FlickerBrightness
from timelapse.metric.frame_features import efficientnet_lite0, efficientnet_lite0_appearance
from timelapse.metric.morphing_degree import MorphingDegree
from timelapse.metric.progression import Progression
from timelapse.metric.subject_consistency import SubjectConsistency, SubjectConsistencyMin
from timelapse.randomness import keyed

NETWORKS = {"appearance": efficientnet_lite0_appearance, "pooled": efficientnet_lite0}
# The metric that is meant to see each failure. Metrics without a direction are read as "lower is worse": a static
# clip has a low MD.
MEANT = {
    "static": "morphing_degree",
    "swap": "subject_consistency_min",
    "cut": "subject_consistency_min",
    "zigzag": "progression",
    "flicker": "flicker_brightness",
}


def auc(clean: Tensor, failed: Tensor, lower_is_worse: bool, resamples: int, generator: torch.Generator):
    """(n,), (n,) -> (AUC, low, high): chance that a failed clip is worse than a clean one, ties half.

    The interval is a 95 % percentile bootstrap over clips; a clip and its failed version are drawn together.
    """
    worse = (clean[None] - failed[:, None]) * (1 if lower_is_worse else -1)
    wins = (worse > 0).double() + 0.5 * (worse == 0).double()
    n = len(clean)
    draws = torch.randint(n, (resamples, n), generator=generator)
    weight = torch.zeros(resamples, n, dtype=torch.double).scatter_add_(1, draws, torch.ones_like(draws).double())
    samples = ((weight @ wins) * weight).sum(1) / n**2
    low, high = samples.quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return wins.mean().item(), low, high


def batches(failure: str | None, clips: int, seed: int, size: int = 10) -> Iterator[dict[str, Tensor]]:
    world = Synthetic(size=clips, seed=seed, split="separation", failure=failure)
    for start in tqdm(range(0, clips, size), desc=failure or "clean", leave=False):
        videos = [world[i]["video"] for i in range(start, min(start + size, clips))]
        yield {"video": torch.stack(videos)}


def separate(clips: int, seed: int, features: str, size: int, resamples: int = 2000) -> tuple[dict, list[str]]:
    """Numbers for expected.yaml and the lines of the table."""
    net = NETWORKS[features](size)
    metrics = {
        "subject_consistency": SubjectConsistency(net),
        "subject_consistency_min": SubjectConsistencyMin(net),
        "morphing_degree": MorphingDegree(net),
        "progression": Progression(net),
        "flicker": Flicker(),
        "flicker_brightness": FlickerBrightness(),
        "colour_drift": ColourDrift(),
    }
    values = {kind: evaluate(metrics, batches(kind, clips, seed))[1] for kind in (None, *FAILURES)}
    numbers: dict = {"clips": clips, "seed": seed, "features": net.name, "auc": {}, "mean": {}}
    lines = ["| metric | clean | " + " | ".join(FAILURES) + " |", "|---" * (len(FAILURES) + 2) + "|"]
    for name, metric in metrics.items():
        clean = torch.tensor(values[None][name])
        numbers["mean"][name] = {"clean": round(clean.mean().item(), 4)}
        numbers["auc"][name] = {}
        cells = [f"{clean.mean():.3g}"]
        for kind in FAILURES:
            failed = torch.tensor(values[kind][name])
            lower_is_worse = metric.higher_is_better is not False
            value, low, high = auc(clean, failed, lower_is_worse, resamples, keyed(seed, name, kind))
            numbers["auc"][name][kind] = [round(x, 3) for x in (value, low, high)]
            numbers["mean"][name][kind] = round(failed.mean().item(), 4)
            cell = f"{value:.3f} [{low:.3f}, {high:.3f}]"
            cells.append(f"**{cell}**" if MEANT[kind] == name else cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", *(f"- {describe(name, metric)}" for name, metric in metrics.items())]
    return numbers, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=70, help="clips of each kind; ten processes take turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", choices=NETWORKS, default="appearance")
    parser.add_argument("--size", type=int, default=128, help="pixels of the feature network's input")
    parser.add_argument("--out", type=Path, default=Path("runs/metric_separation"))
    args = parser.parse_args()
    numbers, lines = separate(args.clips, args.seed, args.features, args.size)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text("\n".join(lines) + "\n")
    (args.out / "numbers.yaml").write_text(yaml.safe_dump(numbers, sort_keys=False, default_flow_style=None))
    print("\n".join(lines))
    for kind, name in MEANT.items():
        value = numbers["auc"][name][kind][0]
        print(f"{kind:8s} by {name:24s} AUC {value:.3f} {'ok' if value >= 0.95 else 'BELOW 0.95'}")
    print(f"n = {args.clips} clips of each kind, seed {args.seed}; written to {args.out}")


if __name__ == "__main__":
    main()
