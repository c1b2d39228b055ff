"""Camera motion as a layout: the first frame cropped or warped along a path, for FrameInit to follow.

Source: ConsistI2V (arXiv:2402.04324), section 5.5, and its public code for pans and zooms; perspective motion is not
in that code. The *camera* moves: under pan_left the picture's content goes to the right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from timelapse.dataset.fit import crop_box

CAMERAS = ("pan_left", "pan_right", "pan_up", "pan_down", "zoom_in", "zoom_out", "perspective")
ZOOM = 1.5  # between the widest and the narrowest view
ROOM = 0.25  # a pan goes at least this share of the frame's side


def level_of(camera: str) -> tuple[int, float]:
    """The paper's tau and D0 (section 5.5)."""
    return (700, 0.5) if camera == "perspective" else (750, 0.5)


def camera_motion(
    picture: Tensor, camera: str, frames: int, height: int, width: int, points: Sequence[Sequence[float]] | None = None
) -> Tensor:
    """Video (T,3,H,W) of a camera moving over a picture (3,H',W') of any size, values as they are.

    points: for `perspective`, where the view's corners end: four (x, y) in shares 0..1 of the fitted picture, from the
    top left clockwise. Frame 0 is the fitted picture (for zoom_out its middle, for pans one of its sides).
    """
    check_camera(camera, frames, points)
    if camera == "perspective":
        return perspective(picture, check_points(points), frames, height, width)
    kind, _, way = camera.partition("_")
    return zoom(picture, way, frames, height, width) if kind == "zoom" else pan(picture, way, frames, height, width)


def check_camera(camera: str, frames: int, points: Sequence[Sequence[float]] | None = None) -> None:
    """ValueError for an unknown camera, too few frames to move in, and points that `perspective` cannot go to."""
    if camera not in CAMERAS:
        raise ValueError(f"input.camera={camera!r} is unknown; choose one of {', '.join(CAMERAS)}, or null")
    if frames < 2:
        raise ValueError(f"input.camera={camera} needs at least 2 frames; video.frames is {frames}")
    if camera == "perspective":
        check_points(points)


def pan(picture: Tensor, way: str, frames: int, height: int, width: int) -> Tensor:
    """Crops from one side of the picture to the other.

    As in the public code frame i stands at i / T of the way, so that the last crop stops short of the end. There a
    picture of the frame's own shape leaves no room and stands still; here it is enlarged until a quarter of a side is.
    """
    across = way in ("left", "right")
    need = (height, width * (1 + ROOM)) if across else (height * (1 + ROOM), width)
    scale = max(need[0] / picture.shape[1], need[1] / picture.shape[2])
    cover = max(height / picture.shape[1], width / picture.shape[2])
    full = cover if _room(picture, cover, height, width, across) >= ROOM else scale
    large = _resize(picture, round(picture.shape[1] * full), round(picture.shape[2] * full))
    room_y, room_x = large.shape[1] - height, large.shape[2] - width
    shots = []
    for i in range(frames):
        done = i / frames if way in ("right", "down") else 1 - i / frames
        top, left = (room_y // 2, int(room_x * done)) if across else (int(room_y * done), room_x // 2)
        shots.append(large[:, top : top + height, left : left + width])
    return torch.stack(shots)


def zoom(picture: Tensor, way: str, frames: int, height: int, width: int) -> Tensor:
    """Centred crops, from the whole picture to 1 / 1.5 of it (in) or back (out), their size linear in time."""
    left, top, full_width, full_height = crop_box(picture.shape[2], picture.shape[1], width, height)
    shots = []
    for i in range(frames):
        narrow = i / frames if way == "in" else 1 - i / frames
        share = 1 - (1 - 1 / ZOOM) * narrow
        w, h = max(1, round(full_width * share)), max(1, round(full_height * share))
        x, y = left + (full_width - w) // 2, top + (full_height - h) // 2
        shots.append(_resize(picture[:, y : y + h, x : x + w], height, width))
    return torch.stack(shots)


def perspective(picture: Tensor, points: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Views whose corners go from the picture's own to `points` (4,2), each warped to the whole frame."""
    left, top, w, h = crop_box(picture.shape[2], picture.shape[1], width, height)
    fitted = picture[:, top : top + h, left : left + w].float()
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    square = torch.stack([x, y, torch.ones_like(x)], dim=-1)  # (H,W,3)
    shots = []
    for i in range(frames):
        view = torch.lerp(corners, points, i / (frames - 1))
        seen = square @ homography(corners, view).T
        grid = (2 * seen[..., :2] / seen[..., 2:] - 1)[None]
        source = _resize(fitted, 2 * height, 2 * width)[None]
        shots.append(F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)[0])
    return torch.stack(shots).to(picture.dtype)


def homography(source: Tensor, target: Tensor) -> Tensor:
    """(3,3) that takes four points (4,2) to four others; its last entry is 1."""
    rows, right = [], []
    for (x, y), (u, v) in zip(source.double().tolist(), target.double().tolist()):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    solved = torch.linalg.solve(torch.tensor(rows, dtype=torch.float64), torch.tensor(right, dtype=torch.float64))
    return torch.cat([solved, torch.ones(1, dtype=torch.float64)]).reshape(3, 3).float()


def check_points(points: Sequence[Sequence[float]] | None) -> Tensor:
    """(4,2) of a convex quadrilateral, clockwise from the top left, or a ValueError that says what is expected."""
    try:
        corners = torch.tensor([[float(x), float(y)] for x, y in points or []])
    except (TypeError, ValueError):
        corners = torch.empty(0, 2)
    inside = corners.shape == (4, 2) and bool(((corners >= 0) & (corners <= 1)).all())
    if inside:
        edges = corners.roll(-1, 0) - corners
        after = edges.roll(-1, 0)
        turns = edges[:, 0] * after[:, 1] - edges[:, 1] * after[:, 0]  # all to the right: convex and clockwise
        inside = bool((turns > 1e-3 * edges.norm(dim=1) * after.norm(dim=1)).all())  # of any size
    if not inside:
        listed = lambda p: [listed(x) for x in p] if isinstance(p, Sequence) and not isinstance(p, str) else p
        raise ValueError(
            f"input.points={listed(points)}: expected a convex quadrilateral, four [x,y] in 0..1 clockwise from "
            f"the top left, e.g. [[0.1,0.05],[0.95,0.15],[0.95,0.85],[0.1,0.95]]"
        )
    return corners


def _room(picture: Tensor, scale: float, height: int, width: int, across: bool) -> float:
    return picture.shape[2] * scale / width - 1 if across else picture.shape[1] * scale / height - 1


def _resize(picture: Tensor, height: int, width: int) -> Tensor:
    if picture.shape[1:] == (height, width):
        return picture
    options = {"mode": "bilinear", "antialias": True, "align_corners": False}
    return F.interpolate(picture[None].float(), (height, width), **options)[0]
