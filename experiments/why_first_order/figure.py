"""Why relations between frames, and not frames alone: the paper's one-dimensional example, and dREPA on it.

    python experiments/why_first_order/figure.py

writes figure.png beside this file and prints the numbers in it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from timelapse.loss.relation_l2 import relation_l2

OFFSET = 0.5
COLOURS = {"shifted": "#0072B2", "partial match": "#009E73", "zigzag": "#D55E00"}  # Okabe and Ito, for all eyes


def signals() -> tuple[Tensor, dict[str, Tensor]]:
    """Ground truth (4,) and three versions of it, each with the same sum of squared errors 4 OFFSET^2."""
    truth = torch.tensor([0.8, 1.4, 2.0, 2.6], dtype=torch.float64)
    errors = {
        "shifted": [1.0, 1.0, 1.0, 1.0],
        "partial match": [0.0, 0.0, -2 / 5**0.5, -4 / 5**0.5],
        "zigzag": [1.0, -1.0, 1.0, -1.0],
    }
    return truth, {name: truth + OFFSET * torch.tensor(e, dtype=torch.float64) for name, e in errors.items()}


def per_frame(signal: Tensor, truth: Tensor) -> float:
    """Mean squared error of single frames: what a regression loss sees."""
    return (signal - truth).square().mean().item()


def pairwise(signal: Tensor, truth: Tensor) -> float:
    """Mean over frame pairs i != j of ((s_i - s_j) - (g_i - g_j))^2.

    With errors e = s - g and T frames it is 2T/(T-1) times the variance of e: a common offset is free, the rest is not.
    """
    change = (signal[:, None] - signal) - (truth[:, None] - truth)
    frames = len(signal)
    return (change.square().sum() / (frames * (frames - 1))).item()


FEATURES: dict[str, Callable[[Tensor], Tensor]] = {  # (T,) -> (T,D), what an encoder might say of a frame in state s
    "$(\\cos s, \\sin s)$": lambda s: torch.stack([s.cos(), s.sin()], 1),
    "$(1, s)$": lambda s: torch.stack([torch.ones_like(s), s], 1),
    "$s$ alone": lambda s: s[:, None],
}


def drepa(signal: Tensor, truth: Tensor, feature: Callable[[Tensor], Tensor]) -> float:
    """The training loss itself, on one token a frame."""
    return relation_l2(feature(signal)[None], feature(truth)[None]).item()


def numbers() -> dict[str, dict[str, float]]:
    """Measure -> signal -> value."""
    truth, versions = signals()
    rows = {
        "per-frame L2": lambda s: per_frame(s, truth),
        "pairwise differences": lambda s: pairwise(s, truth),
        **{f"dREPA on {name}": (lambda s, f=f: drepa(s, truth, f)) for name, f in FEATURES.items()},
    }
    return {row: {name: f(s) for name, s in versions.items()} for row, f in rows.items()}


def bars(axis, rows: dict[str, dict[str, float]], relative: bool = False) -> None:
    """Grouped bars, one group a measure, the value above each; `relative` makes the highest of each group 1."""
    for i, values in enumerate(rows.values()):
        top = max(*values.values(), 1e-9) if relative else 1.0
        for j, (name, value) in enumerate(values.items()):
            at = i + 0.27 * (j - 1)
            axis.bar(at, value / top, width=0.24, color=COLOURS[name], zorder=2)
            text = "0" if value < 1e-9 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"
            axis.annotate(text, (at, value / top), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    axis.set_xticks(range(len(rows)), rows)
    axis.tick_params(axis="x", length=0)
    axis.margins(y=0.12)


def draw(path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
        }
    )
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(11, 3.1), width_ratios=[1.05, 0.9, 1.55], layout="constrained"
    )
    truth, versions = signals()
    for name, signal in versions.items():
        left.plot(signal, "o-", color=COLOURS[name], label=name, markersize=4.5, linewidth=1.6)
    left.plot(truth, "s--", color="black", label="ground truth", markersize=4.5, linewidth=1.6, zorder=1)
    left.set_xticks(range(4), [f"$f_{i}$" for i in range(4)])
    left.set(title="a   Three versions of a signal", ylabel="state $s$", xlabel="frame", ylim=(0.5, 3.9))
    left.legend(frameon=False, fontsize=8, ncols=2, loc="upper left", handlelength=1.6, columnspacing=1)

    rows = numbers()
    captions = dict(zip(FEATURES, ("a shift is\na rotation", "a shift is\nno rotation", "degenerate:\nall rows are 1")))
    bars(middle, {"per-frame\nL2": rows["per-frame L2"], "pairwise\ndifferences": rows["pairwise differences"]})
    middle.set(title="b   Losses on the signal", ylabel="mean squared error")
    bars(right, {f"{name}\n{captions[name]}": rows[f"dREPA on {name}"] for name in FEATURES}, relative=True)
    right.set(title="c   dREPA on features of the signal", ylabel="dREPA / highest of the group")
    figure.savefig(path, dpi=200)
    plt.close(figure)


def main() -> None:
    for row, values in numbers().items():
        print(f"{row:32}" + "".join(f"  {name} {value:.6f}" for name, value in values.items()))
    draw(Path(__file__).with_name("figure.png"))


if __name__ == "__main__":
    main()
