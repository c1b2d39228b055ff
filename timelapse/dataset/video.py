"""Video files: look at one once (`probe`), then decode only the frames that a clip asks for (`read_frames`).

Two readers behind one function. PyAV reads everything and says which frames are damaged. decord is the usual reader
of the field, but it returned wrong frames without a word for open-GOP h264 and HEVC, edit lists, MPEG-TS and AVI
with B-frames, and it reads no AV1. So decord serves only files on which it was seen to return PyAV's very bytes;
all others, and platforms without a decord wheel, go through PyAV.
"""

from __future__ import annotations

import gc
import math
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from av.sidedata.sidedata import Type as Side

try:
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # damage is said once, by us
    DECORD_ERRORS = (RuntimeError, decord.DECORDError)
except ImportError:  # no wheel for this platform
    decord, DECORD_ERRORS = None, ()

EXTENSIONS = frozenset(".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .m2ts .mts .wmv .flv .3gp .ogv .gif".split())
NO_TIMES = "no frame times: encode the file again, ffmpeg -i IN -c:v libx264 OUT.mp4"
# A forked worker that collected a codec which its parent had dropped would wait for the codec's threads, which did not
# come along, or crash: it leaves alone what was there before it.
os.register_at_fork(after_in_child=gc.freeze)
SPOTS = 8  # frames of a file on which decord has to agree with PyAV


@dataclass(frozen=True)
class Video:
    """What one file holds. Width and height are as displayed, after rotation."""

    width: int
    height: int
    codec: str
    pixel_aspect: float  # displayed width over height of one pixel; 1 but for anamorphic video
    fps: float  # mean frames per second of playback
    tick: float  # seconds
    ticks: list[int]  # presentation time of every frame, increasing; [first, step, count] where `even`
    even: bool
    keys: list[int]  # ticks at which decoding can start
    reader: str = "pyav"  # or decord, where it was seen to be right

    def presentation(self) -> list[int]:
        """Presentation time of every frame in ticks."""
        if not self.even:
            return self.ticks
        first, step, count = self.ticks
        return [first + step * i for i in range(count)]

    def times(self) -> np.ndarray:
        """(frames,) float64 seconds of playback, the first frame at 0."""
        ticks = np.asarray(self.presentation(), dtype=np.float64)
        return (ticks - ticks[0]) * self.tick


def probe(path: str | Path, check: str = "full") -> Video:
    """Read a file's frame times and judge it. Raises ValueError whose text is the reason to skip the file.

    check: `full` decodes every frame once and finds damage inside; `probe` only walks through the packets and finds
    a missing end; `none` takes whatever opens. Without `full` nobody knows whether decord is right, so PyAV reads.
    """
    if Path(path).stat().st_size == 0:
        raise ValueError("empty file")
    try:
        return _probe(str(path), check)
    except (av.FFmpegError, EOFError) as error:
        raise ValueError(f"not a readable video: {' '.join(str(error.strerror or error).split())}") from None


def read_frames(path: str | Path, video: Video, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the frames at increasing indices as (H,W,3) uint8 RGB, one at a time so that each can be shrunk at once.

    Opens the file here and closes it at the end: a decord reader opened before a fork would stall the worker.
    Raises OSError naming the path when a frame cannot be had.
    """
    try:
        frames = _read_decord if video.reader == "decord" and decord is not None else _read_pyav
        yield from frames(str(path), video, indices)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: this video was there at the start of the run and is gone now") from None
    except (av.FFmpegError, EOFError, *DECORD_ERRORS) as error:
        text = " ".join(str(error).split())[-200:]
        raise OSError(f"{path}: cannot read frames {indices[0]}..{indices[-1]}: {text}") from None


def _probe(path: str, check: str) -> Video:
    packets, corrupt, ticks, keys, end = 0, 0, set(), set(), 0.0
    newest, back = -math.inf, False  # whether packets come in another order than their pictures
    with av.open(path) as container:
        if not container.streams.video:
            raise ValueError("not a readable video: it has no video stream")
        stream = container.streams.video[0]
        for packet in container.demux():
            if packet.pts is not None:  # of any stream: sound may go on behind the pictures
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not stream or packet.size == 0:
                continue
            if packet.pts is None:
                raise ValueError(NO_TIMES)
            packets += 1
            corrupt += packet.is_corrupt
            if packet.is_keyframe:
                keys.add(packet.pts)
            back, newest = back or packet.pts < newest, max(newest, packet.pts)
            if not packet.is_discard:  # hidden by an edit list, needed only to decode what follows
                ticks.add(packet.pts)
        announced, tick = stream.frames, float(stream.time_base)  # frames is 0 where the container does not say
        if container.format.name == "avi":  # it counts places for frames; one left empty holds the frame before
            packets = max(ticks, default=-1) - min(ticks, default=0) + 1
            if stream.codec_context.has_b_frames and not back:  # its numbers are the decoder's order, not the pictures'
                raise ValueError(NO_TIMES)
        length = (container.duration or 0) / av.time_base  # seconds that the container's head tells; 0: it does not
        codec, aspect = stream.codec_context.name, float(stream.sample_aspect_ratio or 1)
        rate = float(stream.average_rate or 1)
    if check != "none" and (corrupt or packets < announced):
        raise ValueError(f"damaged: {packets} of {announced} frames are there, {corrupt} of them marked corrupt")
    if check != "none" and not announced and end < 0.9 * length:  # Matroska counts no frames
        raise ValueError(f"damaged: it ends after {end:.1f} of {length:.1f} s")
    ticks, spots = sorted(ticks), {}
    if check == "full":
        ticks, spots = _decode_all(path, _spots(ticks, sorted(keys)))
    if not ticks:
        raise ValueError("not a readable video: it has no frames")
    with av.open(path) as container:
        frame = next(container.decode(video=0), None)
    if frame is None:
        raise ValueError("damaged: no frame can be decoded")
    picture = _rgb(frame)
    turned = frame.rotation % 180 != 0
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1
    even = all(b - a == step for a, b in zip(ticks, ticks[1:]))
    return Video(
        width=picture.shape[1],
        height=picture.shape[0],
        codec=codec,
        pixel_aspect=1 / aspect if turned else aspect,
        fps=(len(ticks) - 1) / ((ticks[-1] - ticks[0]) * tick) if len(ticks) > 1 else rate,
        tick=tick,
        ticks=[ticks[0], step, len(ticks)] if even else ticks,
        even=even,
        keys=sorted(keys) or ticks[:1],
        reader="decord" if spots and _decord_agrees(path, ticks, spots, len(keys) > 1) else "pyav",
    )


def _spots(ticks: list[int], keys: list[int]) -> set[int]:
    """Frames at which readers tend to differ: spread over the file, and on both sides of its second keyframe."""
    chosen = {ticks[round(i)] for i in np.linspace(0, len(ticks) - 1, SPOTS)} if ticks else set()
    if len(keys) > 1:
        at = bisect_right(ticks, keys[1]) - 1
        chosen |= set(ticks[max(0, at - 1) : at + 2])
    return chosen


def _decode_all(path: str, spots: set[int]) -> tuple[list[int], dict[int, int]]:
    """Decode every frame. Returns the frames' ticks and the checksum of the pictures at the spots."""
    ticks, checksums, corrupt, last = set(), {}, 0, -math.inf
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        try:
            for frame in container.decode(stream):
                corrupt += frame.is_corrupt
                if frame.pts < last:  # AVI has no presentation times: the decoder's are those of other frames
                    raise ValueError(NO_TIMES)
                ticks.add(last := frame.pts)
                if frame.pts in spots:
                    checksums[frame.pts] = zlib.crc32(_rgb(frame))
        except (av.FFmpegError, EOFError) as error:
            raise ValueError(f"damaged: decoding stops after {len(ticks)} frames ({error.strerror})") from None
    if corrupt:
        raise ValueError(f"damaged: {corrupt} of {len(ticks)} frames are corrupt")
    return sorted(ticks), checksums


def _decord_agrees(path: str, ticks: list[int], checksums: dict[int, int], jumps: bool) -> bool:
    """Whether decord returns the pictures of these checksums. jumps: also after a seek, where the file has any."""
    if decord is None:
        return False
    spots = [i for i, tick in enumerate(ticks) if tick in checksums]
    order = spots[len(spots) // 2 :][:1] + spots if jumps else spots
    try:
        reader = decord.VideoReader(path, num_threads=1)
        return len(reader) == len(ticks) and all(zlib.crc32(reader[i].asnumpy()) == checksums[ticks[i]] for i in order)
    except DECORD_ERRORS:
        return False


def _read_decord(path: str, video: Video, indices: Sequence[int]) -> Iterator[np.ndarray]:
    threads = 0 if torch.utils.data.get_worker_info() is None else 1  # workers share the cores already
    reader = decord.VideoReader(path, num_threads=threads)
    for i in indices:
        yield reader[int(i)].asnumpy()


def _read_pyav(path: str, video: Video, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Decode forward, and jump whenever a keyframe lies between here and the next wanted frame."""
    presentation, reached, frames = video.presentation(), None, None
    container = _open(path)
    try:
        for i in indices:
            wanted = presentation[i]
            key = video.keys[max(0, bisect_right(video.keys, wanted) - 1)]
            if frames is None or key > reached:
                container.seek(key, stream=container.streams.video[0], backward=True)
                frames = container.decode(video=0)
            frame = _forward(frames, wanted)
            if frame is None:  # some containers (MPEG program streams) seek too far: from the start, then
                container.close()
                container = _open(path)
                frames = container.decode(video=0)
                frame = _forward(frames, wanted)
            if frame is None:
                raise OSError(f"{path}: frame {i} is no longer where it was at the start of the run")
            reached = wanted
            yield _rgb(frame)
    finally:
        container.close()


def _open(path: str) -> av.container.InputContainer:
    container = av.open(path)
    in_worker = torch.utils.data.get_worker_info() is not None  # workers share the cores already
    container.streams.video[0].thread_type = "SLICE" if in_worker else "AUTO"
    return container


def _forward(frames: Iterator[av.VideoFrame], wanted: int) -> av.VideoFrame | None:
    for frame in frames:
        if frame.pts >= wanted:
            return frame if frame.pts == wanted else None
    return None


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    """(H,W,3) uint8, turned upright, and mirrored, as the file asks."""
    picture = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get(Side.DISPLAYMATRIX)
    if matrix is not None:
        a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].astype(np.float64)
        picture = picture[::-1] if a * d < b * c else picture  # what `rotation` does not tell
    return np.ascontiguousarray(np.rot90(picture, frame.rotation // 90))  # since PyAV 18 also for rows that it pads
