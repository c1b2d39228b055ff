"""What each part of ConsistI2V costs at inference: parameters, FLOPs, time and memory (the right half of Table 3).

    python experiments/consisti2v_ablation/cost.py [--scale tiny] [--repeats 3] [--device cpu]

One call of the network on one clip, batch 1, float32; VAE and text encoder are the same in all rows and left out, as in
the paper. FLOPs are counted by torch (a multiply-add is 2). Memory is the peak above what lay there before the call:
allocated on a GPU, resident on a CPU (sampled every 2 ms). FrameInit is a filter before the first step: its time is
its own column.
"""

from __future__ import annotations

import argparse
import ctypes
import threading
import time

import torch
from hydra import compose, initialize_config_dir
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from timelapse.build import build
from timelapse.run import CONF
from timelapse.sampler.init import FrameInit
from timelapse.types import Condition

ROWS = {
    "full": [],
    "without temporal": ["model.window=1"],
    "without spatial": ["model.first_frame=false"],
    "without both": ["model.window=1", "model.first_frame=false"],
}


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def peak_of(call, device: torch.device) -> float:
    """MiB above what lay there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before, peak, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return (peak[0] - before) / 2**20


def seconds_of(call, repeats: int, device: torch.device) -> float:
    """The best of `repeats`; on a CPU of one thread's CPU time, so that other work on the machine does not count."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    best = float("inf")
    for _ in range(repeats):
        started = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - started)
    return best


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", default="tiny", choices=["tiny", "paper"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(1)
    print("| row | parameters M | GFLOPs a call | seconds a call | peak MiB | FrameInit ms |")
    print("|---|---|---|---|---|---|")
    for row, overrides in ROWS.items():
        with initialize_config_dir(str(CONF), version_base="1.3"):
            options = ["+experiment=consisti2v", f"scale={args.scale}", "model.weights=null", *overrides]
            cfg = compose("config", options)
        model = build(cfg.model)
        network = model.backbone.to(device).eval()
        shape = (1, *model.latent_shape(cfg.video.frames, cfg.video.height, cfg.video.width))
        z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        known = torch.zeros(1, shape[1], dtype=torch.bool, device=device)
        known[:, 0] = True
        tokens = torch.zeros(1, cfg.model.text.max_position_embeddings, cfg.model.text.hidden_size, device=device)
        condition, t = Condition(z, known, tokens), torch.tensor([500], device=device)
        call = lambda n=network, z=z, t=t, c=condition: n(z, t, c)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused ones go uncounted
            call()
        start = lambda z=z, p=model.process: FrameInit()(z, z, p)
        start()
        parameters = sum(p.numel() for p in network.parameters()) / 1e6
        row_numbers = [
            f"{parameters:.2f}",
            f"{counter.get_total_flops() / 1e9:.2f}",
            f"{seconds_of(call, args.repeats, device):.3f}",
            f"{peak_of(call, device):.0f}",
            f"{1e3 * seconds_of(start, args.repeats, device):.1f}",
        ]
        print(f"| {row} | {' | '.join(row_numbers)} |", flush=True)


if __name__ == "__main__":
    main()
