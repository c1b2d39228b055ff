"""Fit a picture of any shape to the clip's height and width: scale and crop, never stretch.

The whole project fits pictures here, so a photograph given to a trained model is treated as its training clips were.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from timelapse.dataset.photos import read_photo, upright_size


def crop_box(
    width: int, height: int, to_width: int, to_height: int, pixel_aspect: float = 1.0
) -> tuple[int, int, int, int]:
    """Largest centred (left, top, width, height) of the source that has the target's shape once displayed.

    pixel_aspect: displayed width over height of one source pixel (1 but for anamorphic video).
    """
    shape = to_width / to_height / pixel_aspect  # of the box, counted in source pixels
    box_width = max(1, round(min(width, height * shape)))
    box_height = max(1, round(min(height, width / shape)))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def pad_box(
    width: int, height: int, to_width: int, to_height: int, pixel_aspect: float = 1.0
) -> tuple[int, int, int, int]:
    """Where (left, top, width, height) the whole source lies inside the target when bars fill the rest."""
    scale = min(to_width / (width * pixel_aspect), to_height / height)
    inner_width = min(to_width, max(1, round(width * pixel_aspect * scale)))
    inner_height = min(to_height, max(1, round(height * scale)))
    return (to_width - inner_width) // 2, (to_height - inner_height) // 2, inner_width, inner_height


def fit(picture: Tensor, height: int, width: int, how: str = "crop", pixel_aspect: float = 1.0) -> Tensor:
    """(H,W,3) uint8 of any shape -> (3,height,width) uint8.

    how: `crop` scales until the target is covered and keeps the centre; `pad` keeps everything between black bars.
    Bilinear with antialiasing: when shrinking, each target pixel averages all the source pixels that it covers.
    """
    source = picture.permute(2, 0, 1)[None]  # channels-last in memory, where torch's uint8 resize is fastest
    source_height, source_width = picture.shape[:2]
    if how == "crop":
        left, top, w, h = crop_box(source_width, source_height, width, height, pixel_aspect)
        return _resize(source[..., top : top + h, left : left + w], height, width)[0]
    if how == "pad":
        left, top, w, h = pad_box(source_width, source_height, width, height, pixel_aspect)
        bars = (left, width - w - left, top, height - h - top)
        return F.pad(_resize(source, h, w), bars)[0]
    raise ValueError(
        f"fit={how}: expected crop (cover, keep the centre) or pad (keep all, black bars); set dataset.fit=crop"
    )


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


def describe_fit(
    width: int, height: int, to_width: int, to_height: int, how: str = "crop", pixel_aspect: float = 1.0
) -> str:
    """One line on what `fit` does to a source of this size, for the log and the report."""
    text = f"{width}x{height} fitted to {to_width}x{to_height} without stretching: "
    if how == "pad":
        _, _, w, h = pad_box(width, height, to_width, to_height, pixel_aspect)
        bars = 1 - w * h / (to_width * to_height)
        return text + f"the whole picture, black bars on {bars:.0%} of the frame"
    left, top, w, h = crop_box(width, height, to_width, to_height, pixel_aspect)
    enlarged = f", enlarged {to_height / h:.1f} times" if h < to_height else ""
    if (w, h) == (width, height):
        return text + "the whole picture" + enlarged
    return text + f"centre {w}x{h} from ({left},{top}), {w * h / (width * height):.0%} of the picture" + enlarged


def load_image(path: str | Path, height: int, width: int, how: str = "crop") -> tuple[Tensor, str]:
    """One photograph as a frame of a clip: (3,height,width) float32 in [-1,1], and a line on how it was fitted.

    Raises OSError naming the path.
    """
    picture = read_photo(path, height, width)
    with Image.open(path) as image:
        original = upright_size(image)
    return to_unit(fit(torch.from_numpy(picture), height, width, how)), describe_fit(*original, width, height, how)


def _resize(source: Tensor, height: int, width: int) -> Tensor:
    if source.shape[-2:] == (height, width):
        return source
    return F.interpolate(source, (height, width), mode="bilinear", antialias=True, align_corners=False)
