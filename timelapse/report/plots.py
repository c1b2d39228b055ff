"""Curves and dot plots as inline SVG that follows the page's light or dark colours."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from itertools import cycle
from textwrap import fill

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from timelapse.report.run_files import Curve

INK = "#010203"  # becomes currentColor
COLOURS = (
    "#2f7fc1",
    "#e07b1a",
    "#2a9d6f",
    "#c2437a",
    "#7a5bd0",
    "#8a8f2a",
    "#c0392b",
    "#18929e",
    "#7f7f7f",
    "#5a3a22",
    "#d4a017",
    "#20407c",
)
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def line_plot(title: str, lines: dict[str, Curve], log: bool | None = None, smooth: bool = True) -> str:
    """Lines by name over training steps.

    smooth: draw long ones faint, with their running mean on top.
    log: y axis; None takes it when all is positive and spans more than a factor of 20.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for colour, (name, (steps, values)) in zip(COLOURS * 9, lines.items()):
            if smooth and len(values) > 60:
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
                axes.plot(steps, running_mean(values), color=colour, linewidth=1.6, label=name)
            else:
                marker = "o" if len(values) < 12 else None
                axes.plot(steps, values, color=colour, linewidth=1.6, marker=marker, markersize=3, label=name)
        every = [v for _, values in lines.values() for v in values]
        if log or (log is None and every and min(every) > 0 and max(every) > 20 * min(every)):
            axes.set_yscale("log")
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("step")
        axes.grid(alpha=0.15, color=INK, linewidth=0.5)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8, ncols=2)
        return to_svg(figure, title)


def scatter_plot(x_label: str, y_label: str, points: dict[str, Sequence[tuple[float, float]]]) -> str:
    """Name -> its (x, y) for each seed: small dots, joined to their mean, which carries the name."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes, markers = figure.add_subplot(), cycle("osD^v")
        for colour, (name, pairs) in zip(COLOURS * 9, points.items()):
            mean = (sum(x for x, _ in pairs) / len(pairs), sum(y for _, y in pairs) / len(pairs))
            for x, y in pairs:
                axes.plot([x, mean[0]], [y, mean[1]], color=colour, linewidth=0.8, alpha=0.5)
                axes.plot(x, y, "o", color=colour, markersize=3.5, alpha=0.6)
            axes.plot(*mean, next(markers), color=colour, markersize=9, label=fill(name, 28))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(alpha=0.15, color=INK, linewidth=0.5)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return to_svg(figure, f"{x_label} against {y_label}")


def running_mean(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Exponential mean over about `share` of the curve, unbiased at its start."""
    keep = 1 - 1 / max(2.0, share * len(values))
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return means


def to_svg(figure: Figure, title: str) -> str:
    """Inline <svg>: ids do not clash with other plots of the page, and the same numbers give the same text."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": title}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    figure.clear()
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{escape(title)}" ', svg, count=1)
