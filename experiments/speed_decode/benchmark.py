"""Decode and fit clips: `timelapse` against the loader one writes first. Prints times and their ratio.

    python experiments/speed_decode/benchmark.py

The first loader decodes a file's frames one by one up to the last it needs, turns each into a PIL image, crops and
resizes it, and then picks its T. Ours jumps to keyframes, converts only the frames of the clip and shrinks each as it
comes. Both return the same pictures (checked to a few grey levels: PIL and torch round differently).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from timelapse.dataset.clips import Clips
from timelapse.dataset.fit import crop_box, to_unit


def write_video(path: Path, frames: int, width: int, height: int, gop: int) -> None:
    """A textured scene that drifts, as h264 at 24 frames a second."""
    noise = np.random.default_rng(0).integers(0, 255, (height // 20, (width + frames) // 20, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(noise).resize((width + frames, height), Image.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", gop
        for n in range(frames):
            picture = np.ascontiguousarray(scene[:, n : n + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def first_loader(path: Path, frames: list[int], height: int, width: int) -> torch.Tensor:
    """(T,3,H,W) in [-1,1], the plain way."""
    pictures = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            image = frame.to_image()
            left, top, w, h = crop_box(*image.size, width, height)
            image = image.crop((left, top, left + w, top + h)).resize((width, height), Image.BILINEAR)
            pictures.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
            if len(pictures) > frames[-1]:
                break
    return to_unit(torch.stack([pictures[i] for i in frames]))


def seconds(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Best wall and processor time of several runs."""
    walls, processors = [], []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return min(walls), min(processors)


def compare(path: Path, fraction: float, clip: list[int], repeats: int) -> str:
    """One row: reader, seconds of the plain way and of ours per clip, their ratios."""
    count, height, width = clip
    clips = Clips(path, count, height, width, "all", fractions=[fraction], windows=3, index=path.with_suffix(".jsonl"))
    frames = [c.frames for c in clips.clips]
    for i, numbers in enumerate(frames):
        gap = (clips[i]["video"] - first_loader(path, numbers, height, width)).abs().max().item() * 127.5
        assert gap <= 3, f"{gap} grey levels apart"
    plain = seconds(lambda: [first_loader(path, numbers, height, width) for numbers in frames], repeats)
    ours = seconds(lambda: [clips[i] for i in range(len(clips))], repeats)
    times = [t / len(frames) for t in (*plain, *ours)]
    ratios = plain[0] / ours[0], plain[1] / ours[1]
    return "{:>7} {:>8.3f} {:>8.3f}   {:>8.3f} {:>8.3f}   {:>6.1f} {:>6.1f}".format(
        clips.clips[0].source.video.reader, *times, *ratios
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=240, help="of the video")
    parser.add_argument("--size", type=int, nargs=2, default=(1280, 720), help="width and height of the video")
    parser.add_argument("--gop", type=int, nargs="+", default=(250, 24), help="frames between keyframes")
    parser.add_argument("--clip", type=int, nargs=3, default=(17, 64, 64), help="frames, height and width of a clip")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(f"{args.frames} frames of {args.size[0]}x{args.size[1]}; clips of {args.clip[0]} frames; seconds per clip")
    print("                          first loader        timelapse          ratio")
    print("keyframes  span  reader     wall    proc.       wall    proc.     wall  proc.")
    with tempfile.TemporaryDirectory() as folder:
        for gop in args.gop:
            path = Path(folder) / f"gop{gop}.mp4"
            write_video(path, args.frames, *args.size, gop)
            for fraction in (1.0, 0.5, 0.25):
                print(f"{gop:>9} {fraction:>5} {compare(path, fraction, args.clip, args.repeats)}", flush=True)


if __name__ == "__main__":
    main()
