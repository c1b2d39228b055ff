"""The plan stage: memory per device, counted on the meta device before any weight is loaded.

Parameters, gradients, optimizer and average are exact counts. Activations follow Korthikanti et al. 2022
(arXiv:2205.05198, eq. 2 without the attention matrix, which SDPA never stores): 34 bytes per token and width for a
16-bit block, of which 2 remain when the block is recomputed. What no formula sees (allocator slack, communication
buffers) is not in the sum.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from timelapse.build import build

log = logging.getLogger("timelapse")
GIB = 2**30


@dataclass
class Counts:
    """What a training step holds. Parameters are numbers, not bytes."""

    parameters: int  # of the backbone
    trained: int  # of the backbone, with gradients
    blocks: int
    width: int
    tokens: int  # video and text tokens of one clip
    frozen: dict[str, int]  # codec, text encoder: parameters


def memory(
    counts: Counts,
    batch_size: int,
    shards: int = 1,
    checkpointing: bool = True,
    half: bool = True,
    ema: bool = True,
    frozen_resident: bool = True,
    frozen_bytes: int = 4,
) -> dict[str, float]:
    """GiB per device. shards: devices that share parameters, gradients, optimizer and average (1 for DDP)."""
    word = 2 if half else 4
    per_block = 34 * counts.tokens * counts.width * word / 2
    kept = counts.blocks * (2 * counts.tokens * counts.width * word / 2) if checkpointing else counts.blocks * per_block
    live = per_block if checkpointing else 0.0
    largest = counts.parameters / counts.blocks  # FSDP gathers one block at a time, and prefetches the next
    rows = {
        "parameters (fp32)": 4 * counts.parameters / shards,
        "gradients (fp32)": 4 * counts.trained / shards,
        "AdamW moments (fp32)": 8 * counts.trained / shards,
        "average of weights (fp32)": 4 * counts.trained / shards if ema else 0,
        "gathered blocks": 2 * word * largest if shards > 1 else (2 * counts.parameters if half else 0),
        "activations": batch_size * (kept + live),
    }
    if frozen_resident:
        rows |= {f"frozen {name}": frozen_bytes * n for name, n in counts.frozen.items()}
    rows = {name: value / GIB for name, value in rows.items()}
    return rows | {"sum": sum(rows.values())}


def count(cfg: DictConfig) -> Counts:
    """Build the backbone on meta and count."""
    with torch.device("meta"):
        model = build(OmegaConf.merge(cfg.model, {"weights": None}))
        backbone = model.backbone
    t, h, w = model.grid(cfg.video.frames, cfg.video.height, cfg.video.width)
    size = lambda module: sum(p.numel() for p in module.parameters())
    with torch.device("meta"):
        frozen = {"codec": size(model.codec), "text encoder": size(model.text)}
    return Counts(
        parameters=size(backbone),
        trained=sum(p.numel() for p in backbone.parameters() if p.requires_grad),
        blocks=len(backbone.blocks()),
        width=backbone.width,
        tokens=t * h * w + model.text.length,
        frozen=frozen,
    )


def print_plan(cfg: DictConfig, devices: tuple[int, ...] = (1, 8, 64)) -> dict[int, dict[str, float]]:
    """Log a table of GiB per device for 1, 8 and 64 devices (or the number the trainer asks for)."""
    counts = count(cfg)
    if isinstance(cfg.trainer.devices, int) and cfg.trainer.devices * cfg.trainer.num_nodes > 1:
        devices = (cfg.trainer.devices * cfg.trainer.num_nodes,)
    sharded = not isinstance(cfg.trainer.strategy, str)
    options: dict[str, Any] = {
        "batch_size": cfg.train.batch_size,
        "checkpointing": bool(cfg.model.get("gradient_checkpointing")),
        "half": "16" in str(cfg.trainer.precision),
        "ema": bool(cfg.train.ema_decay),
        "frozen_bytes": 4 if cfg.model.frozen_dtype == "float32" else 2,
    }
    replicas = cfg.trainer.strategy.replicas if sharded else 1
    plans = {n: memory(counts, shards=max(1, n // replicas) if sharded else 1, **options) for n in devices}
    width = max(map(len, next(iter(plans.values()))))
    lines = [
        f"{counts.parameters / 1e6:,.1f} M parameters, {counts.trained / 1e6:,.1f} M trained, {counts.blocks} blocks, "
        f"{counts.tokens:,} tokens a clip; batch {options['batch_size']} a device, {cfg.trainer.precision}, "
        f"checkpointing {'on' if options['checkpointing'] else 'off'}, {'FSDP2' if sharded else 'replicated'}",
        f"{'GiB per device':{width}}  " + "".join(f"{f'{n} device' + 's' * (n > 1):>12}" for n in devices),
    ]
    for row in next(iter(plans.values())):
        lines.append(f"{row:{width}}  " + "".join(f"{plans[n][row]:12.2f}" for n in devices))
    log.info("\n".join(lines))
    return plans
