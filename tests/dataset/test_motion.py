"""What moves one way does so in its pixels, and the ten processes are untouched by it."""

from __future__ import annotations

import pytest
import torch

from timelapse.dataset.synthetic import Synthetic
from timelapse.dataset.world.processes import MOTIONS, PROCESSES
from timelapse.metric.motion_direction import MotionDirection, MotionError


def clips(name: str, frames: int = 6, size: int = 32) -> list[dict]:
    data = Synthetic(processes=(name,), frames=frames, height=size, width=size, size=2)
    return [data[i] | data.identity(i) for i in range(2)]


@pytest.mark.parametrize("name", ["car", "walker", "ball"])
def test_movers_go_the_way_they_face(name):
    x = torch.linspace(-1, 1, 32)
    for clip in clips(name):
        mask = clip["mask"][:, 0]
        centre = (mask * x).sum((1, 2)) / mask.sum((1, 2))
        assert ((centre * clip["heading"]).diff() > 0).all()


def test_a_vine_only_grows_and_sand_only_falls():
    for clip in clips("vine"):
        assert (clip["mask"].sum((1, 2, 3)).diff() > 0).all()
    for clip in clips("hourglass"):
        video = clip["video"]
        yellow = (video[:, 0] - video[:, 2]).clamp_min(0) * clip["mask"][:, 0]  # sand is yellow, glass is not
        above, below = yellow[:, 6:16, 11:21].sum((1, 2)), yellow[:, 17:26, 11:21].sum((1, 2))
        assert (above.diff() < 0).all() and (below.diff() > 0).all()


@pytest.mark.parametrize("name", list(MOTIONS))
def test_backwards_shows(name):
    for clip in clips(name, frames=9):
        truth, still = clip["video"][None], clip["video"][None, :1].expand(1, 9, -1, -1, -1)
        for video, direction in ((truth, 1.0), (truth.flip(1), 0.0), (still, 1.0)):
            metric = MotionDirection()
            metric.update(video=video, truth=truth)
            assert metric.compute() == direction
        error = MotionError()
        error.update(video=truth, truth=truth)
        assert error.compute() < 0.05


def test_the_ten_processes_keep_their_clips_and_numbers():
    data = Synthetic(size=12, frames=2, height=8, width=8)
    assert data.names == tuple(PROCESSES) and len(PROCESSES) == 10 and not PROCESSES.keys() & MOTIONS.keys()
    assert [data.identity(i)["process"] for i in range(12)] == [*range(10), 0, 1]
    with pytest.raises(ValueError, match="car,walker,ball,hourglass,vine"):
        Synthetic(processes=("train",))
