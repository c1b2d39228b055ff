"""What a training step of the package costs over a bare loop, and what dREPA on cached features adds to it.

    python experiments/speed/step.py

Real runs at tiny scale, first frame known, latents and features cached. After each step that Lightning takes, a bare
loop over the same network, batch and optimizer takes one, in the same process, so that a busy machine slows down both;
likewise a step with dREPA and one without. Seconds of processor time; the ratio is the median of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from timelapse.build import frozen
from timelapse.dataset.module import Stream, collate
from timelapse.parts import Run
from timelapse.run import CONF
from timelapse.stages import fit, quiet
from timelapse.types import Condition


def run_of(folder: Path, *overrides: str) -> Run:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        small = ["conditioning=first_frame", "trainer=cpu", "dataset.size=8", "train.validation_clips=2"]
        never = ["train.validate_every=1000", "train.checkpoint_every=1000", f"paths.cache={folder}/cache"]
        cfg = compose("config", [*small, *never, *overrides])
    run = Run(frozen(cfg), folder / "run")
    run.freeze()
    return run


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """Processor time."""
    began = time.process_time()
    work(*arguments)
    return time.process_time() - began


def bare(run: Run) -> Callable[[], None]:
    """One step of the loop one would write by hand: the cached batch, noise, network, loss, clipping, AdamW."""
    network, process = deepcopy(run.module.backbone), run.model.process
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4, weight_decay=1e-4, betas=(0.9, 0.95), fused=True)
    stream, size, at = Stream(run.train_clips, 0), run.cfg.train.batch_size, [0]

    def step() -> None:
        batch = collate([stream[at[0] + i] for i in range(size)])
        at[0] += size
        z0 = batch["mean"] + batch["std"] * torch.randn_like(batch["mean"])
        told = torch.zeros_like(z0)
        told[:, :1] = batch["first_mean"] + batch["first_std"] * torch.randn_like(batch["first_mean"])
        known = torch.zeros(size, run.cfg.video.frames, dtype=torch.bool)
        t, noise = torch.randint(process.steps, (size,)), torch.randn_like(z0)
        condition = Condition(told, known, batch["tokens"])
        output, _ = network(process.noise(z0, noise, t), t, condition)
        loss = (output - process.target(z0, noise, t)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return step


def against_a_bare_loop(folder: Path, steps: int) -> list[tuple[float, float]]:
    """(under Lightning, bare) seconds of each pair."""
    run, pairs, clock = run_of(folder, "+experiment=finetune_only", f"train.steps={steps}"), [], []
    log = run.module.on_train_batch_end

    def after_step(*args: object) -> None:
        log(*args)
        if not clock:
            clock.append(bare(run))
        else:
            pairs.append((time.process_time() - clock[1], seconds(clock[0])))
        clock[1:] = [time.process_time()]

    run.module.on_train_batch_end = after_step
    fit(run)
    return pairs


def with_and_without(folder: Path, steps: int) -> list[tuple[float, float]]:
    """(with dREPA, without) seconds of each pair: forward, backward, clipping and AdamW of the module."""
    run = run_of(folder, "+experiment=drepa_vjepa")
    module, pairs = run.module.train(), []
    module.materialise()
    optimizer = module.configure_optimizers()["optimizer"]
    stream, size = Stream(run.train_clips, 0), run.cfg.train.batch_size
    drepa, taps = module.losses["drepa"], module.taps

    def step(at: int, losses: dict) -> None:
        module.losses, module.taps = torch.nn.ModuleDict(losses), taps if len(losses) > 1 else ()
        loss = module.training_step(collate([stream[at + i] for i in range(size)]), 0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        module.parts.clear()

    denoise = {"denoise": module.losses["denoise"]}
    for n in range(steps):
        both = seconds(step, n * size, {**denoise, "drepa": drepa})
        pairs.append((both, seconds(step, n * size, denoise)))
    return pairs[1:]


PARTS = {  # of a step under Lightning: function, file
    "network forward": ("forward", "cogvideox_backbone.py"),
    "backward": ("run_backward", "~"),
    "clip, condition and tokens made ready": ("prepare", "denoising.py"),
    "noise": ("randn", "randomness.py"),
    "clipping": ("configure_gradient_clipping", "optimizer.py"),
    "AdamW": ("_fused_adam", "adam.py"),
    "average of the weights": ("update_average", "average.py"),
    "logging": ("on_train_batch_end", "denoising.py"),
    "clips from the cache": ("__getitem__", "cache.py"),
    "all of it": ("advance", "training_epoch_loop.py"),
}


def profile(folder: Path, steps: int) -> None:
    """Milliseconds a step that Python saw in each part, one within another; the start is taken off by a shorter run."""
    seen = []
    for n in (1, steps + 1):
        run = run_of(folder / str(n), "+experiment=finetune_only", f"train.steps={n}", "train.validate_every=1000")
        watch = cProfile.Profile(time.process_time)
        watch.runcall(fit, run)
        stats = pstats.Stats(watch).stats
        for label, (what, where) in PARTS.items():
            if not any(what in name and file.endswith(where) for file, _, name in stats):
                raise ValueError(f"{label}: no {what} in {where} any more; look where it went and change PARTS")
        seen.append({
            label: sum(row[3] for (file, _, name), row in stats.items() if what in name and file.endswith(where))
            for label, (what, where) in PARTS.items()
        })  # fmt: skip
    for label in PARTS:
        print(f"{label:42} {(seen[1][label] - seen[0][label]) / steps * 1e3:8.1f} ms a step")


def row(name: str, pairs: list[tuple[float, float]]) -> str:
    ratios = [a / b for a, b in pairs]
    low, high = (sorted(ratios)[int(q * (len(ratios) - 1))] for q in (0.25, 0.75))
    a, b = (statistics.median(x) for x in zip(*pairs))
    return f"{name:42} {a * 1e3:8.0f} {b * 1e3:8.0f} {statistics.median(ratios):7.3f}   {low:.3f} to {high:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=24, help="pairs of steps for each row")
    parser.add_argument("--profile", action="store_true", help="where the time of a step goes, instead")
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.profile:
            return profile(Path(folder), args.steps)
        rows = [row("module under Lightning / bare loop", against_a_bare_loop(Path(folder) / "a", args.steps))]
        rows.append(row("with dREPA / without", with_and_without(Path(folder) / "b", args.steps)))
    print(f"{'':42} {'ms':>8} {'ms':>8} {'ratio':>7}   middle half")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
