"""A job of a sweep is always a command of its own, whichever launcher starts it; what it says about how it ended.

Distributed jobs start further processes of the same command line. Inside a multirun those would run the whole sweep
again, so a job is `python -m timelapse.run <overrides> hydra.mode=RUN`. The launcher `process` starts it directly;
launchers that call a function instead (joblib, submitit, Hydra's own) call `run_job`.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from timelapse.finished import finished

log = logging.getLogger("timelapse")
OF_THE_SWEEP = ("hydra.mode", "hydra.sweep", "hydra/sweeper", "hydra.launcher", "hydra/launcher", "hydra.run")


class JobFailed(RuntimeError):
    """A job of a sweep ended badly; in one line which, why, and where its log is."""


def run_job(cfg: DictConfig, module: str = "timelapse.run") -> float | tuple[float, ...] | None:
    """Run the job that Hydra composed, unless it is finished; returns what `objective` names.

    SIGTERM and submitit's SIGUSR2 reach the job as SIGTERM, and it may save before whoever installed a handler here
    goes on (submitit's requeues, and the same job continues). JobFailed when it fails.
    """
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    overrides = list(hydra.overrides.task)
    config = OmegaConf.to_container(cfg, resolve=True)
    if not finished(run_dir, config.get("stages") or [], overrides, config):
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / (f"job{task}.log" if (task := place()) else "job.log")
        log.info(f"log: {path}")
        before = path.stat().st_size if path.exists() else 0
        process = start(command(hydra, overrides, module), path)
        _wait(process)
        if process.returncode:
            raise JobFailed(f"{' '.join(overrides)}: {last_error(path, process.returncode, before)} (log: {path})")
    return score(run_dir, OmegaConf.select(cfg, "objective", default=None)) if place() == 0 else None


def place() -> int:
    """Number of this process among the tasks of its SLURM job; each starts one process of a distributed run."""
    return int(os.environ.get("SLURM_PROCID", 0))


def command(hydra: DictConfig, overrides: Sequence[str], module: str = "timelapse.run") -> list[str]:
    """The command line of one job of a sweep."""
    line = [sys.executable, "-m", module, "--config-name", hydra.job.config_name]
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            line += ["--config-dir", source.path]
    kept = [o for o in hydra.overrides.hydra if not o.lstrip("+~").startswith(OF_THE_SWEEP)]
    return [*line, *kept, *overrides, "hydra.mode=RUN"]


def start(line: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen:
    """A job as the first process of a group of its own, so that whatever it starts can end with it; it appends to
    `log`. env: added to this process's environment."""
    with log.open("ab") as file:
        return subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            start_new_session=True,
        )


def ends() -> list[int]:
    """Signals that end a sweep: SIGTERM, and SIGHUP of a closed terminal, unless nohup said to outlive it."""
    return [signal.SIGTERM] + ([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else [])


def signal_group(process: subprocess.Popen, number: int) -> None:
    """To a started job and all that it started, as far as any of it is there."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def score(run_dir: Path, names: str | Sequence[str] | None) -> float | tuple[float, ...] | None:
    """What a sweep optimises: an entry of metrics.json; a column of metrics.csv, or the mean of those of its timesteps
    ("val/denoise": val/denoise_t100, val/denoise_t400, ...), where they were last logged; or several.

    ValueError when a run has no such number.
    """
    if names is None:
        return None
    if isinstance(names, (list, tuple, ListConfig)):
        return tuple(score(run_dir, name) for name in names)
    try:
        found = json.loads((run_dir / "metrics.json").read_text())[names]
        return math.nan if found is None else float(found)  # null: not to be had of these samples
    except (OSError, ValueError, KeyError):
        pass
    logged, meant = {}, re.compile(rf"{re.escape(names)}(_t[\d.e+-]+)?")
    if (run_dir / "metrics.csv").exists():
        with (run_dir / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                logged.update({name: x for name, x in row.items() if name and meant.fullmatch(name) and x})
    if not logged:
        raise ValueError(f"objective={names} is neither in metrics.json nor in metrics.csv of {run_dir}")
    return sum(map(float, logged.values())) / len(logged)


def tail(path: Path, size: int = 8192, start: int = 0) -> list[str]:
    """Non-empty last lines of a log, of what was written after its first `start` bytes; progress bars end theirs with a
    carriage return."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(start, file.tell() - size))
        text = file.read().decode(errors="replace")
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def last_error(path: Path, returncode: int, start: int = 0) -> str:
    """The line of a failed job's log that says why; start: its size when the job began, after those before it."""
    if returncode < 0:
        hint = ", out of memory?" if returncode == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-returncode).name}{hint}"
    lines = [line for line in tail(path, start=start) if "HYDRA_FULL_ERROR" not in line]
    errors = [line for line in lines if re.match(r"(error|[\w.]*(Error|Exception|Interrupt))\b:?", line)]
    return (errors or lines or [f"exit status {returncode}, the log is empty"])[-1]


def _wait(process: subprocess.Popen) -> None:
    """Until the job has ended. A signal to end is handed on to it at once, and handled here after it has ended."""
    if threading.current_thread() is not threading.main_thread():
        process.wait()
        return
    came: list[int] = []

    def hand_on(number: int, frame: Any) -> None:
        came.append(number)
        signal_group(process, signal.SIGTERM)

    before = {number: signal.signal(number, hand_on) for number in (*ends(), signal.SIGUSR2, signal.SIGINT)}
    try:
        process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal_group(process, signal.SIGKILL)  # what the job left behind in its group
    for number in came:
        if callable(before[number]):
            before[number](number, None)
