from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from timelapse.dataset.write import write_video
from timelapse.report.embed import embed_videos
from timelapse.report.plots import line_plot, running_mean
from timelapse.report.run_files import read_curves
from timelapse.report.sheet import GIVEN, contact_sheet, pick, run_sheet


def grey(frames: int, size: int = 8) -> torch.Tensor:
    """Frame t has the grey level 10 t."""
    return (torch.arange(frames) * 10).to(torch.uint8).view(-1, 1, 1, 1).expand(frames, 3, size, size)


@pytest.mark.parametrize("given", [(), (3,), (0,), (16,), (3, 4), (7, 8, 9)])
def test_picked_frames_span_the_clip_and_hold_the_given_ones(given: tuple[int, ...]):
    chosen = pick(17, 5, given)
    assert len(chosen) == 5 and chosen == sorted(set(chosen)) and set(given) <= set(chosen)
    if not given:
        assert chosen == [0, 4, 8, 12, 16]


def test_the_sheet_shows_frames_in_order_and_frames_the_given_one(tmp_path: Path):
    path = contact_sheet([grey(17), grey(17)], tmp_path / "new/a.png", ["one", "two"], [[8], []], columns=3, height=20)
    sheet = np.asarray(Image.open(path).convert("RGB"))
    rows = [4 + 18 + 10, 4 + 18 + 24 + 18 + 10]  # through the middle of each row of frames
    columns = [4 + 10 + i * 24 for i in range(3)]
    assert [[tuple(sheet[y, x]) for x in columns] for y in rows] == [[(0,) * 3, (80,) * 3, (160,) * 3]] * 2
    outlined = np.all(sheet == GIVEN, axis=-1)
    assert outlined[rows[0], 27] and not outlined[46:].any()
    assert np.any(sheet[4:20] < 100)  # the label is written


def test_videos_are_shrunk_only_when_they_do_not_fit(tmp_path: Path):
    from timelapse.dataset.write import write_video

    noise = torch.rand(5, 3, 128, 160, generator=torch.Generator().manual_seed(0)) * 2 - 1
    paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for path in paths:
        write_video(path, noise)
    size = sum(path.stat().st_size for path in paths)
    full, small = embed_videos(paths, most=size), embed_videos(paths, most=size / 4)
    assert list(full) == paths and len(full[paths[0]]) >= size / 2 * 4 / 3
    assert sum(map(len, small.values())) * 3 / 4 <= size / 4 + 100


def test_running_mean_starts_unbiased():
    assert running_mean([3.0] * 50) == pytest.approx([3.0] * 50)
    assert running_mean([1.0, 0.0, 0.0])[0] == 1.0


def test_curves_skip_blanks_and_the_last_value_of_a_step_counts(tmp_path: Path):
    (tmp_path / "metrics.csv").write_text("step,epoch,a,b\n0,0,1.0,\n0,0,,5.0\n1,0,2.0,\n1,0,2.5,\n")
    assert read_curves(tmp_path / "metrics.csv") == {"a": ([0, 1], [1.0, 2.5]), "b": ([0], [5.0])}


def test_plots_follow_the_page_colours_and_are_the_same_every_time():
    svg = line_plot("a < b", {"x": ([0, 1], [1.0, 2.0])})
    assert svg == line_plot("a < b", {"x": ([0, 1], [1.0, 2.0])})
    assert "currentColor" in svg and "#010203" not in svg and "<metadata>" not in svg
    assert 'aria-label="a &lt; b"' in svg


def run_with(folder: Path, clips: dict[str, list[int]], brightness: float) -> Path:
    (folder / "samples").mkdir(parents=True)
    for key, known in clips.items():
        card = {"caption": f"time-lapse of {key}", "known": known, "frames": 17, "seconds": None}
        (folder / "samples" / f"{key}.json").write_text(json.dumps(card))
        for name, value in ((f"{key}.mp4", brightness), (f"{key}.truth.mp4", 0.0)):
            write_video(folder / "samples" / name, torch.full((17, 3, 32, 32), value))
    return folder


def test_a_run_has_a_sheet_of_its_samples(tmp_path: Path):
    run = run_with(tmp_path / "run", {"a": [8], "b": [0, 16]}, 0.0)
    one, both = (Image.open(run_sheet([run], tmp_path / "s.png", clips)) for clips in ([1], []))
    assert both.height - 4 == 2 * (one.height - 4)
    with pytest.raises(ValueError, match="2 samples"):
        run_sheet([run], tmp_path / "s.png", [2])


def test_runs_are_shown_below_each_other_on_the_clips_they_share(tmp_path: Path):
    dark = run_with(tmp_path / "dark", {"a": [0], "b": [0]}, -0.9)
    bright = run_with(tmp_path / "bright", {"b": [0], "c": [0]}, 0.9)
    path = run_sheet([dark, bright], tmp_path / "s.png", height=32, labels=["one", "two"])
    middle = np.asarray(Image.open(path).convert("L")).astype(int)[[4 + 18 + 16 + i * 54 for i in range(3)], 60]
    assert Image.open(path).height == 4 + 3 * 54  # of clip b: the real one, dark's, bright's
    assert np.abs(middle - [128, 13, 242]).max() < 8
    with pytest.raises(ValueError, match="1 labels for 2 runs"):
        run_sheet([dark, bright], tmp_path / "s.png", labels=["one"])
