"""What the cache saves of an epoch, and what an any-frame step pays for its encode, without and with the bank of noise.

    python experiments/speed/cache.py

Clips at tiny scale. What is timed is what a step needs before the network runs: reading, decoding, latents, text
tokens, V-JEPA features, the condition; and for the share also the step itself. Kinds take turns; processor time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from step import run_of, seconds

from timelapse.conditioning.any_frame import AnyFrame
from timelapse.conditioning.keyframes import known_frames
from timelapse.dataset.module import Stream, collate
from timelapse.randomness import keyed_each
from timelapse.stages import quiet
from timelapse.types import Batch


def epoch(folder: Path, batches: int) -> None:
    """First frame known: an epoch over cached latents and features against encoding online."""
    run = run_of(folder, "+experiment=drepa_vjepa")
    module, size = run.module.eval(), run.cfg.train.batch_size
    cached, plain = Stream(run.train_clips, 0), Stream(run.dataset("train"), 0)

    def batch(stream: Stream, n: int) -> None:
        names = [f"{n}:{i}" for i in range(size)]
        module.prepare(collate([stream[n * size + i] for i in range(size)]), names)

    pairs = [(seconds(batch, plain, n), seconds(batch, cached, n)) for n in range(batches)]
    online, stored = (statistics.median(x) for x in zip(*pairs))
    print(
        f"an epoch's batches, first frame known: online {online * 1e3:.0f} ms, cached {stored * 1e3:.1f} ms a batch, "
        f"{statistics.median([a / b for a, b in pairs]):.0f} times"
    )


def share(folder: Path, steps: int) -> None:
    """Any frame known: the encode's share of a step."""
    run = run_of(folder, "+experiment=finetune_only", "conditioning=any_frame")
    module, size, frames = run.module.train(), run.cfg.train.batch_size, run.cfg.video.frames
    module.materialise()
    optimizer = module.configure_optimizers()["optimizer"]
    stream, codec = Stream(run.train_clips, 0), run.model.codec
    rules = {"no bank": AnyFrame(), "bank of 8": AnyFrame(bank=8)}
    for n in range(8):  # fill the bank: it is made once a run
        last = len(codec.chunks(frames)) - 1
        rules["bank of 8"].bank.beginning(codec, n, (frames, 3, 64, 64), last, torch.device("cpu"))

    def whole(batch: Batch) -> None:
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.parts.clear()

    told, rest = {name: [] for name in rules}, []
    for step in range(steps):
        batch = collate([stream[step * size + i] for i in range(size)])
        names = [f"{draw}:{key}" for draw, key in zip(batch["draw"], batch["key"])]
        for name, rule in rules.items():  # with the draws, and so the known frames, of the step below
            told[name].append(seconds(rule, batch, codec, keyed_each(names, module.seed, "condition")))
        rest.append(seconds(whole, batch) - told["no bank"][-1])
    body = statistics.mean(rest)
    for name, values in told.items():
        encode = statistics.mean(values)
        print(
            f"any frame known, {name:9}: encode {encode * 1e3:.0f} ms of a step of {(encode + body) * 1e3:.0f} ms, "
            f"{encode / (encode + body):.0%}"
        )
    gap, bank = 0.0, rules["bank of 8"].bank
    for frame in range(1, frames):
        video, known = torch.rand(frames, 3, 64, 64) * 2 - 1, known_frames([[frame]], frames)[0]
        filler, before = bank.fill(torch.randn(frames, 3, 64, 64) * 0.07**0.5, known, frame % 8, codec)
        mixed = torch.where(known[:, None, None, None], video, filler)
        through, whole_clip = bank.moments(codec, [frame % 8], mixed[None], [before]), codec.moments(mixed[None])
        gap = max(gap, *((a - b).abs().max().item() for a, b in zip(through, whole_clip)))
    print(f"largest difference of the latents to encoding the same clip whole: {gap:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=16)
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        epoch(Path(folder) / "a", args.steps // 2)
        share(Path(folder) / "b", args.steps)


if __name__ == "__main__":
    main()
