"""report.html of one run: what it is, its two headline numbers, its videos, its curves, how to make it again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

import torch
from tqdm import tqdm

from timelapse.atomic import write
from timelapse.dataset.write import FPS, read_video
from timelapse.report.embed import embed_videos, image_uri
from timelapse.report.page import (
    DIRECTIONS,
    Markup,
    fold,
    given_text,
    image_tile,
    join,
    missing,
    number,
    page,
    player,
    span_text,
    table,
    tag,
    tiles_class,
    timeline,
    versions,
    video_tile,
)
from timelapse.report.plots import line_plot
from timelapse.report.run_files import RunFiles, Sample, read_run
from timelapse.report.sheet import VARIANTS, contact_sheet_image, pick

SC, MD = "subject_consistency", "morphing_degree"
MOST_CLIPS = 16
LABELS = {"truth": "real clip", "sample": "sample", "given": "given", **VARIANTS}


def write_report(run_dir: Path | str) -> Path:
    """Write report.html from what is in the run directory; parts that are not there yet are named as missing."""
    run = read_run(run_dir)
    config = run.config
    body = [
        tag("div", "timelapse · run report", class_="eyebrow"),
        tag("h1", run.name),
        tag("p", config.get("about") or "A video diffusion run.", class_="lede"),
        facts(run),
        headline(run),
        *clips(run),
        *curves(run),
        *previews(run),
        *metrics(run),
        *honesty(run),
        *reproduce(run),
        tag("footer", "One file: videos, plots and numbers are inside; nothing is loaded from elsewhere."),
    ]
    path = run.folder / "report.html"
    write(path, page(f"{run.name} · timelapse", *body))
    return path


def facts(run: RunFiles) -> Markup:
    """The run in a line of chips."""
    config, video = run.config, run.config.get("video") or {}
    trained = max((s[-1] for n, (s, _) in run.curves.items() if n.startswith("train/")), default=None)
    weights = sorted({short_weights(sample.weights, run.folder) for sample in run.samples if sample.weights})
    said = {
        "clips": f"{video['frames']} × {video['height']} × {video['width']}" if "frames" in video else None,
        "loss": " + ".join(config.get("loss") or {}) or None,
        "steps": None if trained is None else trained + 1,
        "seed": run.seed,
        "sampled with": " · ".join(weights) or None,
        "commit": config.get("git_commit"),
    }
    chips = [tag("li", f"{name} ", tag("b", value)) for name, value in said.items() if value is not None]
    return tag("ul", *chips, class_="chips")


def short_weights(said: str, folder: Path) -> str:
    """A checkpoint of this run by its name, of another after the run's; anything else as it stands."""
    path = Path(said)
    if not said.endswith(".ckpt") or path.parent.name != "checkpoints":
        return said
    run = path.absolute().parents[1]
    return path.stem if run == folder.absolute() else "/".join((*run.parts[-2:], path.stem))


def headline(run: RunFiles) -> Markup:
    """SC and MD, never one without the other: a static clip has a perfect SC."""
    if SC not in run.metrics or MD not in run.metrics:
        return missing("No headline numbers yet: they come from the stages sample and evaluate.")

    def side(name: str, title: str, arrow: str, text: str, class_: str) -> Markup:
        m = run.metrics[name]
        low, high = m.get("range") or (0, 1)
        share = 100 * min(1, max(0, (m["value"] - low) / ((high - low) or 1)))
        spread = clip_spread(run, name)
        return tag(
            "div",
            tag("h3", f"{title} {arrow}"),
            tag(
                "div",
                number(m["value"]),
                tag("small", f"  ± {number(spread)}" if spread is not None else ""),
                class_="number",
            ),
            tag("div", tag("i", style=f"width:{share:.1f}%"), class_="meter"),
            tag("p", text),
            class_=class_,
        )

    n = run.metrics[SC].get("n")
    real = [(s, run.metrics[name].get("truth")) for s, name in (("SC", SC), ("MD", MD))]
    against = ", ".join(f"{s} {number(value)}" for s, value in real if value is not None)
    return tag(
        "div",
        side(
            SC,
            "Subject consistency (SC)",
            "↑",
            "Does the subject stay itself from frame to frame? A static clip has 1.",
            "sc",
        ),
        side(
            MD,
            "Morphing degree (MD)",
            "",
            "How far does the subject change from first to last frame? A static clip has 0.",
            "md",
        ),
        tag(
            "div",
            "Read together: neither means anything alone. ",
            f"Mean ± standard deviation over n = {n} clips." if n else "",
            f" The real clips have {against}." if against else "",
            class_="together",
        ),
        class_="pair",
    )


def clip_spread(run: RunFiles, name: str) -> float | None:
    values = [s.metrics[name] for s in run.samples if name in s.metrics]
    return stdev(values) if len(values) > 1 else None


def clips(run: RunFiles) -> list[Markup]:
    """A card a clip: the given frame, the real clip and the samples, in step; a film strip below."""
    head = tag("h2", "Samples")
    shown = run.samples[:MOST_CLIPS]
    if not shown:
        return [head, missing("No samples yet: run the stage sample, e.g. stages=[sample,evaluate,report].")]
    frames = max(s.frames for s in shown)
    uris = embed_videos([p for s in shown for name, p in s.videos.items() if name != "given"])
    more = len(run.samples) - len(shown)
    note = f"{len(shown)} clips; {more} more lie in samples/. " if more else ""
    text = (
        f"{note}The network saw the frame framed in ",
        tag("b", "pink", class_="mark"),
        " and the caption, and made the rest of the clip, before and after it.",
    )
    bar = tqdm(shown, desc="clips of the page", delay=2, leave=False)
    return [head, tag("p", *text), player(frames or 2, FPS), *[clip(s, uris, i < 2) for i, s in enumerate(bar)]]


def clip(sample: Sample, uris: dict[Path, str], open_strip: bool) -> Markup:
    source = sample.videos.get("given") or sample.videos.get("truth")
    tiles, rows = [], {}
    if source is not None:
        real = read_video(source)
        tiles += [image_tile("given", image_uri(real[f]), f"frame {f}", "given") for f in sample.known if f < len(real)]
    for name, path in sample.videos.items():
        if name != "given":
            tiles.append(video_tile(LABELS.get(name, name), uris[path]))
            rows[LABELS.get(name, name)] = path
    clear = (0, 0, 0, 0)  # the page's own colour shows between the frames
    strip = contact_sheet_image(list(rows.values()), known=[sample.known] * len(rows), height=96, background=clear)
    uri = image_uri(torch.from_numpy(strip.copy()).permute(2, 0, 1))
    picture = tag("div", tag("img", src=uri, alt=f"film strip: {' above '.join(rows)}"), class_="strip")
    numbers = [tag("li", f"{short(name)} ", tag("b", number(v))) for name, v in sample.metrics.items()]
    return tag(
        "section",
        tag("h3", sample.caption or sample.key),
        tag("p", f"{given_text(sample.known, sample.frames)} · {sample.key}", class_="soft"),
        tag("div", *tiles, class_=tiles_class(len(tiles))),
        timeline(sample.frames, sample.known),
        ends(sample),
        fold(f"film strip: {' above '.join(rows)}", picture, open_=open_strip),
        tag("ul", *numbers, class_="numbers") if numbers else None,
        class_="clip",
        id=f"clip-{sample.key}",
        data_known=",".join(map(str, sample.known)),
    )


def ends(sample: Sample) -> Markup | None:
    if not sample.seconds or len(sample.seconds) < 2:
        return None
    return tag("p", tag("span", "0"), tag("span", span_text(sample.seconds[-1] - sample.seconds[0])), class_="ends")


def short(name: str) -> str:
    return {SC: "SC", MD: "MD", f"{SC}_min": "SC min"}.get(name, name.replace("_", " "))


def curves(run: RunFiles) -> list[Markup]:
    """Training loss by term; held-out loss by term, a line a timestep."""
    head = tag("h2", "Loss by term")
    train = {n: c for n, c in run.curves.items() if n.startswith("train/") and c[0]}
    given = run.config.get("input") or {}
    if not train and (given.get("image") or given.get("frames") or "fit" not in run.config.get("stages", ["fit"])):
        return []  # nothing was trained here
    if not train:
        return [head, missing("No curves yet: metrics.csv appears with the stage fit.")]
    plots = [
        line_plot(name.replace("train/", "training: "), {name: c})
        for name, c in train.items()
        if name != "train/loss" or len(train) != 2
    ]  # with one term, the sum says the same
    held_out: dict[str, dict[str, Any]] = {}
    for name, curve in run.curves.items():
        match = re.fullmatch(r"val/(.+?)_?t([\d.]+)", name)
        if match:
            held_out.setdefault(match[1], {})[float(match[2])] = curve
    for term, by_t in held_out.items():
        plots.append(line_plot(f"held out: {term}", {f"t = {t:g}": by_t[t] for t in sorted(by_t)}))
    both = {short(m): run.curves[f"sample/{m}"] for m in (SC, MD) if f"sample/{m}" in run.curves}
    plots += [line_plot("samples while training", both, log=False)] if len(both) == 2 else []
    rates = {n: c for n, c in run.curves.items() if n.startswith("lr")}
    plots += [line_plot("learning rate", rates, log=False, smooth=False)] if rates else []
    text = (
        "Held-out losses are measured at fixed timesteps with noise that never changes, so that they move only when "
        "the network does; the training loss mostly shows which timesteps were drawn."
    )
    said = [tag("p", text)] if held_out else []
    return [head, *said, tag("div", *[tag("div", Markup(svg)) for svg in plots], class_="plots")]


def previews(run: RunFiles) -> list[Markup]:
    """One clip as it was sampled while training: a strip a step, at most eight of them."""
    steps = {int(path.name[4:]): path for path in sorted((run.folder / "training_samples").glob("step[0-9]*"))}
    keys = [{clip.name for clip in path.glob("*.mp4")} for path in steps.values()]
    if not (common := sorted(set.intersection(*keys)) if keys else []):
        return []
    chosen = [list(steps)[i] for i in pick(len(steps), 8)]
    strip = contact_sheet_image(
        [steps[step] / common[0] for step in chosen], [f"step {step}" for step in chosen], height=72
    )
    uri = image_uri(torch.from_numpy(strip.copy()).permute(2, 0, 1))
    text = f"{Path(common[0]).stem}, sampled from the same noise each time."
    picture = tag("div", tag("img", src=uri, alt="film strips by step"), class_="strip")
    return [tag("h2", "While training"), tag("p", text), picture]


def metrics(run: RunFiles) -> list[Markup]:
    """Every number with the network it reads, its direction, range, n, and what it measures."""
    head = tag("h2", "Metrics")
    if not run.metrics:
        return [head, missing("No metrics yet: run the stage evaluate, e.g. stages=[evaluate,report].")]
    besides = {"before": "before finetuning", "truth": "real clips"}
    besides = {k: title for k, title in besides.items() if any(m.get(k) is not None for m in run.metrics.values())}
    rows = []
    for name, m in run.metrics.items():
        first, _, rest = str(m.get("what") or "").partition("\n\n")
        what = join([" ".join(first.split()), fold("more", tag("p", " ".join(rest.split()))) if rest else None])
        low, high = m.get("range") or (None, None)
        spread, known = clip_spread(run, name), "higher_is_better" in m
        rows.append(
            [
                join([tag("b", name.replace("_", " ")), tag("div", m.get("network") or "", class_="soft")]),
                number(m["value"]),
                f"± {number(spread)}" if spread is not None else "",
                *(number(m.get(k)) for k in besides),
                DIRECTIONS[m["higher_is_better"]] if known else "",
                "" if low is None else f"{low:g} … {high:g}",
                m.get("n") or "",
                what,
            ]
        )
    text = "Mean over clips, ± standard deviation over clips."
    text += " What the real clips have says what to expect." if "truth" in besides else ""
    if "before" in besides:
        text += " Before finetuning: by the weights that training began on, from the same noise."
    columns = ("metric", "value", "spread", *besides.values(), "direction", "range", "n", "what it measures")
    kinds = ("fixed", "n", "n", *["n"] * len(besides), "fixed", "n", "n", "wide")
    return [head, tag("p", text), table(columns, rows, kinds)]


def honesty(run: RunFiles) -> list[Markup]:
    """What stands in for what; which files were left out, and why."""
    parts = []
    parts += stand_ins(run.notes)
    if run.footage:
        names = list(dict.fromkeys(name for said in run.footage.values() for name in said if name != "split"))
        text = lambda x: ", ".join(f"{k}: {v}" for k, v in x.items()) if isinstance(x, dict) else "" if x is None else x
        rows = [[name.replace("_", " "), *(text(said.get(name)) for said in run.footage.values())] for name in names]
        parts += [tag("h2", "Footage"), table(("", *run.footage), rows)]
    if run.skipped:
        rows = [[path, reason] for path, reason in run.skipped]
        parts += [
            tag("h2", "Skipped files"),
            tag("p", f"{len(rows)} could not be used; none was replaced by another."),
            table(("file", "reason"), rows),
        ]
    return parts


def stand_ins(notes: Sequence[str]) -> list[Markup]:
    if not notes:
        return []
    return [tag("h2", "What stands in for what"), tag("ul", *[tag("li", n) for n in notes], class_="plain")]


def reproduce(run: RunFiles) -> list[Markup]:
    """Command, commit, versions, config."""
    parts: list[Markup] = [tag("h2", "Make it again")]
    if run.command:
        parts.append(tag("pre", tag("code", run.command), class_="command"))
    commit = run.config.get("git_commit")
    if commit:
        changed = " with changes that were not committed" if str(commit).endswith("+") else ""
        before = f" Its training began at commit {run.began}." if run.began not in ("", commit) else ""
        parts.append(tag("p", f"At commit {str(commit).rstrip('+')}{changed}.{before}"))
    parts.append(fold("Versions", table(("package", "version"), versions())))
    if run.config_text:
        parts.append(fold("Config", tag("pre", tag("code", run.config_text))))
    return parts
