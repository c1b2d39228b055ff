from __future__ import annotations

import resource
from pathlib import Path

import pytest

from timelapse.callback.history import History, read_rows


def train(logger: History, start: int, stop: int) -> None:
    """What a run logs: learning rate and losses each step, held-out losses every third step."""
    for step in range(start, stop):
        logger.log_metrics({"lr": 0.1 / (step + 1)}, step)
        logger.log_metrics({"train/loss": 1 / 3 + step, "epoch": 0}, step)
        if step % 3 == 2:
            logger.log_metrics({"val/denoise_t100": step / 7, "epoch": 0}, step + 1)


def test_continued_is_the_same_as_never_interrupted(tmp_path: Path):
    train(History(tmp_path / "a"), 0, 10)
    train(History(tmp_path / "b"), 0, 8)  # killed after step 7 ...
    train(History(tmp_path / "b"), 5, 10)  # ... with a checkpoint of step 5
    whole, continued = read_rows(tmp_path / "a/metrics.csv"), read_rows(tmp_path / "b/metrics.csv")
    order = lambda rows: sorted(rows, key=lambda row: (int(row["step"]), sorted(row)))
    assert order(continued) == order(whole)
    assert float(whole[1]["train/loss"]) == 1 / 3  # to the last bit


def test_a_validation_at_the_step_of_the_checkpoint_stays(tmp_path: Path):
    train(History(tmp_path), 0, 6)  # logs held-out losses at step 6, where the checkpoint is
    train(History(tmp_path), 6, 7)
    assert [r["val/denoise_t100"] for r in read_rows(tmp_path / "metrics.csv") if "val/denoise_t100" in r] == [
        repr(2 / 7),
        repr(5 / 7),
    ]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path):
    train(History(tmp_path), 0, 3)
    path = tmp_path / "metrics.csv"
    rows = read_rows(path)
    path.write_text(path.read_text() + "3,0,0.0")
    assert read_rows(path) == rows
    train(History(tmp_path), 3, 4)
    assert len(read_rows(path)) == len(rows) + 2


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_number_that_a_kill_cut_short_is_left_out_too(tmp_path: Path, cut: int):
    train(History(tmp_path), 0, 3)
    path = tmp_path / "metrics.csv"
    rows = read_rows(path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_rows(path) == rows[:-1]


@pytest.mark.parametrize("start", [0, 5])  # a run's first rows, or later ones
def test_rows_of_a_full_disk_are_written_once_there_is_room(tmp_path: Path, caplog, start: int):
    train(History(tmp_path / "a"), 0, 10)
    logger, limits = History(tmp_path / "b"), resource.getrlimit(resource.RLIMIT_FSIZE)
    train(logger, 0, start)
    size = logger.path.stat().st_size if start else 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 11, limits[1]))
    try:
        train(logger, start, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caplog.text.count("could not be written") == 1
    train(logger, 8, 10)
    assert read_rows(tmp_path / "b/metrics.csv") == read_rows(tmp_path / "a/metrics.csv")
