"""What is installed from a wheel runs without the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from timelapse.run import CONF

ROOT = CONF.parent


def test_a_wheel_carries_config_and_weights_and_runs_without_the_checkout(tmp_path, monkeypatch):
    backend = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(ROOT)  # where a build backend is called
    name = backend.build_wheel(str(tmp_path))
    with zipfile.ZipFile(tmp_path / name) as wheel:
        wheel.extractall(tmp_path / "installed")
        inside = set(wheel.namelist())
    here = lambda pattern: {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)}
    assert {f"timelapse/{path}" for path in here("conf/**/*.yaml")} <= inside
    assert here("timelapse/**/*.py") | here("timelapse/assets/*.[sj]*") <= inside
    assert not [path for path in inside if path.startswith(("tests/", "experiments/", "conf/", "runs/", "cache/"))]
    away = tmp_path / "elsewhere"
    away.mkdir()
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    code = "import timelapse.run as r; print(r.CONF)"
    conf = subprocess.run([sys.executable, "-c", code], cwd=away, env=env, capture_output=True, text=True, check=True)
    assert Path(conf.stdout.strip()) == tmp_path / "installed" / "timelapse" / "conf"
    command = [sys.executable, "-m", "timelapse.run", "+experiment=drepa_vjepa", "seed=3", "--cfg", "job"]
    told = subprocess.run(command, cwd=away, env=env, capture_output=True, text=True, check=True).stdout
    assert "name: drepa_vjepa" in told and "seed: 3" in told
