"""A run killed at any moment and started again ends with the numbers of one that was never killed."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small import SMALL  # noqa: E402

from timelapse.callback.history import read_rows  # noqa: E402

STEPS = 12
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def command(folder: Path) -> list[str]:
    overrides = [f"paths.runs={folder}", f"paths.cache={folder.parent}/cache", f"train.steps={STEPS}", "stages=[fit]"]
    return [sys.executable, "-m", "timelapse.run", "+experiment=drepa_vjepa", *SMALL, *overrides]


def metrics(folder: Path) -> Path | None:
    return next(folder.glob("*/*/metrics.csv"), None)


def steps_logged(folder: Path) -> int:
    path = metrics(folder)
    return len(read_rows(path)) if path else 0


def rows(folder: Path) -> dict[int, dict[str, str]]:
    merged: dict[int, dict[str, str]] = {}
    for row in read_rows(metrics(folder)):
        merged.setdefault(int(row["step"]), {}).update(row)
    return merged


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kill") / "whole"
    subprocess.run(command(folder), check=True, capture_output=True)
    return folder


def test_killed_at_random_and_continued_equals_uninterrupted(whole):
    folder, kills, dice = whole.parent / "killed", 0, random.Random(0)
    while True:
        process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if kills < 3:
            target = steps_logged(folder) + 2 + dice.randrange(4)
            while process.poll() is None and steps_logged(folder) < target:
                time.sleep(0.02)
            time.sleep(dice.random() * 0.5)
            if process.poll() is None:
                process.kill()
                kills += 1
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert kills >= 1 and rows(folder) == rows(whole) and max(rows(folder)) >= STEPS - 1


def test_sigterm_saves_at_once_and_the_same_command_goes_on(whole):
    folder = whole.parent / "preempted"
    process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while steps_logged(folder) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 143
    before = max(rows(folder))
    subprocess.run(command(folder), check=True, capture_output=True)
    assert rows(folder) == rows(whole) and before < STEPS - 1
