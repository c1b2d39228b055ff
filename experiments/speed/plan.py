"""What `stages=[plan]` says, held against what a real training step holds and computes.

    python experiments/speed/plan.py

One step of +experiment=drepa_vjepa at tiny scale on the CPU, with and without gradient checkpointing, whole and with
LoRA. Bytes of state are those of the real tensors after the step; of activations, what autograd's hooks see of the real
forward pass; operations, those that torch counts of it (attention by its plain formula, whose matrices it can count).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from step import run_of
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from timelapse.activations import kept_for_backward
from timelapse.dataset.module import Stream, collate
from timelapse.plan import GIB, MOMENTS, count, planned
from timelapse.stages import quiet

KINDS = {
    "whole": [],
    "whole, checkpointing": ["model.gradient_checkpointing=true"],
    "LoRA": ["model.lora={rank: 16, alpha: 16, targets: [to_q, to_k, to_v, to_out.0]}"],
}


def size(tensors: list[Tensor]) -> float:
    return float(sum(x.numel() * x.element_size() for x in tensors))


def measured(folder: Path, *overrides: str) -> tuple[dict[str, float], dict[str, float]]:
    """(predicted, measured) by row."""
    run = run_of(folder, "+experiment=drepa_vjepa", "conditioning=any_frame", "cache.enabled=false", *overrides)
    counts, module, clips = count(run.cfg), run.module.train(), run.cfg.train.batch_size
    module.materialise()
    optimizer = module.configure_optimizers()["optimizer"]
    stream, backbone = Stream(run.dataset("train"), 0), run.module.backbone
    names, t = [f"{i}" for i in range(clips)], torch.zeros(clips, dtype=torch.long)
    batch, condition = module.prepare(collate([stream[i] for i in range(clips)]), names)

    module.step(batch, condition, t, names)  # the first pass makes what is made once
    latent = batch["latent"]
    with kept_for_backward(backbone) as kept:
        output, _ = backbone(latent, t, condition)
    bytes_, checkpointing = kept.sizes(), run.cfg.model.gradient_checkpointing
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        backbone(latent, t, condition)[0].sum().backward()
    optimizer.zero_grad()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as whole:
        module.training_step(collate([stream[i] for i in range(clips)]), 0).backward()
    optimizer.step()

    trained = [p for group in optimizer.param_groups for p in group["params"]]
    moments = [x for state in optimizer.state.values() for name, x in state.items() if name != "step"]
    plan = planned(run.cfg, counts, 1)
    wanted = {row: gib * GIB for row, gib in plan.items() if row not in ("sum", "gathered blocks")}
    wanted |= {"operations of the network": clips * counts.flops, "operations of the whole step": clips * counts.flops}
    found = {
        "parameters": size([*backbone.parameters(), *module.losses.parameters()]),
        "buffers": size([*backbone.buffers()]),
        "gradients (fp32)": size([p.grad for p in trained]),
        MOMENTS[counts.optimizer]: size(moments),
        "average of weights (fp32)": size([*module.ema.values()]),
        "activations": bytes_["inputs"] + bytes_["ends"] if checkpointing else bytes_["kept"],
        "frozen codec": size([*run.model.codec.parameters()]),
        "frozen text encoder": size([*run.model.text.parameters()]),
        "operations of the network": float(counter.get_total_flops()),
        "operations of the whole step": float(whole.get_total_flops()),
    }
    if checkpointing:  # and one block at a time, as it is run again
        backbone.gradient_checkpointing = False
        with kept_for_backward(backbone) as kept:
            backbone(latent, t, condition)
        found["activations"] += kept.sizes()["block"]
    return wanted, found


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    quiet()
    torch.set_num_threads(1)
    for kind, overrides in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            wanted, found = measured(Path(folder), *overrides)
        print(f"{kind:30} {'predicted':>16} {'measured':>16}   ratio")
        for row, value in found.items():
            print(f"{row:30} {wanted[row]:16,.0f} {value:16,.0f}   {wanted[row] / value:.4f}")


if __name__ == "__main__":
    main()
