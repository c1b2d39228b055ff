"""Film strips: clips as rows, frames as columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from timelapse.dataset.write import read_video, to_uint8

GIVEN = (214, 36, 110)  # outlines a frame that the network was given
VARIANTS = {"before": "before finetuning"}  # samples beside a run's own, by the middle of their files' names
Clip = Tensor | Path  # (T,3,H,W) in [-1,1] or uint8, or a video file


def contact_sheet(
    videos: Sequence[Clip],
    path: Path | str,
    labels: Sequence[str] | None = None,
    known: Sequence[Sequence[int]] | None = None,
    columns: int = 9,
    height: int = 112,
    background: tuple[int, ...] = (255, 255, 255),
) -> Path:
    """Write a film strip as PNG (or by `path`'s suffix); see `contact_sheet_image`."""
    path = Path(path)
    image = contact_sheet_image(videos, labels, known, columns, height, background)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, optimize=True, quality=92)  # of JPEG and WebP: at their own edges bleed
    return path


def contact_sheet_image(
    videos: Sequence[Clip],
    labels: Sequence[str] | None = None,
    known: Sequence[Sequence[int]] | None = None,
    columns: int = 9,
    height: int = 112,
    background: tuple[int, ...] = (255, 255, 255),
) -> np.ndarray:
    """(height, width, 3 or 4) uint8, as many channels as `background` has: a row per clip with its label above,
    `columns` frames from the first to the last.

    known: given frames per clip; they are always among the columns and are outlined.
    """
    if not videos:
        raise ValueError("a contact sheet needs at least one clip; the run has no samples yet")
    known = known or [[]] * len(videos)
    gap, text = 4, 18 if labels else 0
    rows = []
    for clip, given in zip(videos, known):
        frames = as_uint8(clip)
        chosen = pick(len(frames), columns, given)
        width = max(1, round(frames.shape[-1] * height / frames.shape[-2]))
        small = resize(frames[chosen], height, width).permute(0, 2, 3, 1).numpy()
        rows.append([(image, frame in given) for image, frame in zip(small, chosen)])
    width = max(sum(image.shape[1] + gap for image, _ in row) for row in rows) + gap
    size = (width, len(rows) * (height + text + gap) + gap)
    sheet = Image.new("RGB" if len(background) == 3 else "RGBA", size, background)
    draw = ImageDraw.Draw(sheet)
    ink = (20, 20, 20) if sum(background[:3]) > 380 else (235, 235, 235)
    y = gap
    for i, row in enumerate(rows):
        if labels:
            font = ImageFont.load_default(13)
            label = str(labels[i])
            while draw.textlength(label, font) > width - 2 * gap and len(label) > 4:
                label = label[:-4] + "..."
            draw.text((gap, y), label, fill=ink, font=font)
            y += text
        x = gap
        for image, given in row:
            sheet.paste(Image.fromarray(image), (x, y))
            if given:
                draw.rectangle((x - 2, y - 2, x + image.shape[1] + 1, y + height + 1), outline=GIVEN, width=3)
            x += image.shape[1] + gap
        y += height + gap
    return np.asarray(sheet)


def pick(frames: int, columns: int, given: Sequence[int] = ()) -> list[int]:
    """Frame numbers spread from the first to the last; each given one takes the place of its nearest."""
    columns = min(columns, frames)
    chosen = [round(i * (frames - 1) / max(1, columns - 1)) for i in range(columns)]
    for frame in given:
        if frame not in chosen and 0 <= frame < frames:
            free = [i for i in range(columns) if chosen[i] not in given]
            if free:
                chosen[min(free, key=lambda i: abs(chosen[i] - frame))] = frame
    return sorted(chosen)


def as_uint8(clip: Clip) -> Tensor:
    """(T,3,H,W) uint8 of a tensor or a video file."""
    if not isinstance(clip, Tensor):
        return read_video(clip)
    return clip if clip.dtype == torch.uint8 else to_uint8(clip)


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """(T,3,H,W) uint8 -> (T,3,height,width) uint8, bicubic, antialiased when it shrinks."""
    if tuple(frames.shape[-2:]) == (height, width):
        return frames
    sized = interpolate(frames.float(), (height, width), mode="bicubic", antialias=True)
    return sized.round().clamp(0, 255).to(torch.uint8)


def run_sheet(
    folders: Sequence[Path | str],
    path: Path | str,
    clips: Sequence[int] = (),
    height: int = 112,
    labels: Sequence[str] = (),
) -> Path:
    """The samples of runs (all, or these by their place), each below the real clip where there is one.

    Several runs are shown one below the other, clip by clip, where they have the clip in common; labels: what each is
    called, its name by default.
    """
    from timelapse.report.run_files import read_run

    runs = [read_run(folder) for folder in folders]
    if labels and len(labels) != len(runs):
        raise ValueError(f"{len(labels)} labels for {len(runs)} runs; give one each")
    by_clip = [{sample.clip: sample for sample in run.samples} for run in runs]
    common = [clip for clip in by_clip[0] if all(clip in samples for samples in by_clip)]
    if runs[0].samples and not common:
        raise ValueError("these runs have no clip in common of which they were given the same frames")
    if clips and max(clips) >= len(common):
        raise ValueError(f"there are {len(common)} samples (that all {len(runs)} runs have); choose clips below that")
    videos, said, known = [], [], []
    for clip in [common[i] for i in clips] if clips else common:
        for i, samples in enumerate(by_clip):
            sample = samples[clip]
            made = labels[i] if labels else f"made from frame {' and '.join(map(str, sample.known))}"
            if len(runs) > 1 and not labels:
                made = f"{runs[i].name}, {made}"
            of = f"{sample.caption}: " if sample.caption else ""
            told = {"truth": f"{of}real clip", "given": f"{of}given"}
            for name, video in sample.videos.items():
                if name in told and i:
                    continue  # the same for all
                videos.append(video)
                variant = "" if name == "sample" else f", {VARIANTS.get(name, name)}"
                said.append(told.get(name, made + variant))
                known.append(sample.known)
    return contact_sheet(videos, path, said, known, height=height)
