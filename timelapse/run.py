"""`python -m timelapse.run +experiment=...`: compose a config, then go through its stages.

Torch, lightning and diffusers are imported only once a run starts, so that --help and --cfg answer at once.
"""

from __future__ import annotations

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from timelapse.errors import MISTAKES, check_added, one_line
from timelapse.help import CONF, help_text
from timelapse.identity import identity

OmegaConf.register_new_resolver("identity", identity, replace=True)


def main() -> None:
    """Entry of `python -m timelapse.run` and of the console script `timelapse`."""
    if {"--help", "-h"} & {*sys.argv[1:]}:
        print(help_text(CONF))
        return
    # Hydra's own report of a typo takes a screen: it raises instead, and one line is printed. The user's wish for
    # tracebacks is kept beside it, for jobs started from here too.
    traceback = os.environ.setdefault("TIMELAPSE_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", "0")) == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    from timelapse.job import JobFailed  # light, as is the launcher: no torch
    from timelapse.launcher import register

    register()
    try:
        start()
    except MISTAKES as error:
        if traceback:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except JobFailed as error:  # the first of them; the launcher's table has all
        if traceback:
            raise
        print(f"error: {error}; the same command runs only what failed again", file=sys.stderr)
        sys.exit(1)


def task(cfg: DictConfig) -> float | tuple[float, ...] | None:
    """A run, a study, or, under a launcher that calls functions, a command of its own for one job of a sweep."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        from timelapse.job import run_job

        return run_job(cfg)
    try:
        check_added(HydraConfig.get().overrides.task, cfg)
        if "study" in cfg:
            from timelapse.study import run_study

            return run_study(cfg)
        if "tiny" in str(HydraConfig.get().runtime.choices.get("scale")):
            # Shipped weights only; a failed hub name costs a minute. huggingface_hub reads it once, when imported.
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from timelapse.stages import run_stages

        return run_stages(cfg)
    except (ValueError, OSError) as error:  # the user's or the disk's: one line, no traceback
        if os.environ.get("TIMELAPSE_TRACEBACK") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


# Not as a decorator: launchers pickle `task` by its name, and importing this file in their workers adds the resolver.
start = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)

if __name__ == "__main__":
    from timelapse import run

    run.main()
