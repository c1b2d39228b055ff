import numpy as np
import pytest

from timelapse.dataset.windows import DAY, is_even, photo_intervals, photo_windows, serve, video_windows


def garden(days=20):
    """Photographs at 13, 16 and 19 h, a second or so off, as a real camera took them; seconds."""
    hours = np.array([24 * day + hour for day in range(days) for hour in (13, 16, 19)], dtype=float)
    return hours * 3600 + np.random.default_rng(0).uniform(-1, 1, len(hours)).round()


def test_frames_are_chosen_by_time_where_the_index_would_be_wrong():
    times = np.array([0, 1, 2, 3, 10, 20, 30, 41.0])  # a burst at the start
    windows, rejected = photo_windows(times, 5, [10.0], most=9)
    assert [w.frames for w in windows][0] == (0, 4, 5, 6, 7)
    assert tuple(np.linspace(0, 7, 5).round().astype(int)) != windows[0].frames
    assert rejected == 0 and all(len(set(w.frames)) == 5 for w in windows)


@pytest.mark.parametrize("moved, holds", [(20.0, True), (24.0, True), (25.0, True), (25.1, False), (16.0, True)])
def test_the_nearest_photograph_serves_within_half_the_interval_else_the_window_is_rejected(moved, holds):
    times = np.array([0, 10, moved, 33, 40.0])
    windows, rejected = photo_windows(times, 5, [10.0], most=1)
    assert (len(windows), rejected) == ((1, 0) if holds else (0, 1))


def test_no_photograph_serves_two_instants():
    nearest, holds = serve(np.array([0, 5, 20.0]), np.array([0.0]), 10.0, 3)
    assert nearest.tolist() == [[0, 1, 2]] and holds.all()
    _, holds = serve(np.array([0, 15.0, 15.2]), np.array([0.0]), 10.0, 3)  # 15 is near to 10 and 20, 15.2 nearer to 20
    assert holds.all()
    _, holds = serve(np.array([0, 15.0]), np.array([0.0]), 10.0, 3)
    assert not holds.any()


def test_nearest_agrees_with_a_search_over_all_photographs():
    random = np.random.default_rng(1)
    times = np.sort(random.uniform(0, 100, 60))
    starts = times[times < 50]
    nearest, holds = serve(times, starts, 5.0, 9)
    for start, row, held in zip(starts, nearest, holds):
        instants = start + 5.0 * np.arange(9)
        distance = np.abs(times[None] - instants[:, None])
        assert np.allclose(np.abs(times[row] - instants), distance.min(1))
        assert held == bool((distance.min(1) <= 2.5).all() and (np.diff(row) > 0).all())


def test_a_day_apart_means_the_same_hour():
    times = garden()
    assert DAY in photo_intervals(times, 9, (1.0, 0.5))
    windows, rejected = photo_windows(times, 9, [DAY], most=6)
    assert len(windows) == 6 and rejected == 0
    assert windows[0].frames[0] == 0 and windows[-1].frames[-1] >= len(times) - 3  # from the first day to the last
    for window in windows:
        hours = times[list(window.frames)] / 3600 % 24
        assert np.ptp(hours) < 0.01


def test_nights_reject_short_intervals():
    windows, rejected = photo_windows(garden(), 5, [3 * 3600.0], most=3)
    assert windows == [] and rejected > 0


def test_intervals_of_days_are_whole_days():
    times = garden(39)
    intervals = photo_intervals(times, 17, (1.0, 0.5, 0.25))
    assert intervals[:2] == [2 * DAY, DAY] and intervals[2] == pytest.approx((times[-1] - times[0]) / 4 / 16)
    assert photo_intervals(np.arange(20) * 60.0, 17, (1.0,)) == [pytest.approx(19 * 60 / 16)]  # minutes: no day in it


def test_video_spans_follow_the_sheet():
    seconds = np.arange(240) / 24
    windows = video_windows(seconds, 49, (1.0, 0.5, 0.25), (), most=1)
    assert [w.frames for w in windows] == [
        tuple(np.linspace(0, 239, 49).round().astype(int)),
        tuple(np.linspace(0, 119, 49).round().astype(int)),
        tuple(np.linspace(0, 59, 49).round().astype(int)),
    ]
    assert [w.interval for w in windows] == pytest.approx([239 / 48 / 24, 119 / 48 / 24, 59 / 48 / 24])
    assert len(video_windows(np.arange(49) / 8, 49, (1.0, 0.5, 0.25), (), most=4)) == 1
    assert video_windows(np.arange(48) / 8, 49, (1.0,), (1,), most=4) == []


def test_strides_and_overlapping_windows_of_a_video():
    windows = video_windows(np.arange(30.0), 5, (), (1, 4), most=3)
    assert [w.frames for w in windows] == [
        *[(s, s + 4, s + 8, s + 12, s + 16) for s in (0, 6, 13)],  # 13 = the last start, 6 = round(6.5)
        *[tuple(range(s, s + 5)) for s in (0, 12, 25)],
    ]


def test_even_times():
    assert is_even(np.arange(10) / 24) and is_even(np.round(np.arange(99) / 24, 3))
    assert not is_even(np.array([0, 1, 2, 3, 10.0]))
