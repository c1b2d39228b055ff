"""Numbers that would only fail in the middle of a run, refused before it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

LEAST = {  # whole numbers
    "train": {
        "steps": 1, "batch_size": 1, "accumulate": 1, "checkpoint_every": 1, "validate_every": 1, "validation_clips": 1,
        "sample_every": 0, "workers": 0, "warmup": 0, "keep": 1,
    },
    "sample": {"count": 1, "batch_size": 1},
    "input": {"count": 1},
    "video": {"frames": 1, "height": 1, "width": 1},
    "module": {"noises_per_clip": 1},
}  # fmt: skip
RANGES = {  # of `train`: what a number has to be, and in words
    "learning_rate": (lambda x: x > 0, "a number above 0, e.g. 1e-4"),
    "weight_decay": (lambda x: x >= 0, "a number of 0 or more, e.g. 1e-4"),
    "clip_norm": (lambda x: x >= 0, "a number of 0 or more, or null"),
    "ema_decay": (lambda x: 0 <= x < 1, "a number from 0 to below 1, e.g. 0.999; 0 for no average"),
    "cooldown": (lambda x: 0 <= x <= 1, "a share of the steps, 0..1"),
}
NULL = {"keep", "clip_norm"}  # may be null


def check_ranges(cfg: Any) -> None:
    """ValueError for counts that are none, and for other numbers that nothing can be done with."""
    for group, counts in LEAST.items():
        for name, least in counts.items():
            value = cfg[group].get(name, least)
            if not (isinstance(value, int) and value >= least or value is None and name in NULL):
                null = ", or null" if name in NULL else ""
                raise ValueError(f"{group}.{name}={value}; type a whole number of {least} or more{null}")
    for name, (right, said) in RANGES.items():
        value = cfg.train[name]
        if not (isinstance(value, (int, float)) and right(value) or value is None and name in NULL):
            raise ValueError(f"train.{name}={value}; type {said}")
    if not isinstance(cfg.sample.before, bool):
        raise ValueError(f"sample.before={cfg.sample.before}; type true or false")
    if not re.fullmatch("[0-9]+", str(cfg.seed)):
        raise ValueError(f"seed={cfg.seed}; type a whole number of 0 or more")
    check_devices(cfg.trainer.devices, cfg.trainer.num_nodes)


def check_devices(devices: Any, nodes: Any) -> None:
    """ValueError for devices that are neither a number, auto, nor a list, and for no node."""
    which = str(devices).split(",") if isinstance(devices, str) and "," in devices else devices
    if isinstance(which, (str, int, float)):
        right = re.fullmatch("auto|-1|[1-9][0-9]*", str(which))
    else:
        right = len(which) > 0 and all(re.fullmatch(" *[0-9]+ *", str(x)) for x in which if x != "")
    if not right:
        raise ValueError(f"trainer.devices={devices}; type how many, auto, or a list of which, e.g. [0,1]")
    if not re.fullmatch("[1-9][0-9]*", str(nodes)):
        raise ValueError(f"trainer.num_nodes={nodes}; type a whole number of 1 or more")


def check_draws(cfg: Any, model: Any, conditioning: Any) -> None:
    """ValueError for held-out times that the process has not, and known frames that a clip has not."""
    steps = getattr(model.process, "steps", None)  # SVD's noise levels are real numbers
    times = cfg.module.get("held_out_timesteps") or []
    if steps and any(not isinstance(t, int) or not 0 <= t < steps for t in times):
        raise ValueError(f"module.held_out_timesteps={list(times)}; type whole numbers in 0..{steps - 1}")
    if not steps and any(not isinstance(t, (int, float)) or t <= 0 for t in times):
        raise ValueError(f"module.held_out_timesteps={list(times)}; type noise levels above 0, e.g. [0.1,1,10]")
    if hasattr(conditioning, "check"):
        for frames, *_ in cfg.dataset.get("buckets") or [(cfg.video.frames,)]:
            conditioning.check(frames)


def check_motion(cfg: Any, sampler: Any, model: Any) -> None:
    """ValueError for a conditioning, a sampler or a precision that a model does not go with."""
    if "fit" in cfg.stages and cfg.model.get("dtype") == "float16":
        raise ValueError("model.dtype=float16: gradients vanish in it without a scaler; type model.dtype=bfloat16")
    ends, told = getattr(model, "told_ends", False), cfg.conditioning._target_
    if ends and not told.endswith("EndFrames"):
        raise ValueError(
            f"conditioning: this model is told end frames by pictures, not by {told}; type conditioning=end_frames"
        )
    if "sample" not in cfg.stages and not ("fit" in cfg.stages and cfg.train.sample_every):
        return  # nothing is sampled
    backward = getattr(sampler, "motion", "") == "both" and getattr(sampler, "weights", "") != "forward"
    if ends and backward and model.reverse is None:
        raise ValueError(
            f"sampler={cfg.sampler._target_} fuses two motions, and model.reverse=null has no backward one; leave the "
            f"experiment's model.reverse, or type sampler=image_to_video or sampler=time_reversal"
        )
    if getattr(sampler, "image_guidance", 1) > 1 and not getattr(model, "keeps_known", False):
        raise ValueError("sampler.image_guidance: this model is told the image in every branch; set it to 1")


def check_losses(names: Iterable[str]) -> None:
    """ValueError for losses that nothing would learn to denoise by."""
    if "denoise" not in names:
        raise ValueError(f"losses are ({', '.join(names)}); finetuning needs 'denoise', e.g. 'loss=[denoise,drepa]'")


def check_export(cfg: Any) -> None:
    """ValueError for merging what is no LoRA."""
    if not isinstance(cfg.export.merge, bool):
        raise ValueError(f"export.merge={cfg.export.merge}; type true or false")
    if cfg.export.merge and not cfg.model.get("lora"):
        raise ValueError("export.merge=true: this model trains no LoRA, its export is whole as it is; leave it out")


def check_taps(losses: dict[str, Any], model: Any) -> None:
    """ValueError for a loss that reads a block which the network has not; other models say so themselves."""
    layers = getattr(model, "layers", None)
    for name, loss in losses.items():
        if layers and (beyond := [layer for layer in loss.taps if not 0 <= layer < layers]):
            raise ValueError(
                f"loss.{name} reads block {beyond[0]}, the network has 0..{layers - 1}; set model.align.layer "
                f"(and model.align.early_layer) to one of them"
            )
