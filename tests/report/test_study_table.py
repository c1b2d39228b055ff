"""Paired differences with known answers."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from timelapse.dataset.write import write_video
from timelapse.identity import identity
from timelapse.report.run_files import RunFiles, Sample
from timelapse.report.study_table import MD, SC, Finding, Row, difference, group_runs, judge, markdown, write_csv


def run(metrics: dict[str, float], higher: bool | None = True, clips: dict[str, list[float]] | None = None) -> RunFiles:
    """A finished run with these numbers; `clips` metric -> a value per clip."""
    listed = {n: {"value": v, "n": 4, "higher_is_better": higher} for n, v in metrics.items()}
    count = max((len(v) for v in (clips or {}).values()), default=0)
    samples = [Sample(f"k{i}", "", [], 0, None, {}, {n: v[i] for n, v in (clips or {}).items()}) for i in range(count)]
    return RunFiles(Path("runs/x"), {}, "", "", listed, samples, {}, [], [])


def row(name: str, sc: list[float], md: list[float] | None = None, **kwargs) -> Row:
    md = md or [0.5 + 0.01 * (i % 2) for i in range(len(sc))]
    return Row(name, {seed: run({SC: s, MD: m}, **kwargs) for seed, (s, m) in enumerate(zip(sc, md))})


def test_the_interval_is_students():
    """Differences 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.3027, so 2 +- 4.3027/sqrt(3)."""
    d = difference(row("a", [1, 3, 5]), row("b", [0, 1, 2]), SC)
    assert (d.mean, d.seeds) == (2, 3)
    assert (d.low, d.high) == (pytest.approx(2 - 2.48414, abs=1e-4), pytest.approx(2 + 2.48414, abs=1e-4))


def test_seeds_that_agree_do_not_hide_how_clips_differ():
    """0.5 more in every seed is +1, +1, 0, 0 on its clips, of each the mean over seeds: 0.5 +- 3.1824 * 0.5774 / 2."""
    made = lambda values: {seed: run({SC: sum(values) / 4}, clips={SC: values}) for seed in (0, 1, 2)}
    a, b = Row("a", made([1.0, 1.0, 0.0, 0.0])), Row("b", made([0.0, 0.0, 0.0, 0.0]))
    d = difference(a, b, SC)
    assert (d.mean, d.seeds, d.clips) == (0.5, 3, (2, 4))
    assert (d.low, d.high) == (pytest.approx(0.5 - 0.91874, abs=1e-4), pytest.approx(0.5 + 0.91874, abs=1e-4))
    assert judge(replace(CLAIM, keeping=None), [a, b]).word == "within spread"


def test_other_clips_of_the_same_name_are_not_paired(tmp_path: Path):
    """Folders and worlds call their clips alike; what was given, and the real clip, tell them apart."""
    rows = []
    for name, grey, known in (("a", 0.0, [0]), ("b", 0.0, [0]), ("c", 0.5, [0]), ("d", 0.0, [2])):
        write_video(tmp_path / f"{name}.mkv", torch.full((3, 3, 16, 16), grey), lossless=True)
        sample = Sample("k0", "", known, 3, None, {"truth": tmp_path / f"{name}.mp4"}, {SC: 1.0})
        rows.append(Row(name, {0: replace(run({SC: 1.0}), samples=[sample])}))
    assert [difference(rows[0], other, SC).clips[1] for other in rows[1:]] == [1, 0, 0]


def test_pairing_takes_the_seeds_out_of_the_spread():
    """Seeds differ by 10, methods by 1: unpaired nothing would show."""
    d = difference(row("a", [1.1, 11, 20.9]), row("b", [0, 10, 20]), SC)
    assert d.low > 0.7 and d.mean == pytest.approx(1)


def test_only_common_seeds_are_paired():
    a, b = row("a", [1, 2, 3]), row("b", [0, 0, 0])
    del a.runs[0], b.runs[2]
    d = difference(a, b, SC)
    assert (d.mean, d.seeds) == (2, 1)
    del a.runs[1]
    assert difference(a, b, SC) is None


def test_lower_is_better_turns_the_sign_and_clips_are_counted_the_same_way():
    a = Row("a", {0: run({"drift": 1.0}, False, {"drift": [1, 1, 5]})})
    b = Row("b", {0: run({"drift": 3.0}, False, {"drift": [2, 3, 4]})})
    d = difference(a, b, "drift")
    assert d.mean == 2 and d.clips == (2, 3)


CLAIM = Finding("a beats b", "a", "b")


@pytest.mark.parametrize(
    ("a", "b", "md", "word"),
    [
        ([0.92, 0.93, 0.94], [0.90, 0.91, 0.921], None, "shows"),
        ([0.90, 0.91, 0.921], [0.92, 0.93, 0.94], None, "does not show"),
        ([0.92, 0.93, 0.94], [0.90, 0.95, 0.93], None, "within spread"),
        ([0.92, 0.93, 0.94], [0.90, 0.91, 0.921], [0.1, 0.11, 0.1], "does not show"),  # MD falls
        ([0.92, 0.93, 0.94], [0.90, 0.91, 0.921], [0.45, 0.46, 0.45], "does not show"),  # a little, but in every seed
        ([0.92, 0.93, 0.94], [0.90, 0.91, 0.921], [0.46, 0.54, 0.46], "undecided"),  # it may fall by a tenth
        ([0.92, 0.93, 0.94], [0.90, 0.91, 0.921], [0.495, 0.505, 0.505], "shows"),  # by less than the margin, if at all
        ([0.92], [0.90], None, "not measured"),
    ],
)
def test_a_claim_is_judged_by_its_interval(a: list, b: list, md: list | None, word: str):
    verdict = judge(CLAIM, [row("a", a, md), row("b", b)])
    assert verdict.word == word
    if len(a) > 1:
        assert "SC" in verdict.sentence and "MD" in verdict.sentence and "3 seeds" in verdict.sentence


def test_a_fall_in_every_seed_that_is_not_surely_one_is_not_no_loss():
    a, b = row("a", [0.92, 0.93, 0.94], [0.26, 0.34, 0.31]), row("b", [0.90, 0.91, 0.921], [0.36, 0.36, 0.36])
    verdict = judge(CLAIM, [a, b])
    assert verdict.word == "undecided" and "MD −0.0567" in verdict.sentence
    assert "Better, but MD may fall by more than 0.0180 (5 %)" in verdict.sentence
    assert judge(replace(CLAIM, margin=0.5), [a, b]).word == judge(replace(CLAIM, keeping=None), [a, b]).word == "shows"


def test_what_was_not_measured_is_not_kept():
    a, b = row("a", [0.92, 0.93, 0.94]), row("b", [0.90, 0.91, 0.921])
    for run_files in b.runs.values():
        del run_files.metrics[MD]
    verdict = judge(CLAIM, [a, b])
    assert verdict.word == "undecided" and "MD was not measured" in verdict.sentence


def test_a_claim_about_a_missing_run_is_not_judged():
    failed = Row("b", failed={0: "out of memory"})
    assert judge(CLAIM, [row("a", [1, 2]), failed]).word == "not measured"
    assert judge(CLAIM, [failed]).word == "not measured"


def test_tables_hold_mean_and_spread_over_seeds(tmp_path: Path):
    rows = [row("a", [0.8, 0.9, 1.0]), Row("b", failed={0: "NaN"})]
    text = markdown(rows, [SC, MD])
    assert "| a | 3 | 0.900 ± 0.100 | 0.503 ± 0.0058 |" in text
    assert "| b | 0 (1 failed) | – | – |" in text
    assert "- b, seed 0: NaN" in text
    write_csv(rows, tmp_path / "t.csv")
    line = next(csv.DictReader((tmp_path / "t.csv").open()))
    assert (line["method"], line["metric"], line["seeds"], line["clips"]) == ("a", SC, "3", "4")
    assert float(line["mean"]) == pytest.approx(0.9) and float(line["std"]) == pytest.approx(0.1)
    assert line["values"] == "0:0.8 1:0.9 2:1.0"


def test_runs_that_differ_by_their_seed_share_a_row(tmp_path: Path):
    folders = []
    made = (("x", "seed-0", 0), ("x", "seed-1", 1), ("x", "loss-drepa_l1_seed-0", 0), ("y", "base", 0))
    for name, folder, seed in made:
        path = tmp_path / name / folder
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(f"name: {name}\nseed: {seed}\n")
        (path / "metrics.csv").touch()
        folders.append(path)
    refused = tmp_path / "x/seed-2"
    refused.mkdir()
    (refused / "run.log").write_text("error: mistyped")
    assert len(group_runs([*folders, refused])) == len(group_runs(folders))
    with pytest.raises(ValueError, match="none of these folders"):
        group_runs([refused])
    with pytest.raises(ValueError, match="not a run directory"):
        group_runs([tmp_path / "nowhere"])
    assert {r.name: sorted(r.runs) for r in group_runs(folders)} == {"x": [0, 1], "x loss-drepa_l1": [0], "y": [0]}
    with pytest.raises(ValueError, match="both x, seed 0"):
        group_runs([folders[0], folders[0]])
    for folder, seed in zip(folders[:2], (0, 1)):  # a long name ends in a digest, which the seed is part of
        typed = ["+experiment=x", f"seed={seed}", "stages=[fit]", *(f"module.{'long' * 9}_{i}=1" for i in range(4))]
        (folder / "overrides.yaml").write_text("\n".join(f"- {o}" for o in typed))
        folder.rename(folder.with_name(identity(typed)))
    (both,) = group_runs([folder.with_name(path.name) for folder in folders[:1] for path in folder.parent.glob("mod*")])
    assert sorted(both.runs) == [0, 1]
