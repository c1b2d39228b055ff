"""The plan stage: memory and arithmetic per device, counted on the meta device before any weight is loaded.

Parameters, gradients, optimizer and average are exact counts. A training step of one clip runs on the meta device:
torch counts its floating-point operations (LoRA and recomputation are in them; the codec and encoders are not), and the
tensors that autograd keeps are its activations. Not in the sum: what losses keep, the vision encoder (its features are
cached), allocator slack, communication buffers.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from timelapse.activations import Kernels, kept_for_backward
from timelapse.build import asked, build, build_all
from timelapse.module.optimizer import moments_of
from timelapse.types import Condition

log = logging.getLogger("timelapse")
GIB = 2**30
PEAK = {"A100": 312e12, "H100": 989e12}  # dense bfloat16 operations a second, as the data sheets have it
# Activations under bfloat16 autocast / in float32. By torch's list of what autocast does on CUDA: inputs and outputs of
# norms stay float32, matrices' inputs are cast for each matrix; 60 / 88 bytes a token and width of a CogVideoX block,
# 38 / 52 with LoRA. Derived, not measured.
HALF = 0.7
MAIN = "beside it, in main memory"
MOMENTS = {
    "adamw": "AdamW moments (fp32)",
    "adamw8bit": "AdamW moments (8 bits)",
    "muon": "momenta and AdamW moments (fp32)",
}
USED = 0.4  # share of the peak that large transformers reach in training; 0.3 to 0.5 is published


@dataclass
class Counts:
    """What a training step holds. Parameters are numbers, not bytes."""

    parameters: int  # of the backbone
    trained: int  # of the backbone, with gradients
    blocks: int
    tokens: int  # video and text tokens of one clip
    frozen: dict[str, int]  # codec, text encoder: parameters
    owned: int = 0  # by losses (projectors), trained; not averaged
    moments: int = 0  # bytes that the optimizer keeps
    optimizer: str = "adamw"  # its kind
    buffers: int = 0  # bytes of the backbone's, whole on every device
    largest: int = 0  # parameters of the largest block
    kept: float = 0.0  # bytes that autograd keeps of one clip in float32
    inputs: float = 0.0  # of those: what goes into blocks
    ends: float = 0.0  # what comes before and after the blocks
    block: float = 0.0  # what the largest block keeps
    maps: float = 0.0  # bytes of attention maps that one pass records for another, of one clip
    flops: float = 0.0  # of one clip, forward and backward


def memory(
    counts: Counts,
    batch_size: int,
    shards: int = 1,
    checkpointing: bool = True,
    half: bool = True,
    ema: bool = True,
    frozen_bytes: int = 4,
    weight_bytes: int = 4,
    gathers: bool = False,
    offload: bool = False,
) -> dict[str, float]:
    """GiB per device. shards: devices that share parameters, gradients, optimizer and average (1 for DDP).

    weight_bytes: of a weight that is not trained; those that are have 4. gathers: FSDP2, which brings a block's weights
    together where it runs; else autocast keeps 16-bit copies of what is trained, and casts a frozen weight anew at each
    use, which backward keeps unless blocks are run again. offload: what is shared waits in main memory,
    in a row that is not in the sum.
    """
    word, share = (2, HALF) if half else (4, 1.0)
    again = word / 4 * counts.inputs + share * (counts.ends + counts.block)  # one block at a time is run again
    trained = counts.trained + counts.owned
    shared = {
        "parameters": (4 * trained + weight_bytes * (counts.parameters - counts.trained)) / shards,
        "gradients (fp32)": 4 * trained / shards,
        MOMENTS[counts.optimizer]: counts.moments / shards,
        "average of weights (fp32)": 4 * counts.trained / shards if ema else 0,
    }
    frozen_weights = 0 if weight_bytes == 2 else counts.parameters - counts.trained
    cast = counts.trained + (min(counts.largest, frozen_weights) if checkpointing else frozen_weights)
    rows = ({} if offload else shared) | {
        "buffers": counts.buffers,
        # FSDP2 gathers one block at a time, and prefetches the next
        "gathered blocks": 2 * word * counts.largest if gathers else (2 * cast if half else 0),
        "activations": batch_size * (again if checkpointing else share * counts.kept),
    }
    if counts.maps:  # beside the activations: autograd keeps the turned copies, not these
        rows["recorded attention maps"] = batch_size * counts.maps * (4 / weight_bytes if half else 1)  # softmax: fp32
    rows |= {f"frozen {name}": frozen_bytes * n for name, n in counts.frozen.items()}
    rows = {name: value / GIB for name, value in rows.items()}
    waiting = {MAIN: sum(shared.values()) / GIB} if offload else {}
    return rows | {"sum": sum(rows.values())} | waiting


def uncounted(cfg: DictConfig) -> str:
    """Why the plan knows nothing of what this config trains; empty where it counts it, which is for any model."""
    if asked(cfg.module, ["conditioning"]):
        return ""
    return (
        f"module={cfg.module._target_} is not in the plan, which counts modules that are handed a conditioning: those "
        f"train the model's backbone on whole clips"
    )


def count(cfg: DictConfig) -> Counts:
    """Build the backbone and what losses own on meta, and count. ValueError for what is `uncounted`."""
    if why := uncounted(cfg):
        raise ValueError(why)
    recomputed = {"gradient_checkpointing": True} if cfg.model.get("gradient_checkpointing") else {}
    model, backbone = on_meta(cfg.model, {name: False for name in recomputed})
    with torch.device("meta"):
        losses = build_all(cfg.loss)
    t, h, w = model.grid_of((1, *model.latent_shape(cfg.video.frames, cfg.video.height, cfg.video.width)))
    size = lambda module: sum(p.numel() for p in module.parameters())
    kind = cfg.module.get("optimizer", "adamw")
    with torch.device("meta"):
        frozen = {"codec": size(model.codec), "text encoder": size(model.text)}
    return Counts(
        parameters=size(backbone),
        trained=sum(p.numel() for p in backbone.parameters() if p.requires_grad),
        blocks=len(backbone.blocks()),
        tokens=t * h * w + model.text.length,
        frozen=frozen,
        owned=sum(map(size, losses.values())),
        moments=moments_of(kind, [backbone, nn.ModuleDict(losses)]),
        optimizer=kind,
        buffers=sum(x.numel() * x.element_size() for x in backbone.buffers()),
        largest=max(map(size, backbone.blocks())),
        flops=operations(*(on_meta(cfg.model, recomputed) if recomputed else (model, backbone)), cfg),
        **kept_of(model, backbone, cfg),
    )


def on_meta(part: DictConfig, numbers: dict[str, Any]) -> tuple[Any, nn.Module]:
    """A model without weights, some of its numbers changed, and its backbone."""
    plain = {"compile": False} if "compile" in part else {}  # what is compiled has no meta device
    with torch.device("meta"):
        model = build(OmegaConf.merge(part, {"weights": None, **plain, **numbers}))
        return model, model.backbone.to("meta")  # some numbers ignore the default device


def kept_of(model: Any, backbone: nn.Module, cfg: DictConfig) -> dict[str, float]:
    """Bytes that autograd and recorded maps keep of one clip, by running it on the meta device."""
    with Kernels(), kept_for_backward(backbone) as kept:
        forward(model, backbone, cfg)
    return kept.sizes() | {"maps": float(getattr(backbone, "stored", 0))}


def operations(model: Any, backbone: nn.Module, cfg: DictConfig) -> float:
    """Of one clip forward and backward, 2 for each multiply-add."""
    with FlopCounterMode(display=False) as counter:
        forward(model, backbone, cfg).backward()
    return float(counter.get_total_flops())


def forward(model: Any, backbone: nn.Module, cfg: DictConfig) -> Tensor:
    """One clip through the network on the meta device, summed to a scalar."""
    meta, video = {"device": "meta"}, cfg.video
    zt = torch.empty(1, *model.latent_shape(video.frames, video.height, video.width), **meta)
    ends = 2  # networks that are told pictures read a token for each end
    with torch.device("meta"):  # T5-XXL, where nobody has asked for it yet
        text = model.text
    tokens = torch.empty(1, max(ends, text.length), text.width, **meta)
    known = torch.zeros(1, video.frames, dtype=torch.bool)  # its numbers are looked at
    known[:, 0] = True
    condition = Condition(torch.empty_like(zt), known, tokens)
    return backbone(zt, torch.zeros(1, dtype=torch.long, **meta), condition)[0].sum()


def planned(cfg: DictConfig, counts: Counts, devices: int) -> dict[str, float]:
    """GiB per device, row by row, of this config on so many devices."""
    strategy = cfg.trainer.strategy
    shards = 1 if isinstance(strategy, str) else max(1, devices // strategy.replicas)
    wide = lambda dtype: 4 if dtype == "float32" else 2
    if cfg.cache.enabled:  # captions are embedded beforehand, and the text encoder leaves the device
        counts = replace(counts, frozen={k: n for k, n in counts.frozen.items() if k != "text encoder"})
    return memory(
        counts,
        batch_size=cfg.train.batch_size * cfg.module.get("noises_per_clip", 1),
        shards=shards,
        checkpointing=bool(cfg.model.get("gradient_checkpointing")),
        half="16" in str(cfg.trainer.precision),
        ema=bool(cfg.train.ema_decay),
        frozen_bytes=wide(cfg.model.get("frozen_dtype", "float32")),
        weight_bytes=wide(cfg.model.get("dtype", "float32")),
        gathers=not isinstance(strategy, str),
        offload=not isinstance(strategy, str) and strategy.offload,
    )


def devices_of(trainer: DictConfig, there: int | None = None) -> int | None:
    """How many devices train together: `trainer.devices` of each node as Lightning reads it, a number or a list, as
    text too; `there` of each node where it takes all (auto, -1).
    """
    asked = trainer.devices
    local = there if str(asked) in ("auto", "-1") else len(listed_devices(asked)) or int(asked)
    return None if local is None else local * trainer.num_nodes


def listed_devices(devices: Any) -> list[int]:
    """Which devices a list names, as text ("0,1") or not; none where it is a number ("2") or auto."""
    if isinstance(devices, str):
        devices = devices.split(",") if "," in devices else []
    return [] if isinstance(devices, int) else [int(device) for device in devices if str(device).strip()]


def print_plan(cfg: DictConfig, devices: tuple[int, ...] = (1, 8, 64)) -> dict[int, dict[str, float]]:
    """Log a table of GiB per device for 1, 8 and 64 devices (or the number the trainer asks for)."""
    log.info("counting parameters, activations and operations on the meta device; some seconds at 5B")
    counts = count(cfg)
    if (asked := devices_of(cfg.trainer) or 1) > 1:
        devices = (asked,)
    plans = {n: planned(cfg, counts, n) for n in devices}
    width = max(map(len, next(iter(plans.values()))))
    checkpointing = "on" if cfg.model.get("gradient_checkpointing") else "off"
    sharded = "replicated" if isinstance(cfg.trainer.strategy, str) else "FSDP2"
    noises = cfg.module.get("noises_per_clip", 1)
    clips = cfg.train.batch_size * cfg.train.accumulate
    flops = clips * noises * counts.flops
    lines = [
        f"{counts.parameters / 1e6:,.1f} M parameters, {counts.trained / 1e6:,.1f} M trained, {counts.blocks} blocks, "
        f"{counts.tokens:,} tokens a clip; batch {cfg.train.batch_size} a device, {cfg.trainer.precision}, "
        f"checkpointing {checkpointing}, {sharded}",
        f"{'GiB per device':{width}}  " + "".join(f"{f'{n} device' + 's' * (n > 1):>12}" for n in devices),
    ]
    for row in next(iter(plans.values())):
        lines.append(f"{row:{width}}  " + "".join(f"{plans[n][row]:12.2f}" for n in devices))
    lines.append(
        f"{flops / 1e12:,.3g} TFLOP a step and device ({clips} clips{f' x {noises} noises' if noises > 1 else ''}); "
        f"at {USED:.0%} of the peak "
        + ", ".join(f"{flops / (USED * peak):.3g} s on an {name}" for name, peak in PEAK.items())
    )
    log.info("\n".join(lines))
    return plans


CHECKPOINTING = {"model": {"gradient_checkpointing": True}}
SHARDED, OFFLOADED = ({"trainer": {"strategy": {"replicas": 1, "offload": offload}}} for offload in (False, True))
INSTEAD = [  # what a user may type, what it changes, whether on 8 devices of a node at least
    ("model.gradient_checkpointing=true", CHECKPOINTING, False),
    ("trainer=fsdp trainer.devices={}", SHARDED, True),
    ("trainer=fsdp trainer.devices={} model.gradient_checkpointing=true", SHARDED | CHECKPOINTING, True),
    (
        "trainer=fsdp trainer.devices={} trainer.strategy.offload=true model.gradient_checkpointing=true",
        OFFLOADED | CHECKPOINTING,
        False,
    ),
]


def check_memory(cfg: DictConfig, gib: float, devices: int = 1) -> None:
    """ValueError when what is held in any case (all but activations) is more than the `gib` that a device has.

    What the plan cannot count is let through, and the log says so.
    """
    if why := uncounted(cfg):
        log.info(f"whether it fits into memory is not known beforehand: {why}")
        return
    counts = count(cfg)
    rows = planned(cfg, counts, devices)
    if rows["sum"] - rows["activations"] > gib:
        raise ValueError(too_large(cfg, gib, devices, counts))


def too_large(cfg: DictConfig, gib: float, devices: int = 1, counts: Counts | None = None) -> str:
    """Why a model does not fit: what would be held, by which rows, and what to type instead."""
    counts = counts or count(cfg)
    rows = planned(cfg, counts, devices)
    largest = sorted((row for row in rows if row not in ("sum", MAIN)), key=rows.get, reverse=True)[:3]
    fitting, nodes = [], cfg.trainer.num_nodes
    for typed, change, more in INSTEAD:
        changed = OmegaConf.create(OmegaConf.to_container(cfg))
        for group, values in change.items():
            changed[group] = {**changed[group], **values}
        local = max(8 if more else 1, devices // nodes)
        need = planned(changed, counts, local * nodes)["sum"]
        if need <= gib and need < rows["sum"]:  # not what is configured already
            fitting.append(f"{typed.format(local)} ({need:.1f} GiB)")
    otherwise = "a smaller model, or model.lora with a low rank, on more devices"
    return (
        f"trainer: {rows['sum']:.1f} GiB would be held by each of {devices} devices of {gib:.1f} GiB ("
        + ", ".join(f"{row} {rows[row]:.1f}" for row in largest)
        + f"); type {'one of: ' + '; '.join(fitting) if fitting else otherwise}. stages=[plan] shows all rows"
    )
