"""`+study=NAME`: a paper's grid as explicit rows x seeds, launched as a multirun, ending in a table and a page.

`python -m timelapse.study --out DIR RUN_DIR...` makes the same table and page from any finished runs.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from timelapse.identity import identity
from timelapse.job import run_job

log = logging.getLogger("timelapse")
OF_THE_STUDY = ("study", "name", "about")  # overrides that do not go to its jobs


def expand(
    study: dict[str, Any], typed: Sequence[str], stages_of: Callable[[list[str]], list[str]] = lambda overrides: ["fit"]
) -> list[tuple[str, int, list[str]]]:
    """(row, seed, overrides) of every job, all rows of a seed before the next.

    A later override of the same key takes the place of an earlier one: common, then the row's, then what was
    typed beside `+study=`. A row `{sampled_from: other, overrides: [...]}` is the other's training sampled in another
    way: it has the other's overrides too, and every stage but `fit`. Nor do typed stages bring `fit` to a row that is
    not trained by itself; with no other stage there is no job for it. stages_of: the stages that overrides
    come to. ValueError when a seed is typed, or two rows would be one run.
    """
    typed = [o for o in typed if key_of(o).split(".")[0] not in OF_THE_STUDY]
    if any(key_of(o) == "seed" for o in typed):
        raise ValueError("a study sets the seed of each of its jobs; type 'study.seeds=[0,1,2]' instead of seed=")
    if not study.get("rows") or not study.get("seeds"):
        raise ValueError("a study needs rows (name: [overrides]) and seeds; see conf/study/drepa_ablation.yaml")
    rows = study["rows"]
    for name, source in sources(rows).items():
        if source not in rows or isinstance(rows[source], dict):
            raise ValueError(f"study.rows.{name} is sampled from {source!r}, which is no row that is trained")
    chosen, beside = {}, [o for o in typed if key_of(o) != "stages"]
    for row, own in rows.items():
        sampled = isinstance(own, dict)
        own = [*(study.get("common") or []), *([*rows[own["sampled_from"]], *own["overrides"]] if sampled else own)]
        chosen[row] = {key_of(o): o for o in [*own, *typed]}
        if sampled or (len(beside) < len(typed) and "fit" not in stages_of([*own, *beside])):
            asked = chosen[row].get("stages", "stages=[sample,evaluate,report]").partition("=")[2].strip("[]")
            kept = [s.strip() for s in asked.split(",") if s.strip() != "fit"]
            chosen[row]["stages"] = f"stages=[{','.join(kept)}]"
            if not kept:
                del chosen[row]
    jobs = [
        (row, int(seed), [*said.values(), f"seed={seed}"]) for seed in study["seeds"] for row, said in chosen.items()
    ]
    check_apart(jobs)
    return jobs


def check_apart(jobs: Sequence[tuple[str, int, list[str]]]) -> None:
    """ValueError where two jobs would write one run directory: the second's samples would replace the first's."""
    taken: dict[tuple, str] = {}
    for row, _, overrides in jobs:
        said = {key_of(o): o for o in overrides}
        place = said.get("name", said.get("experiment")), said.get("paths.runs"), identity(overrides)
        if (other := taken.setdefault(place, row)) != row:
            raise ValueError(
                f"study.rows.{row} and study.rows.{other} would be one run: they differ in nothing that is part of a "
                f"run's directory (sample, trainer, stages and others are not); add name={row} to one of them"
            )


def sources(rows: dict[str, Any]) -> dict[str, str]:
    """Of the rows that are not trained themselves: whose training they sample."""
    return {name: row["sampled_from"] for name, row in rows.items() if isinstance(row, dict)}


def key_of(override: str) -> str:
    """'+experiment=x' -> 'experiment'."""
    return override.lstrip("+~").partition("=")[0]


def composed_stages(overrides: Sequence[str]) -> list[str]:
    """`stages` of the config that these overrides make."""
    loader, name = GlobalHydra.instance().config_loader(), HydraConfig.get().job.config_name
    return list(loader.load_configuration(name, [*overrides], run_mode=RunMode.RUN).stages)


def launch(jobs: Sequence[Sequence[str]]) -> Sequence[JobReturn]:
    """Run the jobs through the configured launcher (hydra/launcher=...), as Hydra's own multirun does."""
    return launcher(jobs[0]).launch(jobs, initial_job_idx=0)


def launcher(job: Sequence[str]) -> Launcher:
    """The configured one. What it reads of a job's own config (SLURM: the trainer's devices) it reads once for all of
    them, here from `job`: the first stands for all, so rows whose trainers differ in size are studies of their own.
    """
    loader = GlobalHydra.instance().config_loader()
    own = HydraConfig.get()
    said = [o for o in own.overrides.hydra if not o.startswith("hydra.mode")]
    overrides = [*said, *job, "hydra.mode=MULTIRUN"]
    config = loader.load_configuration(own.job.config_name, overrides, run_mode=RunMode.MULTIRUN)
    context = HydraContext(config_loader=loader, callbacks=_callbacks(config))
    return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=run_job, config=config)


def _callbacks(config: DictConfig) -> Any:
    from hydra._internal.callbacks import Callbacks  # no public name; HydraContext requires one

    return Callbacks(config)


def run_study(cfg: DictConfig) -> None:
    """Launch what is not finished, then write table.md, table.csv and report.html to the study's directory.

    Exits with 1 when a job failed; the others are in the table, and the same command tries the failed ones again.
    """
    hydra = HydraConfig.get()
    study = OmegaConf.to_container(cfg.study, resolve=True)
    jobs = expand(study, hydra.overrides.task, composed_stages)
    outcomes = run_jobs(jobs, sources(study["rows"]))

    from timelapse.report.run_files import read_run
    from timelapse.report.study_page import write_study
    from timelapse.report.study_table import Finding, Row

    rows = {name: Row(name) for name in study["rows"]}
    for (name, seed), outcome in outcomes.items():
        if isinstance(outcome, Exception):
            rows[name].failed[seed] = (str(outcome).strip() or type(outcome).__name__).splitlines()[-1]
        else:
            rows[name].runs[seed] = read_run(outcome)
    path = write_study(
        list(rows.values()),
        hydra.runtime.output_dir,
        title=cfg.name,
        about=cfg.get("about", ""),
        findings=[Finding(**finding) for finding in study.get("findings") or []],
        command=shlex.join(["python", "-m", "timelapse.run", *hydra.overrides.task]),
        metrics=study.get("metrics"),
    )
    log.info(f"{(path.parent / 'table.md').read_text()}\nstudy: {path}")
    failed = sum(len(row.failed) for row in rows.values())
    if failed:
        log.error(f"{failed} of {len(jobs)} jobs failed; the same command runs only those again")
        sys.exit(1)


def run_jobs(
    jobs: Sequence[tuple[str, int, list[str]]], sources: dict[str, str]
) -> dict[tuple[str, int], str | Exception]:
    """The run directory of every (row, seed), or what went wrong; rows sampled from others wait for those."""
    outcomes: dict[tuple[str, int], str | Exception] = {name[:2]: RuntimeError("not run") for name in jobs}
    for sampled in (False, True):
        ready = []
        for name, seed, overrides in jobs:
            if (name in sources) != sampled:
                continue
            if sampled and not any(key_of(o) == "ckpt" for o in overrides):
                source = outcomes[sources[name], seed]
                if isinstance(source, Exception):
                    outcomes[name, seed] = RuntimeError(f"{sources[name]}, whose training this samples, failed")
                    continue
                path = source.replace("\\", "\\\\").replace("'", "\\'")
                overrides = [*overrides, f"ckpt='{path}'"]
            ready.append((name, seed, overrides))
        for (name, seed, _), result in zip(ready, launch([job[2] for job in ready]) if ready else []):
            try:
                _ = result.return_value  # a failed job raises what went wrong
                outcomes[name, seed] = result.hydra_cfg.hydra.runtime.output_dir
            except Exception as error:
                outcomes[name, seed] = error
    return outcomes


def study_page(run_dirs: Sequence[Path | str], out: Path | str, title: str = "Comparison") -> Path:
    """Table and page of any finished runs; runs that differ by their seed alone share a row."""
    from timelapse.report.study_page import page_command, write_study
    from timelapse.report.study_table import group_runs

    folders = [Path(folder) for folder in run_dirs]
    return write_study(group_runs(folders), out, title, command=page_command(folders, Path(out)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m timelapse.study", description="Compare finished runs.")
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="e.g. runs/drepa_vjepa/*")
    parser.add_argument("--out", type=Path, required=True, help="where table.md, table.csv and report.html go")
    parser.add_argument("--title", default="Comparison")
    args = parser.parse_args()
    try:
        print(study_page(args.run_dirs, args.out, args.title))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
