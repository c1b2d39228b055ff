"""The `process` launcher on a small real Hydra app, run as users run it: as a program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hydra.core.utils import JobReturn

from timelapse.finished import finished, mark_finished
from timelapse.launcher import Job, ProcessLauncher, check_apart, clock, last_error

APP = """
import os, subprocess, sys, time
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from timelapse.finished import mark_finished
from timelapse.launcher import register
register()

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    out = Path(HydraConfig.get().runtime.output_dir)
    with open(out / "ran", "a") as f:
        f.write(f"{os.environ.get('SLOT')} {os.getpgid(0)} {HydraConfig.get().mode.name}\\n")
    together = [out.parent / str(x) / "ran" for x in (1, 2, 3)]
    while "SLOT" in os.environ and not all(path.exists() for path in together):
        time.sleep(0.05)  # all three run at once, so that no place is handed on
    if cfg.x == 2:
        raise ValueError("x is 2; expected another number; type x=1")
    if cfg.x == 9:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (out / "child").write_text(str(child.pid))
        time.sleep(600)
    (out / "metrics.json").write_text('{"score": %f}' % (cfg.x * 10))
    mark_finished(out, cfg.stages)
main()
"""
CONFIG = """
defaults: [{override hydra/launcher: process}]
x: 1
stages: [fit]
hydra:
  run: {dir: "runs/${x}"}
  sweep: {dir: runs, subdir: "${x}"}
  launcher: {module: app, objective: score, grace: 10}
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    conf = Path(__file__).parents[1] / "conf/hydra/launcher/process.yaml"
    (tmp_path / "conf/hydra/launcher").mkdir(parents=True)
    (tmp_path / "conf/hydra/launcher/process.yaml").write_text(conf.read_text())
    (tmp_path / "conf/config.yaml").write_text(CONFIG)
    return tmp_path


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "app", "-m", *args]


def test_a_failed_job_does_not_stop_the_others_and_finished_ones_are_skipped(app: Path):
    env = {**os.environ, "PYTHONPATH": f"{app}:{Path(__file__).parents[1]}"}
    sweep = command("x=1,2,3", "hydra.launcher.max_parallel=3", "+hydra.launcher.env.SLOT='{slot}'")
    first = subprocess.run(sweep, cwd=app, env=env, capture_output=True, text=True)
    said = first.stdout + first.stderr
    assert first.returncode != 0  # the sweep tells its caller that a job failed
    assert "3 jobs: 2 ok, 0 skipped, 1 failed" in said
    assert "ValueError: x is 2; expected another number; type x=1" in said
    ran = [(app / f"runs/{x}/ran").read_text().split() for x in (1, 2, 3)]
    assert {slot for slot, _, _ in ran} == {"0", "1", "2"}  # each parallel job has its own place
    assert len({group for _, group, _ in ran}) == 3  # and its own process group
    assert {mode for _, _, mode in ran} == {"RUN"}  # its distributed children never start the sweep again
    assert "x is 2" in (app / "runs/2/job.log").read_text()

    again = subprocess.run(sweep, cwd=app, env=env, capture_output=True, text=True)
    assert "3 jobs: 0 ok, 2 skipped, 1 failed" in again.stdout + again.stderr
    assert len((app / "runs/1/ran").read_text().splitlines()) == 1
    assert len((app / "runs/2/ran").read_text().splitlines()) == 2  # a failed job is tried again


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP])  # of a cluster, of a terminal that closes
def test_stopping_the_sweep_stops_what_its_jobs_started(app: Path, end: int):
    env = {**os.environ, "PYTHONPATH": f"{app}:{Path(__file__).parents[1]}"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    heard = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
    sweep = subprocess.Popen(command("x=9,1"), cwd=app, env=env, preexec_fn=heard, **quiet)
    marker = app / "runs/9/child"
    while not (marker.exists() and marker.read_text()):
        assert sweep.poll() is None
        time.sleep(0.05)
    sweep.send_signal(end)
    assert sweep.wait() != 0
    child = int(marker.read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert not (app / "runs/1").exists()  # the next job was not started


def test_jobs_that_would_replace_each_others_results_are_refused(app: Path):
    env = {**os.environ, "PYTHONPATH": f"{app}:{Path(__file__).parents[1]}"}
    (app / "conf/config.yaml").write_text(CONFIG.replace("x: 1\n", "x: 1\nsample: 0\n"))
    done = subprocess.run(command("x=1", "sample=0,8"), cwd=app, env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "'x=1 sample=0' and 'x=1 sample=8' would be one run, runs/1" in done.stderr
    assert not (app / "runs/1").exists()
    own = {"stages": ["sample", "evaluate"], "input": {"image": "a.jpg"}}
    for alike in (own, {"stages": ["plan"]}):  # own pictures have folders of their own
        check_apart([Job(i, [f"y={i}"], app / "runs/1", None, alike) for i in range(2)])


def test_finished_means_every_stage_asked_for(tmp_path: Path):
    assert not finished(tmp_path, ["fit"])
    mark_finished(tmp_path, ["fit"])
    mark_finished(tmp_path, ["sample", "report"])
    assert finished(tmp_path, ["report", "fit"])
    assert not finished(tmp_path, ["fit", "evaluate"])
    assert not finished(tmp_path, ["sample"], ["sample.count=16"])  # other samples are wanted than those there
    mark_finished(tmp_path, ["sample"], ["seed=1", "sample.count=16"])
    assert finished(tmp_path, ["sample"], ["sample.count=16", "trainer=ddp"])
    assert not finished(tmp_path, ["sample"]) and not finished(tmp_path, ["report"], ["sample.count=16"])
    mark_finished(tmp_path, ["export"])  # which has nothing to do with samples
    assert finished(tmp_path, ["fit", "export"]) and finished(tmp_path, ["fit", "sample"], ["sample.count=16"])
    (tmp_path / "finished.json").write_text("{")  # cut short by a full disk: run again rather than trust it
    assert not finished(tmp_path, ["fit"])


def test_a_job_whose_batch_or_clipping_a_file_changed_is_not_finished(tmp_path: Path):
    train = {"steps": 2, "batch_size": 4, "accumulate": 2, "clip_norm": 1.0, "validation_clips": 8, "workers": 4}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"train": train}))
    mark_finished(tmp_path, ["fit"])
    same = [{}, {"batch_size": 8, "accumulate": 1}, {"workers": 0}]  # on other hardware
    other = [{"batch_size": 16}, {"accumulate": 8}, {"clip_norm": 0.01}, {"validation_clips": 4}, {"steps": 3}]
    assert all(finished(tmp_path, ["fit"], config={"train": train | change}) for change in same)
    assert not any(finished(tmp_path, ["fit"], config={"train": train | change}) for change in other)


def test_the_error_shown_is_the_line_that_says_why(tmp_path: Path):
    log = tmp_path / "job.log"
    log.write_text(
        "step 1\rstep 2\r\nTraceback\n  x\nzlib.error: bad\nmy.CustomError: this\nnoise\n\n"
        "Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.\n"
    )
    assert last_error(log, 1) == "my.CustomError: this"
    assert last_error(log, -9) == "killed by SIGKILL, out of memory?"
    assert last_error(log, 143, start=log.stat().st_size).startswith("exit status 143")  # not an earlier attempt's
    log.write_text("")
    assert last_error(log, 3) == "exit status 3, the log is empty"
    assert clock(3725) == "1:02:05"


def test_a_jobs_own_error_says_so_once_in_the_sweeps_line():
    job = Job(0, ["x=2"], Path("runs/2"), JobReturn())
    ProcessLauncher()._fail(job, "error: x is 2; type x=1")  # run.py begins the line with "error:" itself
    assert str(job.result._return_value) == "x=2: x is 2; type x=1 (log: runs/2/job.log)"


def test_results_reach_the_sweeper_in_order(app: Path):
    (app / "driver.py").write_text("""
import json
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from hydra._internal.callbacks import Callbacks
from timelapse.launcher import register
import os
register()
with initialize_config_dir(os.path.abspath("conf"), version_base="1.3"):
    loader = GlobalHydra.instance().config_loader()
    config = loader.load_configuration("config", ["hydra.mode=MULTIRUN", "hydra.launcher.max_parallel=2"],
                                       run_mode=RunMode.MULTIRUN)
    context = HydraContext(config_loader=loader, callbacks=Callbacks(config))
    plugins = Plugins.instance()
    launcher = plugins.instantiate_launcher(hydra_context=context, task_function=None, config=config)
    returns = launcher.launch([["x=3"], ["x=2"], ["x=1"]], initial_job_idx=5)
json.dump([[r.status.name, r._return_value if r.status.name == "COMPLETED" else str(r._return_value), r.cfg.x,
            r.hydra_cfg.hydra.job.num, list(r.overrides)] for r in returns], open("out.json", "w"))
""")
    env = {**os.environ, "PYTHONPATH": f"{app}:{Path(__file__).parents[1]}"}
    subprocess.run([sys.executable, "driver.py"], cwd=app, env=env, check=True, capture_output=True)
    good, bad, last = json.loads((app / "out.json").read_text())
    assert good == ["COMPLETED", 30.0, 3, 5, ["x=3"]]
    assert last == ["COMPLETED", 10.0, 1, 7, ["x=1"]]
    assert bad[0] == "FAILED" and "x is 2" in bad[1] and bad[2:4] == [2, 6]
