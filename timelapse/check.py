"""Numbers that would only fail in the middle of a training, refused before it."""

from __future__ import annotations

from typing import Any

from timelapse.input import given

LEAST = {
    "steps": 1, "batch_size": 1, "accumulate": 1, "checkpoint_every": 1, "validate_every": 1, "validation_clips": 1,
    "sample_every": 0, "workers": 0, "warmup": 0,
}  # fmt: skip


def check_training(train: Any) -> None:
    """ValueError for counts of the config group `train` that are none, and for a learning rate that is no number."""
    for name, least in LEAST.items():
        if name in train and (not isinstance(train[name], int) or train[name] < least):
            raise ValueError(f"train.{name}={train[name]}; type a whole number of {least} or more")
    rate = train.learning_rate
    if not isinstance(rate, (int, float)) or not rate > 0:
        raise ValueError(f"train.learning_rate={rate}; type a number above 0, e.g. 1e-4")


def check_draws(cfg: Any, model: Any, conditioning: Any) -> None:
    """ValueError for held-out times that the process has not, and known frames that the clip has not."""
    steps = getattr(model.process, "steps", None)  # SVD's noise levels are real numbers
    times = cfg.module.get("held_out_timesteps") or []
    if steps and any(not isinstance(t, int) or not 0 <= t < steps for t in times):
        raise ValueError(f"module.held_out_timesteps={list(times)}; type whole numbers in 0..{steps - 1}")
    law = getattr(conditioning, "law", None)
    if isinstance(law, (list, tuple)) and all(isinstance(frame, int) for frame in law):
        try:
            given(list(law), cfg.video.frames)
        except ValueError as error:
            raise ValueError(f"conditioning.law={list(law)}: {error}") from None


def check_taps(losses: dict[str, Any], model: Any) -> None:
    """ValueError for a loss that reads a block which the network has not; other models say so themselves."""
    layers = getattr(model, "layers", None)
    for name, loss in losses.items():
        if layers and (beyond := [layer for layer in loss.taps if not 0 <= layer < layers]):
            raise ValueError(
                f"loss.{name} reads block {beyond[0]}, the network has 0..{layers - 1}; set model.align.layer "
                f"(and model.align.early_layer) to one of them"
            )
