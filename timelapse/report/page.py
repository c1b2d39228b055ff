"""Pieces of a page: everything that comes from outside is escaped here, once."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from timelapse.dataset.write import FPS

HERE = Path(__file__).parent
PACKAGES = ("timelapse", "torch", "lightning", "hydra-core", "diffusers", "transformers", "peft", "torchmetrics")
ARROWS = {True: "↑", False: "↓", None: ""}
DIRECTIONS = {True: "↑ higher is better", False: "↓ lower is better", None: "no direction alone"}


class Markup(str):
    """Text that is HTML already; every other string is escaped by `tag`."""


def tag(name: str, *inside: object, **attributes: object) -> Markup:
    """`tag("p", "a < b", class_="soft")`; strings are escaped, `Markup` is not, None is left out."""
    said = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    body = join(inside)
    return Markup(f"<{name}{said}>" if name in ("img", "input") else f"<{name}{said}>{body}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    """One after the other, escaped where it is not Markup."""
    return Markup("".join(p if isinstance(p, Markup) else escape(str(p)) for p in parts if p is not None))


def page(title: str, *body: object) -> str:
    """The whole document, with its style and script inside."""
    style, script = (HERE / "page.css").read_text(), (HERE / "page.js").read_text()
    head = join(
        [
            Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
            Markup('<meta name="color-scheme" content="light dark">'),
            tag("title", title),
            tag("style", Markup(style)),
        ]
    )
    main = tag("main", *body)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{main}<script>{script}</script></body></html>\n'


def player(frames: int, fps: float = FPS) -> Markup:
    """The bar that plays all videos; the script shows it, without it each video has its own controls."""
    speeds = [tag("option", f"{s}×", value=s, selected=s == 1) for s in (0.25, 0.5, 1, 2)]
    return tag(
        "div",
        tag("button", "▶ Play", type="button"),
        tag("input", type="range", min=0, max=frames - 1, step=1, value=0, aria_label="frame"),
        tag("output", ""),
        tag("select", *speeds, aria_label="speed"),
        class_="player",
        data_frames=frames,
        data_fps=fps,
        hidden=True,
    )


def video_tile(label: str, uri: str, note: str = "") -> Markup:
    video = tag("video", src=uri, muted=True, loop=True, playsinline=True, controls=True, preload="auto")
    return tag("figure", tag("figcaption", tag("b", label), tag("span", note)), video)


def image_tile(label: str, uri: str, note: str = "", class_: str | None = None) -> Markup:
    caption = tag("figcaption", tag("b", label), tag("span", note))
    return tag("figure", caption, tag("img", src=uri, alt=f"{label} {note}"), class_=class_)


def tiles_class(count: int) -> str:
    """Of a row of so many tiles: four stand side by side, more are small."""
    return "tiles many" if count > 4 else "tiles four" if count == 4 else "tiles"


def timeline(frames: int, known: Sequence[int]) -> Markup:
    """A cell a frame, the given ones filled; the script outlines the one that is shown."""
    cells = [tag("i", class_="given" if frame in known else None) for frame in range(frames)]
    return tag("div", *cells, class_="time", title="frames; the coloured ones were given")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], classes: Sequence[str | None] = ()) -> Markup:
    """classes: of the cells of each column."""
    classes = [*classes, *[None] * (len(head) - len(classes))]
    body = [tag("tr", *[tag("td", cell, class_=c) for cell, c in zip(row, classes)]) for row in rows]
    return tag(
        "div",
        tag("table", tag("thead", tag("tr", *[tag("th", h) for h in head])), tag("tbody", *body)),
        class_="scroll",
    )


def fold(summary: str, *inside: object, open_: bool = False) -> Markup:
    return tag("details", tag("summary", summary), *inside, open=open_)


def missing(text: str) -> Markup:
    return tag("p", text, class_="missing")


def given_text(known: Sequence[int], frames: int) -> str:
    """[8], 17 -> 'frame 8 of 0–16 given'."""
    if not known:
        return "no frame given"
    return f"frame{'s' if len(known) > 1 else ''} {', '.join(map(str, known))} of 0–{frames - 1} given"


def span_text(seconds: float) -> str:
    """93600 -> '26 h'; the largest unit of which there are at least two."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.3g} s"


def number(value: float | None) -> str:
    """0.0123, 0.912, 34.65: a real minus; '–' for what is not there."""
    if value is None or value != value:
        return "–"
    decimals = 4 if abs(value) < 0.0995 else 3 if abs(value) < 10 else 2
    return f"{value:.{decimals}f}".replace("-", "−")


def versions() -> list[tuple[str, str]]:
    """Of the process that writes the report."""
    found = [("python", platform.python_version()), ("platform", platform.platform(terse=True))]
    for name in PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
