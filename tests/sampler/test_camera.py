from __future__ import annotations

import pytest
import torch

from timelapse.sampler.camera import CAMERAS, camera_motion, check_points, homography, level_of

FULL = [[0, 0], [1, 0], [1, 1], [0, 1]]
TURNED = [[0.1, 0.05], [0.95, 0.15], [0.95, 0.85], [0.1, 0.95]]


def ramp(height: int = 32, width: int = 80) -> torch.Tensor:
    """Channel 0 rises with x, channel 1 with y: a pixel says where it came from."""
    x, y = torch.arange(width).float(), torch.arange(height).float()
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width), torch.zeros(height, width)])


def test_pans_cross_the_picture_as_the_public_code_does():
    """Frame i is the crop that starts at int(room * i / T); to the left, at int(room * (1 - i / T))."""
    picture = ramp()
    starts = {way: camera_motion(picture, f"pan_{way}", 16, 32, 32)[:, 0, 0, 0].tolist() for way in ("right", "left")}
    assert starts["right"] == [int(48 * i / 16) for i in range(16)]
    assert starts["left"] == [int(48 * (1 - i / 16)) for i in range(16)]
    tall = camera_motion(ramp(80, 32), "pan_down", 16, 32, 32)[:, 1, 0, 0].tolist()
    assert tall == [int(48 * i / 16) for i in range(16)]


@pytest.mark.parametrize("way, channel, sign", [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)])
def test_a_picture_of_the_frames_own_shape_is_enlarged_to_make_room(way, channel, sign):
    shots = camera_motion(ramp(64, 64), f"pan_{way}", 17, 64, 64)
    moved = shots[-1, channel].mean() - shots[0, channel].mean()
    assert sign * moved == pytest.approx(64 * 0.2 * 16 / 17, abs=1.0)  # a quarter of the side, seen 1.25 times enlarged


def test_zooms_end_at_two_thirds_of_the_view():
    out, into = (camera_motion(ramp(64, 64), f"zoom_{way}", 60, 64, 64) for way in ("out", "in"))
    spread = lambda shot: (shot[0, 0, -1] - shot[0, 0, 0]).item()
    assert spread(into[0]) == pytest.approx(63) and spread(into[-1]) == pytest.approx(63 / 1.5, abs=2)
    assert spread(out[0]) == pytest.approx(63 / 1.5, abs=2) and spread(out[-1]) == pytest.approx(63, abs=2)
    centres = into[:, 0].mean((1, 2))
    torch.testing.assert_close(centres, torch.full_like(centres, 31.5), rtol=0, atol=0.6)


def test_a_homography_takes_corners_to_corners():
    source, target = torch.tensor(FULL).float(), torch.tensor(TURNED)
    points = torch.cat([source, torch.ones(4, 1)], dim=1) @ homography(source, target).T
    torch.testing.assert_close(points[:, :2] / points[:, 2:], target, rtol=0, atol=1e-5)


def test_perspective_goes_from_the_whole_picture_to_the_four_points():
    shots = camera_motion(ramp(64, 64), "perspective", 9, 64, 64, TURNED)
    torch.testing.assert_close(shots[0], ramp(64, 64), rtol=0, atol=0.6)
    for (row, column), (x, y) in zip([(0, 0), (0, -1), (-1, -1), (-1, 0)], TURNED):
        assert shots[-1, 0, row, column].item() == pytest.approx(64 * x - 0.5, abs=1.5)
        assert shots[-1, 1, row, column].item() == pytest.approx(64 * y - 0.5, abs=1.5)
    still = camera_motion(ramp(64, 64), "perspective", 3, 64, 64, FULL)
    torch.testing.assert_close(still[2], still[0], rtol=0, atol=1e-4)


def test_the_papers_strengths():
    assert [level_of(c) for c in ("pan_left", "zoom_in", "perspective")] == [(750, 0.5), (750, 0.5), (700, 0.5)]


@pytest.mark.parametrize(
    "points",
    [
        None,
        [[0, 0], [1, 0], [1, 1]],
        [[0, 0], [1, 1], [1, 0], [0, 1]],  # crossed
        [[0, 0], [0, 1], [1, 1], [1, 0]],  # counter-clockwise
        [[0, 0], [0.5, 0], [1, 0], [0, 1]],  # three in a row
        [[0, 0], [1.2, 0], [1, 1], [0, 1]],  # outside
        [[0, 0], [1, 0], [0.2, 0.2], [0, 1]],  # not convex
        ["a", "b", "c", "d"],
        5,
        "abcd",
        [[0.5, 0.5]] * 4,
    ],
)
def test_four_points_that_are_no_quadrilateral_are_explained(points):
    with pytest.raises(ValueError, match=r"input\.points=.*convex quadrilateral.*clockwise"):
        check_points(points)


def test_a_small_quadrilateral_is_one_too():
    small = [[0.5 + 0.03 * x, 0.5 + 0.03 * y] for x, y in TURNED]
    torch.testing.assert_close(check_points(small), torch.tensor(small))


def test_a_misspelt_camera_names_the_others():
    with pytest.raises(ValueError, match=r"input\.camera='pan_lefft' is unknown; choose one of pan_left, .*null"):
        camera_motion(ramp(), "pan_lefft", 16, 32, 32)
    with pytest.raises(ValueError, match="at least 2 frames"):
        camera_motion(ramp(), "zoom_in", 1, 32, 32)
    for camera in CAMERAS:
        assert camera_motion(ramp(), camera, 3, 16, 24, TURNED).shape == (3, 3, 16, 24)
