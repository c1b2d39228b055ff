"""metrics.csv: a row for every time something was logged, kept over restarts."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger("timelapse")
Row = dict[str, str]


class History(Logger):
    """Appends {step, name: value, ...} to `save_dir`/metrics.csv; cells that were not logged are blank.

    Lightning's CSVLogger deletes the file when a run is continued. Here the rows before the step that the run
    goes on from stay, and those after it, which the continued run writes again, go: the file ends up the same as
    that of a run that was never interrupted.
    Rows that could not be written (a full disk) wait for the next, as training does not end for them.
    """

    def __init__(self, save_dir: str | Path):
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self.columns: list[str] = []
        self.resumed_at: str | None = None
        self.waiting: list[Row] = []
        self.failed = False

    @property
    def name(self) -> str:
        return "history"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {name: repr(float(value)) for name, value in metrics.items()}
        self.waiting.append({"step": str(step or 0), **values})
        self._write_waiting()

    def finalize(self, status: str) -> None:
        self._write_waiting()

    def _write_waiting(self) -> None:
        try:
            while self.waiting:
                self._append(self.waiting[0])
                self.waiting.pop(0)
            self.failed = False
        except OSError as error:
            if not self.failed:
                log.warning(f"{self.path} could not be written ({error}); its rows wait until it can be, make room")
            self.failed = True

    def _append(self, row: Row) -> None:
        if not self.columns:
            self._rewrite([old for old in read_rows(self.path) if int(old["step"]) <= int(row["step"])], row)
            self.resumed_at = row["step"]
        if row["step"] == self.resumed_at:  # the row of this step that was logged before the restart, if there was one
            self._rewrite([old for old in read_rows(self.path) if not _same_cells(old, row)], row)
        elif self.failed or not set(row) <= set(self.columns):  # what failed may have left half a line
            self._rewrite(read_rows(self.path), row)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _rewrite(self, rows: list[Row], new: Row) -> None:
        """The file with these rows and with columns for them and for `new`."""
        names = {name for row in [*rows, new] for name in row} | set(self.columns)
        columns = ["step", "epoch", *sorted(names - {"step", "epoch"})]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        part.replace(self.path)
        self.columns = columns


def read_rows(path: Path) -> list[Row]:
    """Rows without their blank cells; a last line that a kill or a full disk cut short is left out. [] if no file."""
    if not path.exists():
        return []
    text = path.read_bytes().decode()
    whole = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    rows = [row for row in csv.DictReader(whole) if None not in row.values() and row.get("step", "").isdigit()]
    return [{name: value for name, value in row.items() if value != ""} for row in rows]


def _same_cells(old: Row, new: Row) -> bool:
    return old["step"] == new["step"] and set(old) == set(new)
