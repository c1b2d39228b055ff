"""Clips to video files: an H.264 mp4 that every browser plays, or a lossless RGB mkv to measure on."""

from __future__ import annotations

import math
import secrets
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

FPS = 8  # CogVideoX's frame rate
ACCURATE = 4 | 0x40000 | 0x2000  # swscale: bicubic, rounded; the fast path is 1.2 grey levels dark
BT709 = 1  # the number that H.264 gives to this matrix, these primaries and this transfer curve


def write_video(
    path: Path | str,
    video: Tensor,
    fps: float = FPS,
    lossless: bool = False,
    crf: int = 18,
    short_side: int = 256,
) -> None:
    """Write video (T,3,H,W) in [-1,1]; the file appears whole or not at all.

    lossless: exactly the clip rounded to 8 bit, in RGB at its own size (`.mkv`). Otherwise for looking at
    (`.mp4`): 4:2:0 at quality `crf` (0..51, lower is better), clips smaller than `short_side` enlarged by a
    whole factor, odd sides padded by one repeated row or column, since 4:2:0 has even sides.
    """
    with VideoFile(path, fps, lossless, crf, short_side) as file:
        file.add(video)


class VideoFile:
    """A file as `write_video` makes it, written piece by piece, so that memory does not grow with its length.

    with VideoFile(path) as file: file.add(video), as often as wanted. It appears whole when the block ends well.
    """

    def __init__(
        self,
        path: Path | str,
        fps: float = FPS,
        lossless: bool = False,
        crf: int = 18,
        short_side: int = 256,
    ):
        self.path, self.fps, self.lossless, self.crf, self.short_side = Path(path), fps, lossless, crf, short_side
        self.part = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")  # no other process's
        form = {".mp4": "mp4", ".mkv": "matroska"}.get(self.path.suffix)
        if form is None or lossless != (form == "matroska"):
            raise ValueError(f"{self.path.name}: write .mp4 to look at, or .mkv with lossless=True to measure on")
        self.form, self.stream = form, None

    def __enter__(self) -> VideoFile:
        flags = {"movflags": "+faststart"} if self.form == "mp4" else {}
        self.out = av.open(str(self.part), "w", format=self.form, options=flags)
        return self

    def add(self, video: Tensor) -> None:
        """Write frames (T,3,H,W) in [-1,1]; all pieces have one size."""
        name = self.path.name
        if video.ndim != 4 or video.shape[1] != 3 or not len(video):
            raise ValueError(f"{name}: video is {tuple(video.shape)}; expected (T,3,H,W) with T at least 1")
        if not video.isfinite().all():
            raise ValueError(f"{name}: the video holds NaN or inf, nothing to show; see the loss curves")
        if not self.lossless:
            video = even(enlarge(video, self.short_side))
        if self.stream is None:
            self._start(*video.shape[-2:])
        for image in to_uint8(video).permute(0, 2, 3, 1).numpy():
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if not self.lossless:
                frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            self.out.mux(self.stream.encode(frame))

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None and self.stream is not None:
                self.out.mux(self.stream.encode())
            self.out.close()
            if kind is None and self.stream is not None:
                self.part.replace(self.path)
        finally:
            self.part.unlink(missing_ok=True)

    def _start(self, height: int, width: int) -> None:
        rate = Fraction(self.fps).limit_denominator(1001)
        self.stream = stream = self.out.add_stream("libx264rgb" if self.lossless else "libx264", rate=rate)
        stream.height, stream.width = height, width
        stream.pix_fmt = "rgb24" if self.lossless else "yuv420p"
        # A key frame a second: the page's slider jumps between frames.
        stream.options = {"qp": "0"} if self.lossless else {"crf": str(self.crf), "g": str(math.ceil(rate))}
        stream.codec_context.thread_count = 1  # short clips: threads cost more than they bring
        if not self.lossless:  # say which matrix was used, or players guess by size
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709


def read_video(path: Path | str) -> Tensor:
    """(T,3,H,W) uint8, all frames of a file that `write_video` wrote."""
    with av.open(str(path)) as container:
        frames = [
            frame.reformat(format="rgb24", interpolation=ACCURATE).to_ndarray() for frame in container.decode(video=0)
        ]
    if not frames:
        raise ValueError(f"{path}: no frame can be decoded; delete it and sample again (stages=[sample])")
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def to_uint8(video: Tensor) -> Tensor:
    """[-1,1] -> 0..255, rounded; values outside are clamped."""
    return ((video.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def enlarge(video: Tensor, short_side: int) -> Tensor:
    """(T,3,H,W) -> (T,3,kH,kW), bicubic, with the smallest whole k that makes the short side `short_side`."""
    factor = max(1, math.ceil(short_side / min(video.shape[-2:])))
    return video if factor == 1 else interpolate(video.float(), scale_factor=factor, mode="bicubic")


def even(video: Tensor) -> Tensor:
    """Repeat the last row and column where a side is odd."""
    height, width = video.shape[-2:]
    return torch.nn.functional.pad(video.float(), (0, width % 2, 0, height % 2), mode="replicate")
