"""report.html of a study: what its findings are, the table, and the methods side by side on the same noise."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from timelapse.atomic import write
from timelapse.dataset.write import read_video
from timelapse.report.embed import embed_videos, image_uri
from timelapse.report.page import (
    Markup,
    fold,
    given_text,
    image_tile,
    missing,
    number,
    page,
    player,
    table,
    tag,
    tiles_class,
    timeline,
    video_tile,
)
from timelapse.report.plots import scatter_plot
from timelapse.report.run_files import Sample
from timelapse.report.run_page import stand_ins
from timelapse.report.study_table import (
    MD,
    SC,
    Finding,
    Row,
    cell,
    difference,
    heading,
    judge,
    markdown,
    metric_names,
    write_csv,
)

MOST_CLIPS = 6
BADGES = {"shows": "badge shows", "does not show": "badge not"}


def write_study(
    rows: Sequence[Row],
    out: Path | str,
    title: str,
    about: str = "",
    findings: Sequence[Finding] = (),
    command: str = "",
    metrics: Sequence[str] | None = None,
) -> Path:
    """Write table.md, table.csv and report.html to `out`; returns the page.

    metrics: columns of table.md and of the page, all by default; SC is shown only with MD beside it.
    """
    if not any(row.runs for row in rows):
        reasons = "; ".join(dict.fromkeys(reason for row in rows for reason in row.failed.values()))
        raise ValueError(f"none of the {len(rows)} methods has a finished run: {reasons or 'no runs given'}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    found = metric_names(rows)
    shown = [m for m in (metrics or found) if m in found]
    if (SC in shown) != (MD in shown):
        shown = [m for m in shown if m not in (SC, MD)] if not {SC, MD} <= set(found) else [SC, MD, *shown]
        shown = list(dict.fromkeys(shown))
    head = f"<!-- {command} -->\n\n" if command else ""
    verdicts = [(finding, judge(finding, rows)) for finding in findings]
    lines = [f"- **{f.claim}**: {v.word}. {v.sentence}" for f, v in verdicts]
    (out / "table.md").write_text(head + markdown(rows, shown) + ("\n" + "\n".join(lines) + "\n" if lines else ""))
    write_csv(rows, out / "table.csv")
    seeds = sorted({seed for row in rows for seed in row.runs})
    chips = {"methods": len(rows), "seeds": ", ".join(map(str, seeds)), "runs": sum(len(row.runs) for row in rows)}
    body = [
        tag("div", "timelapse · study", class_="eyebrow"),
        tag("h1", title),
        tag("p", about, class_="lede") if about else None,
        tag("ul", *[tag("li", f"{k} ", tag("b", v)) for k, v in chips.items()], class_="chips"),
        *claims(verdicts),
        *numbers(rows, shown),
        *paired(verdicts, rows, found),
        *side_by_side(rows),
        *failures(rows),
        *stand_ins(list(dict.fromkeys(note for row in rows for run in row.runs.values() for note in run.notes))),
        tag("h2", "Make it again"),
        tag("pre", tag("code", command), class_="command") if command else None,
        fold(
            "The runs",
            tag(
                "ul",
                *[
                    tag("li", tag("code", str(run.folder)), f" — {row.name}, seed {seed}")
                    for row in rows
                    for seed, run in sorted(row.runs.items())
                ],
                class_="plain",
            ),
        ),
        tag("footer", "One file: videos, plots and numbers are inside. table.md and table.csv lie beside it."),
    ]
    path = out / "report.html"
    write(path, page(f"{title} · timelapse", *body))
    return path


def claims(verdicts: Sequence[tuple]) -> list[Markup]:
    """Each claim with what the numbers say, whichever way that is."""
    if not verdicts:
        return []
    text = (
        "Differences are paired: two methods with the same seed share data order, noise and samples' start. An "
        "interval is the wider of two 95 % t intervals, over seeds and over clips (of each the mean over seeds). "
        "A claim counts as shown when its interval lies above zero and, where another metric "
        "is to be kept, that metric's interval does not reach below minus a margin (5 % of the other method's mean, "
        "unless the claim's file says otherwise) nor lies below zero as a whole; where it does reach there, the claim "
        "is undecided."
    )
    cards = [
        tag(
            "div",
            tag("span", v.word, class_=BADGES.get(v.word, "badge")),
            tag("p", tag("b", f.claim)),
            tag("p", v.sentence, class_="soft"),
            class_="finding",
        )
        for f, v in verdicts
    ]
    return [tag("h2", "What of the paper shows at this scale"), tag("p", text), *cards]


def numbers(rows: Sequence[Row], metrics: Sequence[str]) -> list[Markup]:
    parts: list[Markup] = [tag("h2", "Numbers")]
    points = {}
    for row in rows:
        sc, md = row.values(SC), row.values(MD)
        if set(sc) & set(md):
            points[row.name] = [(md[s], sc[s]) for s in sorted(set(sc) & set(md))]
    if points:
        points |= real_clips(rows)
        svg = scatter_plot("morphing degree (MD)", "subject consistency (SC)", points)
        text = "Up: the subject stays itself. Right: it changes more. Small dots are seeds, large marks their mean."
        parts += [tag("p", text), tag("div", Markup(svg), class_="plot")]
    body = [[tag("b", row.name), len(row.runs), *[cell(list(row.values(m).values())) for m in metrics]] for row in rows]
    head = ["method", "seeds", *[heading(rows, m) for m in metrics]]
    return [
        *parts,
        table(head, body, [None, "n", *["n"] * len(metrics)]),
        tag("p", "Mean ± standard deviation over seeds.", class_="soft"),
    ]


def real_clips(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """SC and MD of the true clips, where the runs measured them."""
    for row in rows:
        for run in row.runs.values():
            sc, md = (run.metrics.get(name, {}).get("truth") for name in (SC, MD))
            if sc is not None and md is not None:
                return {"real clips": [(md, sc)]}
    return {}


def paired(verdicts: Sequence[tuple], rows: Sequence[Row], metrics: Sequence[str]) -> list[Markup]:
    """Every metric's difference for every claim, so that nobody picks the one that fits."""
    named = {row.name: row for row in rows}
    pairs = [(f.better, f.than) for f, _ in verdicts if f.better in named and f.than in named]
    body = []
    for metric in metrics:
        found = [difference(named[a], named[b], metric) for a, b in dict.fromkeys(pairs)]
        texts = ["–" if d is None else f"{number(d.mean)} [{number(d.low)}, {number(d.high)}]" for d in found]
        body.append([tag("b", metric.replace("_", " ")), *texts])
    if not pairs or not body:
        return []
    head = ["metric", *[f"{a} − {b}" for a, b in dict.fromkeys(pairs)]]
    inside = table(head, body, [None, *["n"] * len(head)])
    text = tag(
        "p",
        "Positive is better; for metrics without a direction, higher. Mean [95 % interval].",
        class_="soft",
        style="padding: 0 16px",
    )
    return [fold("All paired differences", text, inside)]


def side_by_side(rows: Sequence[Row]) -> list[Markup]:
    """Clips that every method sampled with the same seed."""
    head = tag("h2", "Side by side, on the same noise")
    seeds = sorted({seed for row in rows for seed in row.runs}, key=lambda s: (-sum(s in r.runs for r in rows), s))
    seed = seeds[0]
    shown = [row for row in rows if seed in row.runs and row.runs[seed].samples]
    if not shown:
        return [head, missing("No samples yet: run the stage sample.")]
    samples = {row.name: {s.clip: s for s in row.runs[seed].samples if "sample" in s.videos} for row in shown}
    clips = [c for c in samples[shown[0].name] if all(c in found for found in samples.values())][:MOST_CLIPS]
    if not clips:
        return [
            head,
            missing(f"The runs of seed {seed} have no clip in common of which they were given the same frames."),
        ]
    first = samples[shown[0].name]
    paths = [first[c].videos["truth"] for c in clips if "truth" in first[c].videos]
    paths += [samples[row.name][c].videos["sample"] for c in clips for row in shown]
    uris = embed_videos(paths)
    cards = [compared(first[c], {row.name: samples[row.name][c] for row in shown}, uris) for c in clips]
    text = f"Seed {seed}. For a clip, all methods start from the same noise and see the same frame, outlined in pink."
    return [head, tag("p", text), player(max(first[c].frames for c in clips) or 2), *cards]


def compared(clip: Sample, by_method: dict[str, Sample], uris: dict[Path, str]) -> Markup:
    tiles = []
    source = clip.videos.get("given") or clip.videos.get("truth")
    if source is not None:
        real = read_video(source)
        tiles = [image_tile("given", image_uri(real[f]), f"frame {f}", "given") for f in clip.known if f < len(real)]
    if "truth" in clip.videos:
        tiles.append(video_tile("real clip", uris[clip.videos["truth"]]))
    for name, sample in by_method.items():
        both = SC in sample.metrics and MD in sample.metrics
        note = f"SC {number(sample.metrics[SC])} · MD {number(sample.metrics[MD])}" if both else ""
        tiles.append(video_tile(name, uris[sample.videos["sample"]], note))
    return tag(
        "section",
        tag("h3", clip.caption or clip.key),
        tag("p", f"{given_text(clip.known, clip.frames)} · {clip.key}", class_="soft"),
        tag("div", *tiles, class_=tiles_class(len(tiles))),
        timeline(clip.frames, clip.known),
        class_="clip",
        data_known=",".join(map(str, clip.known)),
    )


def failures(rows: Sequence[Row]) -> list[Markup]:
    listed = [[row.name, seed, reason] for row in rows for seed, reason in sorted(row.failed.items())]
    if not listed:
        return []
    head = [tag("h2", "Failed runs"), tag("p", "Left out of every number above.")]
    return [*head, table(("method", "seed", "reason"), listed)]


def page_command(folders: Sequence[Path], out: Path) -> str:
    return shlex.join(["python", "-m", "timelapse.study", "--out", str(out), *map(str, folders)])
