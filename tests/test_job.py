"""Jobs of a sweep under launchers that call functions, on a small real Hydra app run as a program."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from timelapse.job import score

APP = """
import os, signal, sys, time
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from timelapse.finished import mark_finished
from timelapse.job import run_job
from timelapse.launcher import register

def task(cfg):
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_job(cfg, "app")
    out = Path(HydraConfig.get().runtime.output_dir)
    with open(out / "ran", "a") as f:
        f.write(f"{HydraConfig.get().mode.name}\\n")
    if cfg.x == 2:
        raise ValueError("x is 2; expected another number; type x=1")
    if cfg.x == 7 and not (out / "saved").exists():
        def save(*_):
            time.sleep(0.3)
            (out / "saved").write_text("")
            sys.exit(143)
        signal.signal(signal.SIGTERM, save)
        (out / "parent").write_text(str(os.getppid()))
        time.sleep(600)
    (out / "metrics.json").write_text('{"score": %f}' % (cfg.x * 10))
    mark_finished(out, cfg.stages)

start = hydra.main(version_base="1.3", config_path="conf", config_name="config")(task)
if __name__ == "__main__":
    register()
    start()
"""
CONFIG = """
x: 1
stages: [fit]
objective: score
hydra:
  run: {dir: "runs/${x}"}
  sweep: {dir: runs, subdir: "${x}"}
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/config.yaml").write_text(CONFIG)
    return tmp_path


def sweep(app: Path, launcher: str, values: str) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": f"{app}:{Path(__file__).parents[1]}"}
    command = [sys.executable, "-m", "app", "-m", f"hydra/launcher={launcher}", f"x={values}"]
    return subprocess.Popen(command, cwd=app, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def runs(app: Path) -> dict[str, int]:
    """How often each job was started, as a run of its own."""
    files = {path.parent.name: path.read_text().split() for path in app.glob("runs/*/ran")}
    assert all(set(modes) == {"RUN"} for modes in files.values())
    return {x: len(modes) for x, modes in files.items()}


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_through_submitit_a_job_fails_alone_and_a_preempted_one_saves_and_is_requeued(app: Path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    first = sweep(app, "submitit_local", "1,2,7")
    parent = app / "runs/7/parent"
    while not (parent.exists() and parent.read_text()):
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.05)
    os.kill(int(parent.read_text()), signal.SIGUSR2)  # what submitit has SLURM send before a job is stopped
    said = first.communicate()[0]
    assert first.returncode != 0 and "x is 2; expected another number; type x=1" in said
    assert runs(app) == {"1": 1, "2": 1, "7": 2} and (app / "runs/7/metrics.json").exists()

    again = sweep(app, "submitit_local", "1,2,7")
    assert "x is 2" in again.communicate()[0]
    assert runs(app) == {"1": 1, "2": 2, "7": 2}  # only what is missing


@pytest.mark.timeout(600)
def test_through_joblib_a_failed_job_leaves_the_others_alone(app: Path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    first = sweep(app, "joblib", "2,3")
    assert "x is 2; expected another number; type x=1" in first.communicate()[0]
    assert runs(app) == {"2": 1, "3": 1} and (app / "runs/3/finished.json").exists()


def test_what_a_sweep_optimises(tmp_path: Path):
    (tmp_path / "metrics.json").write_text(
        json.dumps({"subject_consistency": 0.9, "morphing_degree": 0.2, "void": None})
    )
    (tmp_path / "metrics.csv").write_text(
        "step,train/loss,val/denoise_t100,val/denoise_t0.5,val/denoise_rest_t100\n"
        "0,9,,,\n1,,5,7,9\n2,8,,,\n3,,1,2,9\n4,7.5,,,\n"
    )
    assert score(tmp_path, "subject_consistency") == 0.9
    assert score(tmp_path, ["subject_consistency", "morphing_degree"]) == (0.9, 0.2)
    assert score(tmp_path, "val/denoise") == 1.5 and score(tmp_path, "train/loss") == 7.5
    assert score(tmp_path, None) is None and math.isnan(score(tmp_path, "void"))  # not to be had of these samples
    with pytest.raises(ValueError, match="objective=sc is neither in metrics.json nor in metrics.csv"):
        score(tmp_path, "sc")
