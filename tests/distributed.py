"""Several processes of one run on the CPU (gloo), forked from the test so that nothing is imported again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

from small import small_run

from timelapse.parts import Run

GRACE = 10.0  # seconds that the others have to end by themselves after one has failed


def fit_on(
    processes: int, folder: Path, *overrides: str, experiment: str = "finetune_only", kill_after: float | None = None
) -> bool:
    """Fit as `processes` ranks; True when that ended well. kill_after: 2.3 kills all of them 0.3 seconds after two
    more lines of metrics.csv, if they are still at it; False then."""
    codes, over = exit_codes(processes, folder, *overrides, experiment=experiment, kill_after=kill_after)
    if any(codes) and not (over and set(codes) <= {0, -9}):
        raise AssertionError(f"exit codes {codes}; {folder}/rank*.log say why")
    return not any(codes)


def exit_codes(
    processes: int,
    folder: Path,
    *overrides: str,
    experiment: str = "finetune_only",
    kill_after: float | None = None,
    prepare: Callable[[int, Run], None] | None = None,
) -> tuple[list[int], bool]:
    """How each rank ended, and whether `kill_after` ended them. prepare: called in each with its number and run."""
    ranks = started(processes, folder, overrides, experiment, prepare)
    over, enough = False, None if kill_after is None else lines(folder) + int(kill_after)
    failed = None
    while any(process.is_alive() for process in ranks):
        if enough is not None and lines(folder) >= enough:
            time.sleep(kill_after % 1)
            over = True
        if failed is None and any(process.exitcode for process in ranks):
            failed = time.monotonic()
        # One that fails leaves the others waiting; one that is dying of the same gets the time to.
        if over or failed is not None and time.monotonic() - failed > GRACE:
            for process in ranks:
                process.kill()
        time.sleep(0.02)
    return [process.exitcode for process in ranks], over


def ends_of(processes: int, folder: Path, *overrides: str, prepare: Callable[[int, Run], None]) -> list[int]:
    """How each rank ended by itself; AssertionError for one that does not, two minutes after the first."""
    ranks = started(processes, folder, overrides, "finetune_only", prepare)
    connection.wait([process.sentinel for process in ranks])
    for process in ranks:
        process.join(120)
    stuck = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    for process in ranks:
        process.kill()
    assert not stuck, f"ranks {stuck} wait for ever"
    return [process.exitcode for process in ranks]


def started(
    processes: int,
    folder: Path,
    overrides: tuple[str, ...],
    experiment: str,
    prepare: Callable[[int, Run], None] | None,
) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    arguments = [(rank, processes, port, folder, overrides, experiment, prepare) for rank in range(processes)]
    ranks = [context.Process(target=_rank, args=a) for a in arguments]
    for process in ranks:
        process.start()
    return ranks


def lines(folder: Path) -> int:
    path = folder / "metrics.csv"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _rank(
    rank: int,
    processes: int,
    port: int,
    folder: Path,
    overrides: tuple[str, ...],
    experiment: str,
    prepare: Callable[[int, Run], None] | None,
) -> None:
    from timelapse.stages import fit

    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr = (folder / f"rank{rank}.log").open("a")
    where = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in where.items()}, MASTER_ADDR="127.0.0.1")
    trainer = ["trainer.accelerator=cpu", f"trainer.devices={processes}", "trainer.precision=32-true"]
    try:
        run = small_run(folder, *trainer, *overrides, experiment=experiment)
        if prepare is not None:
            prepare(rank, run)
        fit(run)
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)  # no test of the parent runs on in here
