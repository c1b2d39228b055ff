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
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from timelapse.atomic import write_json
from timelapse.build import build
from timelapse.cache import keys as clip_keys
from timelapse.cache import rank as launched_rank
from timelapse.dataset.module import alike, collate, shapes_of
from timelapse.dataset.write import VideoFile, write_video
from timelapse.input import given, leader, listed, prompt
from timelapse.parts import UNTRAINED

log = logging.getLogger("timelapse")


def sample_clips(run: Any) -> None:
    """The first `sample.count` validation clips, each from the frame(s) that `sample.frames` gives in turn.

    After a fit on several processes each makes its share; a sharded network needs them all for every batch. With
    `sample.before` also what the network made before its training, on the same noise, as <key>.before.
    """
    cfg, clips = run.cfg, run.validation_clips
    count = min(cfg.sample.count, len(clips))
    if count < cfg.sample.count:
        log.warning(f"only {count} validation clips, {cfg.sample.count} asked for")
    sampler, shapes = build(cfg.sampler), shapes_of(clips)
    untrained = before_training(run)
    frames = listed(cfg.sample.frames)
    rank, world = process()
    mine = list(range(rank, count, world))
    filled, kept = mine + [0] * (-(-count // world) - len(mine)), len(mine)  # as many for each; what is added goes
    size = 1 if shapes and world > 1 else cfg.sample.batch_size  # as many batches for each too
    for part in tqdm(alike(clips, filled, size), desc="sample", leave=False, disable=rank > 0):
        batch = collate([clips[i] for i in part])
        known = torch.stack([given(frames[i % len(frames)], batch["video"].shape[1]) for i in part])
        folder, mine = run.out / "samples", batch["key"][:kept]
        length = write_pieces(folder, mine, stream(run, batch, known, sampler))
        for b, key in enumerate(mine):
            save_sample(folder, key, length, batch, b, known[b], run, truth=batch["video"][b])
        if untrained is not None:
            write_pieces(folder, [f"{key}.before" for key in mine], stream(untrained, batch, known, sampler))
        kept = max(0, kept - len(part))
    keep_only(run.out / "samples", clip_keys(clips)[:count])
    for path in [*(run.out / "samples").glob("*.before.*")] if untrained is None and rank == 0 else ():
        path.unlink()  # of an earlier choice


def before_training(run: Any) -> Any | None:
    """The run with the weights that its training started from, beside those it has now; None where nobody asks for
    them, nothing was trained, it started from random ones, or they are sharded."""
    started = run.network and not run.random_parts and run.weights not in ("", UNTRAINED)
    if not run.cfg.sample.before or not started or any(isinstance(p, DTensor) for p in run.module.parameters()):
        return None
    before = type(run)(run.cfg, run.folder)
    before.module.materialise(averaged=False)
    before.module.constants |= run.module.constants
    before.module.to(run.device)
    before.model.codec.to(run.device)
    return before


def process() -> tuple[int, int]:
    """(rank, number) of the processes that trained together; where none did, process 0 is alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (launched_rank(), 1)


def meet() -> None:
    """Wait for the other processes, where there are any."""
    if dist.is_initialized():
        dist.barrier()


def sample_input(run: Any) -> None:
    """`input.image` (one or several) at `input.frame`, `input.count` samples that differ in their noise."""
    from timelapse.dataset.fit import load_image

    cfg, (rank, _) = run.cfg, process()
    images, frames = listed(cfg.input.image), listed(cfg.input.frame)
    T, size = cfg.video.frames, (cfg.video.height, cfg.video.width)
    if images == ["generate"]:
        from timelapse.text_to_image import first_picture

        asked = (cfg.input.text_to_image, cfg.input.prompt, *size, run.out, cfg.seed, run.device)
        if rank == 0:
            first_picture(*asked)
        meet()  # the others find what process 0 made
        images = [first_picture(*asked)]
    video, known = torch.zeros(T, 3, *size), given(frames, T)
    sampler, layout, lead, said = build(cfg.sampler), None, None, []
    for path, frame in zip(images, frames):
        video[frame], fitted = load_image(path, *size, cfg.dataset.get("fit", "crop"))  # as the training clips were
        said.append(f"{path}: {fitted}; frame {frame} of 0..{T - 1}")
        log.info(said[-1])
    if cfg.input.camera is not None:
        layout, lead = led(cfg, images[0])
        video[0] = layout[0]
    caption = prompt(cfg)
    name = "-".join(dict.fromkeys(Path(p).stem for p in images))
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[:100]
    places = "_".join(map(str, frames))[:60]
    keys = [f"input-{name}-f{places}-n{n:02d}" for n in range(cfg.input.count)]
    repeat = lambda x, n: None if x is None else x.expand(n, *x.shape)
    folder = run.out / "samples"
    for at in tqdm(range(0, len(keys), cfg.sample.batch_size), desc="sample", leave=False):
        part = keys[at : at + cfg.sample.batch_size]
        batch = {"key": part, "caption": [caption] * len(part), "video": repeat(video, len(part))}
        mine = part if rank == 0 else []  # all run the network, which may be sharded; process 0 writes
        pieces = stream(run, batch, repeat(known, len(part)), sampler, repeat(layout, len(part)), lead)
        length = write_pieces(folder, mine, pieces)
        for b, key in enumerate(mine):
            save_sample(folder, key, length, batch, b, known, run, given_frames=video)
            log.info(f"made: {folder / key}.mp4")
    if rank == 0:
        run.remark(said)
    keep_only(folder, keys)


def led(cfg: Any, image: str) -> tuple[Tensor, Any]:
    """(T,3,H,W): the picture under `input.camera`; and `leader`'s sampler for it."""
    from timelapse.dataset.fit import to_unit
    from timelapse.dataset.photos import read_photo
    from timelapse.sampler.camera import camera_motion

    height, width = cfg.video.height, cfg.video.width
    picture = to_unit(torch.from_numpy(read_photo(image, 2 * height, 2 * width)).permute(2, 0, 1))
    layout = camera_motion(picture, cfg.input.camera, cfg.video.frames, height, width, cfg.input.points)
    sampler = leader(cfg)
    log.info(f"camera {cfg.input.camera}: FrameInit at level {sampler.start.level}, {sampler.start.filter}")
    return layout, sampler


def write_pieces(folder: Path, keys: list[str], pieces: Iterator[Tensor]) -> int:
    """<key>.mp4 and <key>.mkv of the first videos of each piece (B,T,3,H,W), as they are made: a long video is never
    whole in memory. Returns its frames."""
    folder.mkdir(parents=True, exist_ok=True)
    length = 0
    with ExitStack() as files:
        shown = [files.enter_context(VideoFile(folder / f"{key}.mp4")) for key in keys]
        exact = [files.enter_context(VideoFile(folder / f"{key}.mkv", lossless=True)) for key in keys]
        for piece in pieces:
            length += piece.shape[1]
            for b in range(len(keys)):
                shown[b].add(piece[b])
                exact[b].add(piece[b])
    return length


def keep_only(folder: Path, keys: list[str]) -> None:
    """Once all processes are done, remove samples of an earlier, other choice: a page is about one set of clips."""
    meet()
    for path in folder.iterdir() if process()[0] == 0 else ():
        if not path.name.startswith(tuple(f"{key}." for key in keys)):
            path.unlink()


def on_device(run: Any, batch: dict[str, Any], known: Tensor, sampler: Any) -> Tensor:
    return torch.cat(list(stream(run, batch, known, sampler)), dim=1)


def stream(
    run: Any, batch: dict[str, Any], known: Tensor, sampler: Any, layout: Tensor | None = None, lead: Any = None
) -> Iterator[Tensor]:
    """What `Denoising.stream` makes on the run's device, on the CPU; or a baseline between pictures, without it."""
    if hasattr(sampler, "pixels"):
        yield sampler.pixels(batch["video"], known).clamp(-1, 1)
        return
    run.module.eval()
    pieces = run.module.stream(
        batch,
        known,
        sampler,
        negative_prompt=run.cfg.input.negative_prompt or "",
        weights=run.cfg.sample.weights,
        progress=process()[0] == 0,
        layout=layout,
        lead=lead,
        precision=run.cfg.trainer.precision,
    )
    for piece in pieces:
        yield piece.cpu()


def save_sample(
    folder: Path,
    key: str,
    video: Tensor | int,
    batch: dict[str, Any],
    b: int,
    known: Tensor,
    run: Any,
    truth: Tensor | None = None,
    given_frames: Tensor | None = None,
) -> None:
    """<key>.mp4 for eyes, <key>.mkv exact (RGB, lossless) for metrics, <key>.json; .truth.* where it is known.

    video: (T,3,H,W), or its T where it is written already. A truth that is shorter than the video is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    video, frames = (None, video) if isinstance(video, int) else (video, len(video))
    if truth is not None and len(truth) != frames:
        truth = None
    shown = {"": video, ".truth": truth, ".given": given_frames}
    for suffix, pictures in shown.items():
        if pictures is not None:
            write_video(folder / f"{key}{suffix}.mp4", pictures)
            write_video(folder / f"{key}{suffix}.mkv", pictures, lossless=True)
    seconds = batch.get("seconds")
    about = {
        "caption": batch["caption"][b],
        "known": known.nonzero().flatten().tolist(),
        "frames": frames,
        "seconds": None if seconds is None else seconds[b].tolist(),
        "seed": run.cfg.seed,
        "sampler": OmegaConf.to_container(run.cfg.sampler),
        "weights": run.weights,
    }
    write_json(folder / f"{key}.json", about)
