"""Time of a sampling step and peak memory against the public code of "Generative Inbetweening", on the same random
weights.

    python experiments/keyframe_speed/benchmark.py --reference DIR     # a checkout of
    jeanne-wang/svd_keyframe_interpolation

The public code needs `pip install einops`. Both networks of both sides get the same weights, keyframes and noise, and
the latents are compared. Time is the CPU time of one thread, steps of the sides in turn, the median. Memory is the
peak of living tensor storage above the weights, counted at every operation; a second UNet is counted apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from timelapse.conditioning.end_frames import EndFrames
from timelapse.edm import Edm
from timelapse.model.svd import SVD
from timelapse.model.svd_export import image_processor, scheduler
from timelapse.sampler.dual_directional import DualDirectional

MIB = 2**20


class Peak(TorchDispatchMode):
    """Bytes of tensor storage made inside and alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and id(x.untyped_storage()) not in given | self.seen:
                self.hold(x.untyped_storage())
        return out

    def hold(self, storage: torch.UntypedStorage) -> None:
        name, size = id(storage), storage.nbytes()
        self.seen.add(name)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.let_go, name, size)

    def let_go(self, name: int, size: int) -> None:
        self.seen.discard(name)
        self.now -= size


def make_model(width: int, frames: int, size: int) -> SVD:
    down = ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"]
    up = ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"]
    unet = dict(sample_size=size // 4, in_channels=8, out_channels=4, down_block_types=down, up_block_types=up)
    unet |= dict(block_out_channels=[width, width], addition_time_embed_dim=8, layers_per_block=1, num_frames=frames)
    unet |= dict(projection_class_embeddings_input_dim=24, cross_attention_dim=16, num_attention_heads=2)
    vae = dict(down_block_types=["DownEncoderBlock2D"] * 3, block_out_channels=[32, 32, 32], latent_channels=4)
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=224)
    vision |= dict(patch_size=56, projection_dim=16)
    reverse = {"train": ["to_v", "to_out.0"], "rotate": "all", "delta": None}
    model = SVD(unet, vae | dict(layers_per_block=1, sample_size=size), vision, Edm(), reverse=reverse, seed=1)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.backbone.reverse.values():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    return model


def theirs(model: SVD, reference: Path, pictures: list[Image.Image], noise: torch.Tensor, steps: int) -> Any:
    """() -> latents, by the public pipeline."""
    import diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion as pipeline_module

    if not hasattr(pipeline_module, "tensor2vid"):
        pipeline_module.tensor2vid = None  # gone from diffusers; only for decoding, which is not timed
    sys.path.insert(0, str(reference))
    import attn_ctrl.attention_control as control
    from custom_diffusers.pipelines.pipeline_frame_interpolation_with_noise_injection import (
        FrameInterpolationWithNoiseInjectionPipeline as Pipeline,
    )
    from custom_diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
    from diffusers import UNetSpatioTemporalConditionModel

    unet = UNetSpatioTemporalConditionModel(**model.numbers["unet"])
    state = {k: v for k, v in model.backbone.unet.state_dict().items() if "processor" not in k}
    unet.load_state_dict(state)
    wanted = EulerDiscreteScheduler.from_config(scheduler(model).config)
    pipe = Pipeline(model.codec.vae, model.codec.vision, unet, wanted, image_processor(model))  # copies the UNet
    unet.load_state_dict(state | {k: v.detach() for k, v in model.backbone.weights().items()})
    ahead, back = control.AttentionStore(), control.AttentionStore()
    control.register_temporal_self_attention_control(pipe.ori_unet, ahead)
    control.register_temporal_self_attention_flip_control(pipe.unet, back, ahead)
    pipe.set_progress_bar_config(disable=True)
    size = pictures[0].size
    options = dict(height=size[1], width=size[0], num_frames=noise.shape[1], num_inference_steps=steps)

    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(7)
        latents = noise.clone()
        return pipe(*pictures, **options, latents=latents, generator=generator, output_type="latent").frames

    return run


def ours(model: SVD, pictures: list[Image.Image], noise: torch.Tensor, steps: int, joint: bool) -> Any:
    """() -> latents, by ours; joint: both motions in one batch."""
    video = torch.zeros(1, noise.shape[1], 3, *pictures[0].size[::-1])
    for k, picture in zip((0, -1), pictures):
        video[0, k] = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
    sampler = DualDirectional(steps, recurrence=0, progress=False)

    def run() -> torch.Tensor:
        model.backbone.joint = joint
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            condition = EndFrames()({"key": ["a"], "video": video}, model.codec, [generator])
        return sampler(model, condition, None, noise)

    return run


def cpu_seconds(run: Any) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def peak(run: Any) -> float:
    with Peak() as counted:
        run()
    return counted.most / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--frames", type=int, default=14)
    parser.add_argument("--size", type=int, default=64, help="pixels; latents are 4 times smaller")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = make_model(args.width, args.frames, args.size)
    g = torch.Generator().manual_seed(3)
    noise = torch.randn(1, args.frames, 4, args.size // 4, args.size // 4, generator=g)
    pixels = torch.randint(0, 256, (2, 4, 4, 3), generator=g, dtype=torch.uint8).numpy()
    pictures = [Image.fromarray(p).resize((args.size, args.size), Image.Resampling.BICUBIC) for p in pixels]
    sides = {
        steps: {
            "public": theirs(model, args.reference, pictures, noise, steps),
            "joint": ours(model, pictures, noise, steps, True),
            "in turn": ours(model, pictures, noise, steps, False),
        }
        for steps in (1, 4, 10)
    }
    latents = {name: run() for name, run in sides[10].items()}
    apart = {name: (x - latents["public"]).abs().max().item() for name, x in latents.items()}
    times: dict[str, list[float]] = {name: [] for name in latents}
    for _ in range(args.repeat):  # the sides in turn; what is done once per video cancels
        for name in times:
            times[name].append((cpu_seconds(sides[4][name]) - cpu_seconds(sides[1][name])) / 3)
    rows = {}
    for name in times:
        rows[name] = {
            "seconds a step": round(statistics.median(times[name]), 3),
            "peak MiB": round(peak(sides[1][name]), 1),
            "UNet copies": 2 if name == "public" else 1,
            "apart": float(f"{apart[name]:.2g}"),
        }
    for name in ("joint", "in turn"):
        for key in ("seconds a step", "peak MiB"):
            rows[name][f"public / ours, {key}"] = round(rows["public"][key] / rows[name][key], 2)
    print(json.dumps({"settings": {k: v for k, v in vars(args).items() if k != "reference"}, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
