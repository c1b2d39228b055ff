"""Videos and pictures inside the page, as data: URIs, within a size that a mail or an issue takes."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from timelapse.dataset.write import FPS, read_video, write_video
from timelapse.report.sheet import resize

# Short side and H.264 quality, tried in this order until all videos fit; None keeps the files as they are.
LADDER = (None, (384, 24), (256, 26), (256, 30), (192, 32), (160, 34))


def embed_videos(paths: Sequence[Path], most: float = 6.5e6) -> dict[Path, str]:
    """Path -> data: URI; together at most `most` bytes of video (a third more in base64), or as near as the
    smallest size gets."""
    shrunk: list[bytes] = []
    for step in LADDER:
        bar = tqdm(paths, desc=f"videos of the page{f', at {step[0]} pixels' if step else ''}", delay=2, leave=False)
        shrunk = [path.read_bytes() if step is None else shrink(path, *step) for path in bar]
        if sum(map(len, shrunk)) <= most:
            break
    return {path: data_uri("video/mp4", data) for path, data in zip(paths, shrunk)}


def shrink(path: Path, short_side: int, crf: int) -> bytes:
    """The video again, smaller; as it is when it is small already."""
    video = read_video(path)
    height, width = video.shape[-2:]
    factor = min(1.0, short_side / min(height, width))
    video = resize(video, round(height * factor), round(width * factor))
    with tempfile.TemporaryDirectory() as folder:
        smaller = Path(folder) / "a.mp4"
        write_video(smaller, video.float() / 127.5 - 1, FPS, crf=crf, short_side=1)
        return min(smaller.read_bytes(), path.read_bytes(), key=len)


def image_uri(picture: Tensor) -> str:
    """(3 or 4,H,W) uint8 -> data: URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(buffer, "WEBP", quality=88)
    return data_uri("image/webp", buffer.getvalue())


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
