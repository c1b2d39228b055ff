"""A run that takes seconds: the real classes with few and narrow layers, random weights, two synthetic clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir

from timelapse.build import frozen
from timelapse.parts import Run
from timelapse.run import CONF

COMMON = [
    "trainer=cpu",
    "model.weights=null",
    "dataset.size=6",
    "train.validation_clips=2",
    "train.batch_size=2",
    "train.validate_every=4",
    "train.checkpoint_every=2",
    "sampler.steps=2",
    "sample.count=2",
    "sample.batch_size=2",
]
SMALL = [
    *COMMON,
    "model.transformer.num_layers=2",
    "model.transformer.num_attention_heads=2",
    "model.vae.block_out_channels=[8,8,8]",
    "model.transformer.sample_height=8",
    "model.transformer.sample_width=8",
    "model.transformer.sample_frames=9",
    "model.align={layer: 1, early_layer: 0, width: 64, hidden: 32}",
    "video={frames: 9, height: 32, width: 32}",
    "sample.frames=[4]",
]
SVD = [
    *COMMON,
    "model.unet.block_out_channels=[32,32]",
    "model.unet.num_frames=4",
    "model.vae.block_out_channels=[32,32]",
    "model.vae.down_block_types=[DownEncoderBlock2D,DownEncoderBlock2D]",
    "video={frames: 4, height: 8, width: 8}",
    "sampler.recurrence=1",
]
CONSISTI2V = [
    *COMMON,
    "model.unet.block_out_channels=[16,16]",
    "model.unet.attention_head_dim=[2,2]",
    "model.vae.block_out_channels=[8,8,8,8]",
    "model.align=null",
    "video={frames: 4, height: 32, width: 32}",
]
STAGES = [
    "{steps: 8, frames: 1, batch: 1, crop: 32, rate: [1.0e-3, 1.0e-3], noise: 0.05}",
    "{steps: 6, frames: 9, batch: 1, crop: 32, rate: [1.0e-3, 1.0e-3], noise: 0.05, perceptual: 0.1}",
    "{steps: 6, frames: 9, batch: 1, crop: 32, rate: [1.0e-3, 1.0e-4], noise: 0.05, encoder: false, perceptual: 0.1, "
    "adversarial: 0.1}",
]
OTHERS = {  # the first that is in an experiment's name
    "svd_vae": SVD[:-2],  # nothing is sampled, and its crops are not that small
    "svd": SVD,
    "consisti2v": CONSISTI2V,
    "picture_vae": [*COMMON, "model.vae.block_out_channels=[8,8,8,8]"],
    "pretrain_vae": [*SMALL, f"module.stages=[{','.join(STAGES)}]"],
    "pretrain_vjepa": COMMON,  # the tiny network itself
    "pretrain_videomae": COMMON,
}


def small_run(folder: Path, *overrides: str, experiment: str = "finetune_only") -> Run:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        small = next((small for name, small in OTHERS.items() if name in experiment), SMALL)
        cfg = compose("config", [f"+experiment={experiment}", *small, f"paths.cache={folder}/cache", *overrides])
    run = Run(frozen(cfg), folder)
    run.freeze()
    return run


def clipped_step(module: L.LightningModule, batch: dict[str, Any], norm: float) -> float:
    """Norm of all gradients after one step of a Trainer that clips it to `norm`, in the precision of trainer=gpu."""
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", precision="bf16-mixed", gradient_clip_val=norm, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([batch], batch_size=None))
    return float(torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm())


def killed_at(run: Run, step: int) -> Run:
    """The run, whose training ends in RuntimeError("killed") at that step."""
    train = run.module.training_step

    def killed(*args):
        if run.module.global_step == step:
            raise RuntimeError("killed")
        return train(*args)

    run.module.training_step = killed
    return run


def trained(folder: Path) -> Path:
    """The folder, as of a run with a checkpoint (an empty file)."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step000002.ckpt").touch()
    return folder
