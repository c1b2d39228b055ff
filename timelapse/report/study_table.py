"""Runs as rows of a table: mean and spread over seeds, and what the paired differences show."""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

import yaml

from timelapse.identity import identity
from timelapse.report.page import ARROWS, number
from timelapse.report.run_files import RunFiles, read_run

log = logging.getLogger("timelapse")
SC, MD = "subject_consistency", "morphing_degree"


@dataclass
class Row:
    """One method: its finished runs by seed, and the reason for each that is missing."""

    name: str
    runs: dict[int, RunFiles] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> number, where it was measured."""
        found = {seed: run.metrics[metric]["value"] for seed, run in self.runs.items() if metric in run.metrics}
        return {seed: float(value) for seed, value in found.items() if math.isfinite(value)}


@dataclass
class Finding:
    """A claim `better` > `than` in `metric`, while `keeping` does not fall.

    margin: what `keeping` may lose before it counts, as a share of its mean for `than`; an interval that reaches below
    that leaves the claim undecided.
    """

    claim: str
    better: str
    than: str
    metric: str = SC
    keeping: str | None = MD
    margin: float = 0.05


@dataclass
class Verdict:
    """`word`: shows, does not show, undecided (better, but what is to be kept may fall), within spread, or not
    measured."""

    word: str
    sentence: str


@dataclass
class Difference:
    """Paired, oriented so that positive is better (for a metric without direction: higher). The interval is the wider
    of two 95 % t intervals: over seeds, and over clips, where the metric has a number for each."""

    mean: float
    low: float
    high: float
    seeds: int
    clips: tuple[int, int]  # better on .. of .. clips, in the mean over seeds

    def __str__(self) -> str:
        sign = "+" if self.mean >= 0 else ""
        return f"{sign}{number(self.mean)} (95 % interval {number(self.low)} to {number(self.high)})"


def group_runs(folders: Iterable[Path | str]) -> list[Row]:
    """Any run directories as rows: the same experiment and overrides but for the seed are one row."""
    rows: dict[str, Row] = {}
    for folder in map(Path, folders):
        if (folder / "table.csv").exists():
            log.info(f"{folder} is a study's own directory, left out")
            continue
        if folder.is_dir() and not has_results(folder):
            log.info(f"{folder}: nothing was made there, left out")
            continue
        run = read_run(folder)
        rest = overrides(run.folder)
        name = run.name if rest in ("", "base") else f"{run.name} {rest}"
        seed = 0 if run.seed is None else int(run.seed)
        row = rows.setdefault(name, Row(name))
        if seed in row.runs:
            raise ValueError(f"{run.folder} and {row.runs[seed].folder} are both {name}, seed {seed}; give one of them")
        row.runs[seed] = run
    if not rows:
        raise ValueError("none of these folders holds numbers or samples of a run; give ones like runs/NAME/...")
    return list(rows.values())


def has_results(folder: Path) -> bool:
    """Whether a run made numbers or samples: a command that was refused leaves its log alone, a plan its config."""
    return any((folder / name).exists() for name in ("metrics.json", "metrics.csv", "samples"))


def overrides(folder: Path) -> str:
    """What a run is told apart by, but for its seed; from its folder's name where it did not note what was typed."""
    if (folder / "overrides.yaml").exists():
        typed = yaml.safe_load((folder / "overrides.yaml").read_text()) or []
        return identity([o for o in typed if not str(o).startswith(("seed=", "name="))])
    return re.sub(r"(^|_)seed-\d+(?=_|$)", "", folder.name).strip("_")


def metric_names(rows: Sequence[Row]) -> list[str]:
    """SC and MD first, then the others as the runs have them."""
    found = dict.fromkeys(name for row in rows for run in row.runs.values() for name in run.metrics)
    return [name for name in (SC, MD) if name in found] + [name for name in found if name not in (SC, MD)]


def direction(rows: Sequence[Row], metric: str) -> bool | None:
    """higher_is_better as the runs say."""
    runs = [run for row in rows for run in row.runs.values() if metric in run.metrics]
    return runs[0].metrics[metric].get("higher_is_better") if runs else None


def heading(rows: Sequence[Row], metric: str) -> str:
    """'subject consistency ↑': the arrow says which way is better."""
    return f"{metric.replace('_', ' ')} {ARROWS[direction(rows, metric)]}".strip()


def cell(values: Sequence[float]) -> str:
    """'0.912 ± 0.004', the sample standard deviation; without it for one seed."""
    if not values:
        return "–"
    return number(mean(values)) + (f" ± {number(stdev(values))}" if len(values) > 1 else "")


def markdown(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """A table with a row per method: mean ± standard deviation over seeds; below it, which jobs failed and why."""
    head = ["method", "seeds", *[heading(rows, m) for m in metrics]]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in rows:
        seeds = str(len(row.runs)) + (f" ({len(row.failed)} failed)" if row.failed else "")
        cells = [cell(list(row.values(m).values())) for m in metrics]
        lines.append(f"| {' | '.join([row.name, seeds, *cells])} |")
    failed = [f"- {row.name}, seed {seed}: {reason}" for row in rows for seed, reason in sorted(row.failed.items())]
    return "\n".join(lines + (["", "Failed:", "", *failed] if failed else [])) + "\n"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line per method and metric: mean, std over seeds, n seeds, n clips, the values by seed."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "metric", "higher_is_better", "mean", "std", "seeds", "clips", "values"])
        for row in rows:
            for metric in metric_names(rows):
                values = row.values(metric)
                if not values:
                    continue
                clips = {run.metrics[metric].get("n") for run in row.runs.values() if metric in run.metrics}
                spread = stdev(values.values()) if len(values) > 1 else ""
                listed = " ".join(f"{seed}:{value!r}" for seed, value in sorted(values.items()))
                writer.writerow(
                    [
                        row.name,
                        metric,
                        direction(rows, metric),
                        mean(values.values()),
                        spread,
                        len(values),
                        "/".join(map(str, sorted(clips, key=str))),
                        listed,
                    ]
                )


def difference(better: Row, than: Row, metric: str) -> Difference | None:
    """Mean over common seeds of better - than; None without a common seed.

    Seeds of a study share their clips, so that an interval over seeds alone would hold for these clips only.
    """
    sign = -1 if direction([better, than], metric) is False else 1
    a, b = better.values(metric), than.values(metric)
    pairs = [sign * (a[seed] - b[seed]) for seed in sorted(set(a) & set(b))]
    if not pairs:
        return None
    clips = [sign * mean(d) for d in clip_differences(better, than, sorted(set(a) & set(b)), metric).values()]
    half = max(map(half_width, [pairs, *([clips] if len(clips) > 1 else [])])) if len(pairs) > 1 else math.inf
    won = sum(d > 0 for d in clips)
    return Difference(mean(pairs), mean(pairs) - half, mean(pairs) + half, len(pairs), (won, len(clips)))


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % t interval of their mean."""
    from scipy.stats import t  # a second to import

    return float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def clip_differences(a: Row, b: Row, seeds: Sequence[int], metric: str) -> dict[tuple, list[float]]:
    """Clip -> a - b at each seed at which both runs sampled it."""
    found: dict[tuple, list[float]] = {}
    for seed in seeds:
        first, second = ({s.clip: s.metrics.get(metric) for s in row.runs[seed].samples} for row in (a, b))
        for clip in first:
            if first[clip] is not None and second.get(clip) is not None:
                found.setdefault(clip, []).append(first[clip] - second[clip])
    return found


def judge(finding: Finding, rows: Sequence[Row]) -> Verdict:
    """What the paired differences say about a claim; an interval that holds 0 says nothing either way.

    Nor is a wide one no loss: a kept metric's interval must end above -margin (non-inferiority), and not lie below 0.
    """
    named = {row.name: row for row in rows}
    absent = [name for name in (finding.better, finding.than) if name not in named or not named[name].runs]
    if absent:
        return Verdict("not measured", f"No finished run of {' and '.join(absent)}.")
    better, than = named[finding.better], named[finding.than]
    main = difference(better, than, finding.metric)
    if main is None:
        return Verdict("not measured", f"{finding.metric} was not measured at a seed that both have.")
    label = lambda metric: {SC: "SC", MD: "MD"}.get(metric, metric.replace("_", " "))
    said = f"{finding.better} against {finding.than}: {label(finding.metric)} {main}"
    if main.clips[1]:
        said += f", better on {main.clips[0]} of {main.clips[1]} clips"
    kept = difference(better, than, finding.keeping) if finding.keeping else None
    said += f"; {label(finding.keeping)} {kept}" if kept else ""
    said += f"; {main.seeds} seeds, paired."
    if main.seeds < 2:
        return Verdict("not measured", f"{said} One seed has no spread to judge by.".replace("1 seeds", "1 seed"))
    if main.high < 0:
        return Verdict("does not show", f"{said} It is worse.")
    if main.low <= 0:
        return Verdict("within spread", f"{said} These seeds and clips cannot tell the two apart at this scale.")
    if finding.keeping and kept is None:
        return Verdict("undecided", f"{said} Better, but {label(finding.keeping)} was not measured at a seed of both.")
    if kept and kept.high < 0:
        return Verdict("does not show", f"{said} Better, but {label(finding.keeping)} falls.")
    margin = finding.margin * abs(mean(than.values(finding.keeping).values())) if kept else 0
    if kept and kept.low < -margin:
        loss = f"may fall by more than {number(margin)} ({100 * finding.margin:g} %)"
        return Verdict("undecided", f"{said} Better, but {label(finding.keeping)} {loss}.")
    return Verdict("shows", said)
