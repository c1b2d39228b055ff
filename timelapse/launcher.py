"""Hydra launcher `process`: every job of a multirun is its own process group.

In one process, a multirun over distributed jobs re-runs the whole sweep in each child and breaks when device
counts differ. Here a job is `python -m timelapse.run <overrides> hydra.mode=RUN` in its own session, so that
whatever it starts ends with it; a failed job does not take the sweep along, and finished jobs are skipped.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from timelapse.finished import SAMPLED, finished
from timelapse.job import JobFailed, command, ends, last_error, score, signal_group, start, tail

log = logging.getLogger(__name__)


@dataclass
class Job:
    """One job of the sweep. `state`: waiting, running, ok, failed or skipped."""

    index: int
    overrides: list[str]
    run_dir: Path
    result: JobReturn = field(repr=False)
    config: dict = field(repr=False, default_factory=dict)  # the task's, resolved
    state: str = "waiting"
    error: str = ""
    slot: int = 0
    began: float = 0.0
    log_start: int = 0  # bytes that earlier attempts wrote
    seconds: float = 0.0
    process: subprocess.Popen | None = None

    @property
    def name(self) -> str:
        return " ".join(filter_overrides(self.overrides))

    @property
    def log(self) -> Path:
        return self.run_dir / "job.log"


class ProcessLauncher(Launcher):
    """module: what a job runs. max_parallel: jobs at a time. env: added to a job's environment, `{slot}` is
    replaced by the job's place among the parallel ones. objective: what a sweeper sees as result (`job.score`).
    grace: seconds between SIGTERM and SIGKILL when the sweep is stopped.
    """

    def __init__(
        self,
        module: str = "timelapse.run",
        max_parallel: int = 1,
        skip_finished: bool = True,
        env: dict[str, str] | None = None,
        objective: str | list[str] | None = None,
        grace: float = 60.0,
    ) -> None:
        if max_parallel < 1:
            raise ValueError(f"hydra.launcher.max_parallel={max_parallel}; at least 1 job must run at a time")
        self.module, self.max_parallel, self.skip_finished = module, max_parallel, skip_finished
        self.env, self.objective, self.grace = dict(env or {}), objective, grace

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; results in the order of `job_overrides`. A failed job's `return_value` raises."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = [self._compose(initial_job_idx + i, list(o)) for i, o in enumerate(job_overrides)]
        check_apart(jobs)
        running: list[Job] = []
        show = Progress(jobs)
        with _interrupted():
            try:
                while any(job.state in ("waiting", "running") for job in jobs):
                    for job in [j for j in running if j.process.poll() is not None]:
                        running.remove(job)
                        self._end(job)
                        show.ended(job)
                    busy = {job.run_dir for job in running}  # two jobs never write one directory at a time
                    ready = [j for j in jobs if j.state == "waiting" and j.run_dir not in busy]
                    if ready and len(running) < self.max_parallel:
                        job = ready[0]
                        job.slot = min(set(range(self.max_parallel)) - {j.slot for j in running})
                        self._start(job)
                        show.began(job)
                        if job.state == "running":
                            running.append(job)
                        continue
                    show.line()
                    time.sleep(0.2)
            except BaseException:
                self._stop(running)
                log.info("sweep stopped; the same command continues it")
                raise
        show.table()
        return [job.result for job in jobs]

    def _compose(self, index: int, overrides: list[str]) -> Job:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        before = HydraConfig.instance().cfg
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = index
        HydraConfig.instance().set_config(config)  # ${hydra:...} in the task's config reads it
        try:
            run_dir = Path(str(config.hydra.run.dir)).absolute()
            with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
                config.hydra.runtime.output_dir = str(run_dir)
            hydra_config = OmegaConf.create({"hydra": OmegaConf.to_container(config.hydra, resolve=False)})
            task = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
            resolved = OmegaConf.to_container(task, resolve=True)
        finally:
            HydraConfig.instance().cfg = before
        said = OmegaConf.to_container(config.hydra.overrides.task)
        result = JobReturn(overrides=said, cfg=task, hydra_cfg=hydra_config, working_dir=os.getcwd())
        result.task_name = config.hydra.job.name
        return Job(index, overrides, run_dir, result, resolved)

    def _start(self, job: Job) -> None:
        if self.skip_finished and finished(job.run_dir, job.config.get("stages") or [], job.overrides, job.config):
            job.state = "skipped"
            self._succeed(job)
            return
        job.run_dir.mkdir(parents=True, exist_ok=True)
        job.log_start = job.log.stat().st_size if job.log.exists() else 0
        env = {key: str(value).format(slot=job.slot) for key, value in self.env.items()}
        job.process = start(command(self.config.hydra, job.overrides, self.module), job.log, env)
        job.state, job.began = "running", time.monotonic()

    def _end(self, job: Job) -> None:
        job.seconds = time.monotonic() - job.began
        signal_group(job.process, signal.SIGKILL)  # what the job left behind in its group
        if job.process.returncode == 0:
            job.state = "ok"
            self._succeed(job)
        else:
            self._fail(job, last_error(job.log, job.process.returncode, job.log_start))

    def _succeed(self, job: Job) -> None:
        job.result.status = JobStatus.COMPLETED
        try:
            job.result.return_value = score(job.run_dir, self.objective)
        except ValueError as error:
            self._fail(job, str(error))

    def _fail(self, job: Job, error: str) -> None:
        job.state, job.error = "failed", error
        job.result.status = JobStatus.FAILED
        job.result.return_value = JobFailed(f"{job.name}: {error.removeprefix('error: ')} (log: {job.log})")

    def _stop(self, running: list[Job]) -> None:
        try:
            for job in running:
                signal_group(job.process, signal.SIGTERM)
            deadline = time.monotonic() + self.grace
            while any(j.process.poll() is None for j in running) and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:  # also on a second Ctrl-C
            for job in running:
                signal_group(job.process, signal.SIGKILL)
                job.process.wait()


def check_apart(jobs: Sequence[Job]) -> None:
    """ValueError where a job would replace what another one of the sweep made."""
    first: dict[Path, Job] = {}
    for job in jobs:
        stages, asked = {*(job.config.get("stages") or [])}, job.config.get("input") or {}
        own = stages <= SAMPLED and any(asked.get(name) is not None for name in ("image", "frames"))
        if own or stages == {"plan"}:  # own pictures have folders of their own; a plan writes nothing
            continue
        other = first.setdefault(job.run_dir, job)
        if other.overrides != job.overrides:
            raise ValueError(
                f"'{other.name}' and '{job.name}' would be one run, {os.path.relpath(job.run_dir)}: they differ in "
                f"nothing that is part of a run's directory (sample, ckpt, trainer and others are not); type them one "
                f"by one, each with its own name="
            )


class Progress:
    """One line that is rewritten on a terminal; a line per start and end elsewhere; a table at the end."""

    def __init__(self, jobs: list[Job]):
        self.jobs, self.start, self.shown = jobs, time.monotonic(), 0.0
        self.tty = sys.stderr.isatty()

    def count(self, state: str) -> int:
        return sum(job.state == state for job in self.jobs)

    def began(self, job: Job) -> None:
        self.clear()
        if job.state == "running":
            log.info(f"#{job.index} started: {job.name} (log: {os.path.relpath(job.log)})")
        else:
            log.info(f"#{job.index} skipped, it is finished: {job.name}")

    def ended(self, job: Job) -> None:
        self.clear()
        log.info(f"#{job.index} {job.state} after {clock(job.seconds)}: {job.error or job.name}")

    def line(self) -> None:
        now = time.monotonic()
        if now - self.shown < (1 if self.tty else 60):
            return
        self.shown = now
        running = [job for job in self.jobs if job.state == "running"]
        done = sum(job.state in ("ok", "skipped", "failed") for job in self.jobs)
        text = f"{done}/{len(self.jobs)} jobs, {self.count('failed')} failed, {clock(now - self.start)}"
        text += "".join(f" | #{job.index} {(tail(job.log) or ['starting'])[-1]}" for job in running)
        if self.tty:
            sys.stderr.write("\r\x1b[K" + text[: os.get_terminal_size(2).columns - 1])
            sys.stderr.flush()
        else:
            log.info(text[:200])

    def clear(self) -> None:
        if self.tty:
            sys.stderr.write("\r\x1b[K")

    def table(self) -> None:
        self.clear()
        rows = [
            f"  #{job.index:<3} {job.state:8} {job.name}" + (f"\n       {job.error}" if job.error else "")
            for job in self.jobs
        ]
        counts = ", ".join(f"{self.count(s)} {s}" for s in ("ok", "skipped", "failed"))
        log.info("\n".join([f"{len(self.jobs)} jobs: {counts}", *rows]))


def clock(seconds: float) -> str:
    """3725 -> '1:02:05'."""
    minutes, s = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"


@contextmanager
def _interrupted() -> Iterator[None]:
    """Within, SIGTERM and a terminal that closes raise like Ctrl-C does, so that the jobs are stopped too."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    try:
        before = {number: signal.signal(number, interrupt) for number in ends()}
    except ValueError:  # not the main thread: whoever owns it handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def register() -> None:
    """Make `hydra/launcher=process` known. Hydra finds plugins by name, and only inside the namespace package
    `hydra_plugins`, which other distributions share: the class gets a name in it without a file in it.
    """
    plugins = Plugins.instance()  # first: it scans the real hydra_plugins, if there is one
    if importlib.util.find_spec("hydra_plugins") is None:
        sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    sys.modules["hydra_plugins.timelapse"] = sys.modules[__name__]
    ProcessLauncher.__module__ = "hydra_plugins.timelapse"
    plugins.register(ProcessLauncher)
