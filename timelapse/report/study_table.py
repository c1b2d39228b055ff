"""Runs as rows of a table: mean and spread over seeds, and what the paired differences show."""

from __future__ import annotations

import csv
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
    """Paired over seeds, oriented so that positive is better (for a metric without direction: higher)."""

    mean: float
    low: float
    high: float
    seeds: int
    clips: tuple[int, int]  # better on .. of .. pairs of the same clip and seed

    def __str__(self) -> str:
        sign = "+" if self.mean >= 0 else ""
        return f"{sign}{number(self.mean)} (95 % interval {number(self.low)} to {number(self.high)})"


def group_runs(folders: Iterable[Path | str]) -> list[Row]:
    """Any run directories as rows: the same experiment and overrides but for the seed are one row."""
    rows: dict[str, Row] = {}
    for folder in folders:
        run = read_run(folder)
        rest = overrides(run.folder)
        name = run.name if rest in ("", "base") else f"{run.name} {rest}"
        seed = 0 if run.seed is None else int(run.seed)
        row = rows.setdefault(name, Row(name))
        if seed in row.runs:
            raise ValueError(f"{run.folder} and {row.runs[seed].folder} are both {name}, seed {seed}; give one of them")
        row.runs[seed] = run
    return list(rows.values())


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


def cell(values: Sequence[float]) -> str:
    """'0.912 ± 0.004', the sample standard deviation; without it for one seed."""
    if not values:
        return "–"
    return number(mean(values)) + (f" ± {number(stdev(values))}" if len(values) > 1 else "")


def markdown(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """A table with a row per method: mean ± standard deviation over seeds; below it, which jobs failed and why."""
    head = ["method", "seeds", *[f"{m.replace('_', ' ')} {ARROWS[direction(rows, m)]}".strip() for m in metrics]]
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
    """Mean over common seeds of better - than, with its 95 % t interval; None without a common seed."""
    from scipy.stats import t  # a second to import

    sign = -1 if direction([better, than], metric) is False else 1
    a, b = better.values(metric), than.values(metric)
    pairs = [sign * (a[seed] - b[seed]) for seed in sorted(set(a) & set(b))]
    if not pairs:
        return None
    half = math.inf
    if len(pairs) > 1:
        half = float(t.ppf(0.975, len(pairs) - 1)) * stdev(pairs) / math.sqrt(len(pairs))
    clips = [sign * d for seed in sorted(set(a) & set(b)) for d in clip_differences(better, than, seed, metric)]
    won = sum(d > 0 for d in clips)
    return Difference(mean(pairs), mean(pairs) - half, mean(pairs) + half, len(pairs), (won, len(clips)))


def clip_differences(a: Row, b: Row, seed: int, metric: str) -> list[float]:
    """a - b for the clips that both runs of a seed sampled."""
    first = {s.key: s.metrics.get(metric) for s in a.runs[seed].samples}
    second = {s.key: s.metrics.get(metric) for s in b.runs[seed].samples}
    keys = [k for k in first if k in second and first[k] is not None and second[k] is not None]
    return [first[k] - second[k] for k in keys]


def judge(finding: Finding, rows: Sequence[Row]) -> Verdict:
    """What the paired differences over seeds say about a claim; an interval that holds 0 says nothing either way.

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
        return Verdict("within spread", f"{said} These seeds cannot tell the two apart at this scale.")
    if finding.keeping and kept is None:
        return Verdict("undecided", f"{said} Better, but {label(finding.keeping)} was not measured at a seed of both.")
    if kept and kept.high < 0:
        return Verdict("does not show", f"{said} Better, but {label(finding.keeping)} falls.")
    margin = finding.margin * abs(mean(than.values(finding.keeping).values())) if kept else 0
    if kept and kept.low < -margin:
        loss = f"may fall by more than {number(margin)} ({100 * finding.margin:g} %)"
        return Verdict("undecided", f"{said} Better, but {label(finding.keeping)} {loss}.")
    return Verdict("shows", said)
