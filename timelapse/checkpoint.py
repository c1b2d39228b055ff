"""Checkpoints on disk: written aside in the background, renamed when whole, so what has the final name is complete.

One process (or DDP) writes one file; FSDP2 writes a folder of shards (torch.distributed.checkpoint) with `meta.pt`,
each process its own part. Either is read by either, on any number of processes.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO
from torch.utils._pytree import tree_map_only

log = logging.getLogger("timelapse")
META = "meta.pt"  # of a folder: everything but weights and optimizer


class Background:
    """One write at a time beside the training. A write that fails is logged; the files of the one before stay."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def hold(self, path: Path, work: Callable[[Path], None]) -> None:
        """Wait for the write before; `release` then lets `work` write under a name of its own, and rename to `path`."""
        self.wait()
        self.thread = threading.Thread(target=self._write, args=(path, work), daemon=True)

    def release(self) -> None:
        if self.thread is not None and self.thread.ident is None:
            self.thread.start()

    def wait(self) -> None:
        """Until what was held or begun is written."""
        self.release()
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def _write(self, path: Path, work: Callable[[Path], None]) -> None:
        part = aside(path)
        try:
            work(part)
            self.error = None
        except BaseException as error:  # what torch.distributed.checkpoint raises is no Exception
            # Full disk, quota, lost mount: training goes on, the next write may succeed.
            self.error = error
            log.error(f"checkpoint {path} was not written ({reason(error)}); the one before it stays")
            remove(part)


def aside(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def store(state: Any, path: Path) -> None:
    """To the disk, not only to its cache."""
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def publish(part: Path, path: Path) -> None:
    """Give a whole checkpoint its final name, in place of an older one of that name."""
    if path.is_dir():
        remove(path)
    part.replace(path)


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def reason(error: BaseException) -> str:
    """What went wrong first, in one line; torch.distributed.checkpoint wraps what each process raised."""
    for failed in getattr(error, "failures", {}).values():
        error = failed[0] if isinstance(failed, tuple) else failed
    while error.__context__ is not None and not isinstance(error, OSError):
        error = error.__context__
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    # torch's zip writer hides the system's error where the bytes at the end of a file are what does not fit.
    return "a file ended early: a full disk or quota" if "inline_container" in said else said


def on_cpu(state: Any) -> Any:
    """A copy that training does not change: sharded tensors stay sharded, each process holds its part."""
    copy = lambda x: x.detach().to("cpu", copy=True)  # torchao's 8-bit moments know no clone
    return tree_map_only(torch.Tensor, copy, state)


class OneFile(CheckpointIO):
    """Lightning's way to files for strategies where process 0 holds everything."""

    def __init__(self) -> None:
        self.background = Background()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        state, path = on_cpu(checkpoint), Path(path)

        def work(part: Path) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            store(state, part)
            publish(part, path)

        self.background.hold(path, work)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        return read(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        remove(Path(path))

    def teardown(self) -> None:
        self.background.wait()


def is_sharded(path: Path) -> bool:
    return path.is_dir() and (path / META).exists()


def read(path: Path, optimizer: bool = True) -> dict[str, Any]:
    """A whole checkpoint in this process, whatever its form; `optimizer` False leaves out the larger half.

    As Lightning has it: `state_dict` (name -> tensor), `optimizer_states` (a list, parameters by number), and the rest.
    ValueError for a file that is no checkpoint, or not a whole one.
    """
    if not is_sharded(path):
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            checkpoint["state_dict"]
        except (RuntimeError, OSError, EOFError, KeyError, TypeError, UnpicklingError) as error:
            why = f"no {error}" if isinstance(error, KeyError) else str(error).strip().splitlines()[0][:120]
            raise ValueError(
                f"{path} is no whole checkpoint of a run ({why}); give ckpt=RUN_DIR, or its .ckpt"
            ) from error
        return checkpoint
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict[str, Any] = {}  # no public call reads without being told every name and shape
    planner = _EmptyStateDictLoadPlanner(keys=None if optimizer else {"state_dict"})
    _load_state_dict(state, FileSystemReader(path), planner=planner, no_dist=True)
    checkpoint = torch.load(path / META, map_location="cpu", weights_only=True)
    checkpoint["state_dict"] = state.pop("state_dict")
    if optimizer:
        checkpoint["optimizer_states"] = [by_number(state[name]) for name in sorted(state)]
    return checkpoint


def by_number(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with parameters numbered in its groups' order, as `Optimizer.load_state_dict` wants it."""
    number = {name: i for i, name in enumerate(n for group in state["param_groups"] for n in group["params"])}
    groups = [{**group, "params": [number[n] for n in group["params"]]} for group in state["param_groups"]]
    return {"state": {number[n]: values for n, values in state["state"].items()}, "param_groups": groups}


def by_name(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The way back; `names` of the optimizer's parameters in its order."""
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[i]: values for i, values in state["state"].items()}, "param_groups": groups}
