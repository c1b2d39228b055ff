"""The sample stage: validation clips with their truth, or the user's own pictures, to files in samples/."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from timelapse.atomic import write_json
from timelapse.build import build
from timelapse.cache import keys as clip_keys
from timelapse.dataset.module import alike, collate, shapes_of
from timelapse.dataset.write import VideoFile, write_video
from timelapse.input import given, listed
from timelapse.sampler.init import FrameInit

log = logging.getLogger("timelapse")


def sample_clips(run: Any) -> None:
    """The first `sample.count` validation clips, each from the frame(s) that `sample.frames` gives in turn.

    After a fit on several processes each makes its share; a sharded network needs them all for every batch.
    """
    cfg, clips = run.cfg, run.validation_clips
    count = min(cfg.sample.count, len(clips))
    if count < cfg.sample.count:
        log.warning(f"only {count} validation clips, {cfg.sample.count} asked for")
    sampler, shapes = build(cfg.sampler), shapes_of(clips)
    lengths = [shapes[i][0] if shapes else cfg.video.frames for i in range(count)]
    masks = [given(cfg.sample.frames[i % len(cfg.sample.frames)], lengths[i]) for i in range(count)]
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = list(range(rank, count, world))
    filled, kept = mine + [0] * (-(-count // world) - len(mine)), len(mine)  # as many for each; what is added goes
    size = 1 if shapes and world > 1 else cfg.sample.batch_size  # as many batches for each too
    for part in tqdm(alike(clips, filled, size), desc="sample", leave=False, disable=rank > 0):
        batch, known = collate([clips[i] for i in part]), torch.stack([masks[i] for i in part])
        videos = on_device(run, batch, known, sampler)
        for b, key in enumerate(batch["key"][:kept]):
            save_sample(run.out / "samples", key, videos[b], batch, b, known[b], run, truth=batch["video"][b])
        kept = max(0, kept - len(part))
    if dist.is_initialized():
        dist.barrier()  # process 0 goes on to measure them all
    if rank == 0:
        keep_only(run.out / "samples", clip_keys(clips)[:count])


def sample_input(run: Any) -> None:
    """`input.image` (one or several) at `input.frame`, `input.count` samples that differ in their noise."""
    from timelapse.dataset.fit import load_image

    cfg = run.cfg
    images, frames = listed(cfg.input.image), listed(cfg.input.frame)
    T, size = cfg.video.frames, (cfg.video.height, cfg.video.width)
    if images == ["generate"]:
        from timelapse.text_to_image import first_picture

        images = [first_picture(cfg.input.text_to_image, cfg.input.prompt, *size, run.out, cfg.seed, run.device)]
    video, known = torch.zeros(T, 3, *size), given(frames, T)
    sampler, layout = build(cfg.sampler), None
    for path, frame in zip(images, frames):
        video[frame], fitted = load_image(path, *size)
        log.info(f"{path}: {fitted}; frame {frame} of 0..{T - 1}")
    if cfg.input.camera is not None:
        layout = camera_layout(cfg, images[0], sampler)
        video[0] = layout[0]
    caption = cfg.input.prompt or cfg.dataset.get("caption") or "time-lapse"
    name = "-".join(dict.fromkeys(Path(p).stem for p in images))
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    keys = [f"input-{name}-f{'+'.join(map(str, frames))}-n{n:02d}".replace("+", "_") for n in range(cfg.input.count)]
    repeat = lambda x, n: None if x is None else x.expand(n, *x.shape)
    folder = run.out / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    for at in tqdm(range(0, len(keys), cfg.sample.batch_size), desc="sample", leave=False):
        part = keys[at : at + cfg.sample.batch_size]
        batch = {"key": part, "caption": [caption] * len(part), "video": repeat(video, len(part))}
        with ExitStack() as files:  # written as they are made: a long video is never whole in memory
            shown = [files.enter_context(VideoFile(folder / f"{key}.mp4")) for key in part]
            exact = [files.enter_context(VideoFile(folder / f"{key}.mkv", lossless=True)) for key in part]
            for piece in stream(run, batch, repeat(known, len(part)), sampler, repeat(layout, len(part))):
                for b in range(len(part)):
                    shown[b].add(piece[b])
                    exact[b].add(piece[b])
        for b, key in enumerate(part):
            save_sample(folder, key, None, batch, b, known, run, given_frames=video)
    keep_only(folder, keys)


def camera_layout(cfg: Any, image: str, sampler: Any) -> Tensor:
    """(T,3,H,W): the picture under `input.camera`; the sampler gets the paper's strength for it, or the user's."""
    from timelapse.dataset.fit import to_unit
    from timelapse.dataset.photos import read_photo
    from timelapse.sampler.camera import camera_motion, level_of

    height, width = cfg.video.height, cfg.video.width
    picture = to_unit(torch.from_numpy(read_photo(image, 2 * height, 2 * width)).permute(2, 0, 1))
    layout = camera_motion(picture, cfg.input.camera, cfg.video.frames, height, width, cfg.input.points)
    level, cutoff = level_of(cfg.input.camera)
    reference = getattr(sampler.start, "reference", None)
    sampler.start = FrameInit(
        level if cfg.input.camera_level is None else cfg.input.camera_level,
        cutoff if cfg.input.camera_cutoff is None else cfg.input.camera_cutoff,
        reference=reference,
    )
    log.info(f"camera {cfg.input.camera}: FrameInit at level {sampler.start.level}, {sampler.start.filter}")
    return layout


def keep_only(folder: Path, keys: list[str]) -> None:
    """Remove samples of an earlier, other choice: a page and its numbers are about one set of clips."""
    for path in folder.iterdir():
        if not path.name.startswith(tuple(f"{key}." for key in keys)):
            path.unlink()


def on_device(run: Any, batch: dict[str, Any], known: Tensor, sampler: Any) -> Tensor:
    return torch.cat(list(stream(run, batch, known, sampler)), dim=1)


def stream(
    run: Any, batch: dict[str, Any], known: Tensor, sampler: Any, layout: Tensor | None = None
) -> Iterator[Tensor]:
    """What `Denoising.stream` makes on the run's device, on the CPU."""
    moved = {k: v.to(run.device, torch.float32) if isinstance(v, Tensor) else v for k, v in batch.items()}
    run.module.eval()
    pieces = run.module.stream(
        moved,
        known.to(run.device),
        sampler,
        negative_prompt=run.cfg.input.negative_prompt or "",
        weights=run.cfg.sample.weights,
        progress=True,
        layout=None if layout is None else layout.to(run.device),
    )
    for piece in pieces:
        yield piece.cpu()


def save_sample(
    folder: Path,
    key: str,
    video: Tensor | None,
    batch: dict[str, Any],
    b: int,
    known: Tensor,
    run: Any,
    truth: Tensor | None = None,
    given_frames: Tensor | None = None,
) -> None:
    """<key>.mp4 for eyes, <key>.mkv exact (RGB, lossless) for metrics, <key>.json; .truth.* where it is known.

    video None: it is written already. A truth that is shorter than the video is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if truth is not None and video is not None and len(truth) != len(video):
        truth = None
    shown = {"": video, ".truth": truth, ".given": given_frames}
    for suffix, frames in shown.items():
        if frames is not None:
            write_video(folder / f"{key}{suffix}.mp4", frames)
            write_video(folder / f"{key}{suffix}.mkv", frames, lossless=True)
    seconds = batch.get("seconds")
    about = {
        "caption": batch["caption"][b],
        "known": known.nonzero().flatten().tolist(),
        "frames": len(known),
        "seconds": None if seconds is None else seconds[b].tolist(),
        "seed": run.cfg.seed,
        "sampler": OmegaConf.to_container(run.cfg.sampler),
    }
    write_json(folder / f"{key}.json", about)
