"""What a run is asked to sample: checked before anything is trained or loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timelapse.build import build
from timelapse.dataset.photos import probe
from timelapse.sampler.camera import check_camera, level_of
from timelapse.text_to_image import check_asked


def check_input(cfg: Any) -> None:
    """Before anything is trained or loaded: ValueError or FileNotFoundError for own pictures that cannot be sampled."""
    if cfg.input.frames is not None:
        beside = [name for name in ("image", "camera") if cfg.input[name] is not None]
        if beside:
            raise ValueError(f"input.frames lead from picture to picture; leave out input.{' and input.'.join(beside)}")
        if cfg.sampler.get("n_chunks", 1) > 1:
            raise ValueError("input.frames: more chunks would go on behind the last picture; type sampler.n_chunks=1")
        check_frames(cfg.input.frames, cfg.input.between, cfg.video.frames)
    elif cfg.input.image is not None:
        images, frames = listed(cfg.input.image), listed(cfg.input.frame)
        if "generate" in images:
            if len(images) > 1:
                raise ValueError("input.image=generate stands alone; make the picture first, then name its file")
            check_asked(cfg.input.text_to_image, cfg.input.prompt)
        check_files("input.image", [image for image in images if image != "generate"])
        if len(images) != len(frames):
            raise ValueError(
                f"input.image names {len(images)} pictures, input.frame {len(frames)} places; give one place each"
            )
        if given(frames, cfg.video.frames, "input.frame").sum() < len(frames):
            raise ValueError(f"input.frame={frames}: two pictures at one place of the clip; give each its own frame")
    if cfg.input.camera is not None:
        if cfg.input.image is None:
            raise ValueError("input.camera moves over a picture of your own; give input.image=photo.jpg")
        if len(images) != 1 or frames != [0]:
            raise ValueError(
                "input.camera moves over one picture from frame 0 on; give one input.image and input.frame=0"
            )
        if cfg.sampler.get("start") is None:
            raise ValueError(
                "input.camera leads the sampler's start; choose sampler=frameinit or consisti2v, "
                "for SVD image_to_video_frameinit"
            )
        check_camera(cfg.input.camera, cfg.video.frames, cfg.input.points)
    if cfg.input.points is not None and cfg.input.camera != "perspective":
        raise ValueError(
            "input.points are where the corners of input.camera=perspective go; type that, or leave them out"
        )


def prompt(cfg: Any) -> str:
    """What one's own picture is said to become; an empty prompt, as typed, is one that says nothing."""
    return cfg.input.prompt if cfg.input.prompt is not None else cfg.dataset.get("caption") or "time-lapse"


def leader(cfg: Any) -> Any:
    """The sampler that follows `input.camera`: with the paper's strength for it, or the user's."""
    level, cutoff = level_of(cfg.input.camera)
    level = level if cfg.input.camera_level is None else cfg.input.camera_level
    cutoff = cutoff if cfg.input.camera_cutoff is None else cfg.input.camera_cutoff
    return build(cfg.sampler, start={"level": level, "cutoff": cutoff})  # its filter's other numbers stay


def check_known(cfg: Any, parts: dict[str, Any]) -> None:
    """ValueError where this run would sample clips with known frames that one of its parts cannot be told.

    parts: config group -> part. A part's `told` lists the sets of frames that it can be told, -1 the last; a part
    without it can be told any.
    """
    length = cfg.video.frames
    for option, frames in asked_frames(cfg):
        known = given(frames, length, option)
        for group, part in parts.items():
            told = getattr(part, "told", None)
            if told and not any(torch.equal(known, given(some, length)) for some in told):
                raise ValueError(
                    f"{option}: frames {frames} of {length} would be known, but {group} {type(part).__name__} can be "
                    f"told {' or '.join(map(str, told))} only; type {instead(cfg, option, told, group)}"
                )


def asked_frames(cfg: Any) -> list[tuple[str, list[int]]]:
    """(option, known frames) of each kind of clip that a run samples, also while it trains."""
    validation = [("sample.frames", listed(frames)) for frames in listed(cfg.sample.frames) or [[]]]
    asked = validation[:1] if "fit" in cfg.stages and cfg.train.sample_every else []
    if "sample" not in cfg.stages:
        return asked
    if cfg.input.frames is not None:
        return [*asked, ("input.frames", [0, -1])]
    return asked + (validation if cfg.input.image is None else [("input.frame", listed(cfg.input.frame))])


def instead(cfg: Any, option: str, told: Sequence[list[int]], group: str) -> str:
    """What to type in the place of known frames that cannot be told."""
    one = [str(frames).replace(" ", "") if len(frames) > 1 else frames[0] for frames in told]
    if option == "input.frames":
        single = [f"input.image={cfg.input.frames[0]} input.frame={some}" for some in one if isinstance(some, int)]
        both = "sampler=dual_directional" if group == "sampler" else "+experiment=svd_backward"
        return ", or ".join([*single, f"{both}, whose clips have both ends known"])
    typed = "'sample.frames=[{}]'" if option == "sample.frames" else "'input.frame={}'"
    return " or ".join(map(typed.format, one))


def listed(x: Any) -> list[Any]:
    """One, or several as typed: a.jpg or [a.jpg,b.jpg], 0 or [0,16]."""
    return list(x) if isinstance(x, Sequence) and not isinstance(x, str) else [x]


def check_files(name: str, files: list[str]) -> None:
    """FileNotFoundError for what is not there, ValueError for what is no picture, or not a whole one."""
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"{name}: {file} is not there; give paths of pictures, from {Path.cwd()}")
        try:
            probe(file)
        except ValueError as reason:
            raise ValueError(f"{name}: {file}: {reason}") from None


def check_frames(files: str | list[str], between: int | list[int] | None, frames: int) -> tuple[list[str], list[int]]:
    """Pictures, and frames in each gap between them; ValueError or FileNotFoundError says what is wrong with them."""
    files = [files] if isinstance(files, str) else list(files)
    if len(files) < 2:
        raise ValueError(f"input.frames names {len(files)} picture; give two or more: 'input.frames=[a.jpg,b.jpg]'")
    check_files("input.frames", files)
    return files, gaps_of(between, len(files) - 1, frames)


def gaps_of(between: int | list[int] | None, gaps: int, frames: int) -> list[int]:
    """Frames in each gap: as many as the network makes, one number for all, or one a gap."""
    counts = [frames - 2 if between is None else between] * gaps if not hasattr(between, "__len__") else list(between)
    if len(counts) != gaps or any(not isinstance(n, int) or n < 0 for n in counts):
        raise ValueError(
            f"input.between is {between}; expected a whole number of 0 or more, or one for each of the {gaps} gaps"
        )
    return counts


def given(frames: int | list[int], length: int, option: str = "frame") -> Tensor:
    """(T,) bool: which pixel frames the network is told; -1 is the last. ValueError outside of the clip."""
    frames = listed(frames)
    bad = [f for f in frames if not isinstance(f, int) or not -length <= f < length]
    if bad or not frames:
        raise ValueError(
            f"{option} {bad} is outside the clip of {length} frames; use 0..{length - 1}, or -1 for the last"
        )
    known = torch.zeros(length, dtype=torch.bool)
    known[frames] = True
    return known
