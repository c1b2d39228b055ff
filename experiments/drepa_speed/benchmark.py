"""Time and memory of the dREPA loss, forward and backward, against the forms it replaces, on the same tensors.

    python experiments/drepa_speed/benchmark.py                        # the whole table
    python experiments/drepa_speed/benchmark.py --tokens 4400 --width 768

Each case runs in a process of its own, on one thread. Time is the CPU time of that thread (equal to wall time on an
idle machine, less disturbed on a busy one), after a warm-up, the best of the runs that fit into 5 s. Memory is
the peak of what torch's
allocator holds above the inputs, counted to the byte from the profiler's allocation events in a second run, the
gradient of the projected features included. "resident" is the same as the operating system sees it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from timelapse.loss.relation_l1 import relation_l1
from timelapse.loss.relation_l2 import relation_l2

TOKENS = (1024, 4400, 9000, 17550)
WIDTHS = (768, 1024)


def naive(x: Tensor, y: Tensor) -> Tensor:
    """The paper's equation: two (N,N) matrices of cosines; the diagonal of their difference is 0."""
    x, y = F.normalize(x, dim=2), F.normalize(y, dim=2)
    tokens = x.shape[1]
    return (x @ x.mT - y @ y.mT).square().sum((1, 2)) / (tokens * (tokens - 1))


def videorepa(x: Tensor, y: Tensor) -> Tensor:
    """VideoREPA's token relation distillation, as its formula stands."""
    x, y = F.normalize(x, dim=2), F.normalize(y, dim=2)
    return ((x @ x.mT - y @ y.mT).abs() - 0.1).relu().mean((1, 2))


def linear(x: Tensor, y: Tensor) -> Tensor:
    """The linear form of `relation_l2`, left to autograd."""
    x, y = F.normalize(x, dim=2), F.normalize(y, dim=2)
    a, b, tokens = x - y, x + y, x.shape[1]
    r = a.mT @ b
    return ((a.mT @ a * (b.mT @ b)).sum((1, 2)) + (r * r.mT).sum((1, 2))) / (2 * tokens * (tokens - 1))


def trd(x: Tensor, y: Tensor) -> Tensor:
    """VideoREPA's loss in tiles, as `timelapse.loss.trd` has it."""
    return relation_l1(x, y, margin=0.1, diagonal=True)


CASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "naive": naive,
    "linear": linear,
    "drepa": relation_l2,
    "videorepa": videorepa,
    "trd": trd,
}


def inputs(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """(1,N,D) each: features with a common part, and projected tokens half way to them."""
    g = torch.Generator().manual_seed(0)
    y = torch.randn(1, tokens, width, generator=g) + 0.7 * torch.randn(1, 1, width, generator=g)
    return (y + torch.randn(1, tokens, width, generator=g)).requires_grad_(), y


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes that torch's CPU allocator held at once during `run`, above what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [(e.start_ns(), e.nbytes()) for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, size in sorted(events):
        held += size
        peak = max(peak, held)
    return peak


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM the most since the last reset. Linux; 0 elsewhere."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(field))


def measure(case: str, tokens: int, width: int) -> dict[str, float | int | str]:
    torch.set_num_threads(1)
    loss = CASES[case]
    warm_x, warm_y = inputs(600, width)
    loss(warm_x, warm_y).sum().backward()
    x, y = inputs(tokens, width)

    def run() -> float:
        x.grad = None
        value = loss(x, y).sum()
        value.backward()
        return value.item()

    before = resident("VmRSS")
    if before:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
    seconds = []
    while not seconds or (sum(seconds) < 5 and len(seconds) < 10):
        start = time.process_time()
        value = run()
        seconds.append(time.process_time() - start)
    high = resident("VmHWM") - before
    x.grad = None
    return {
        "case": case,
        "tokens": tokens,
        "width": width,
        "loss": value,
        "seconds": round(min(seconds), 4),
        "peak_mib": round(peak_bytes(run) / 2**20, 1),
        "resident_mib": round(high / 2**20, 1),
    }


def table(rows: list[dict]) -> str:
    """Markdown, one line a size; ratios are against `naive` of the same size."""
    lines = [
        "| N | D | naive | linear, autograd | **drepa** | VideoREPA | trd | drepa is faster by | and smaller by |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for tokens, width in sorted({(r["tokens"], r["width"]) for r in rows}):
        cells = {r["case"]: r for r in rows if (r["tokens"], r["width"]) == (tokens, width)}
        shown = " | ".join(f"{cells[c]['seconds']:.2f} s, {cells[c]['peak_mib']:.0f} MiB" for c in CASES)
        faster = cells["naive"]["seconds"] / cells["drepa"]["seconds"]
        smaller = cells["naive"]["peak_mib"] / cells["drepa"]["peak_mib"]
        lines.append(f"| {tokens} | {width} | {shown} | {faster:.1f}x | {smaller:.0f}x |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="*", default=TOKENS)
    parser.add_argument("--width", type=int, nargs="*", default=WIDTHS)
    parser.add_argument("--case", choices=CASES, help="measure one case in this process and print its JSON")
    parser.add_argument(
        "--out", type=Path, help="keep the rows in this JSON file; what it holds already is not run again"
    )  # noqa: E501
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.case, args.tokens[0], args.width[0])))
        return
    rows = json.loads(args.out.read_text()) if args.out and args.out.exists() else []
    done = {(r["case"], r["tokens"], r["width"]) for r in rows}
    for tokens in args.tokens:
        for width in args.width:
            for case in CASES:
                if (case, tokens, width) in done:
                    continue
                command = [sys.executable, __file__, "--case", case, "--tokens", str(tokens), "--width", str(width)]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                rows.append(json.loads(output.splitlines()[-1]))
                print(rows[-1], file=sys.stderr, flush=True)
                if args.out:
                    args.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
