"""When checkpoints are written, which stay, and a clean end on SIGTERM."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from timelapse.checkpoint import is_sharded, reason, remove


class Preempted(Exception):
    """SIGTERM came, and everything up to this step is saved."""


class Checkpoints(Checkpoint):
    """Writes `folder`/step000200.ckpt every `every` steps, before each validation and at the end; the newest
    `keep` stay, None: all.

    A name without another ending is a whole checkpoint: it is written aside, in the background, and renamed.
    It gets its name after the step's row is in metrics.csv and before the validation of the step, so a run that goes
    on from one where a validation is due (every `validate_every` steps) validates first: metrics.csv ends up as if
    there had been no interruption. Before its first step and after its last a run validates too (unless it does after
    each): where the last was not due, a kill costs that validation and nothing else.
    SIGTERM (a cluster's preemption) saves after the step in hand and raises `Preempted`, without validating; after the
    last step it does so once that is validated, which no later start would make up for.
    """

    def __init__(self, folder: Path, every: int, validate_every: int, keep: int | None = 2):
        if keep is not None and keep < 1:
            raise ValueError(
                f"train.keep={keep} would leave no checkpoint to go on from; type 1 or more, or null for all"
            )
        self.folder, self.every, self.validate_every, self.keep = Path(folder), every, validate_every, keep
        self.signalled, self.stop, self.saved, self.held, self.before = False, False, 0, None, None

    @property
    def last_model_path(self) -> str:
        return str(newest(self.folder) or "")

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            for cut_short in [*self.folder.glob("*.part"), *self.folder.glob("*.held")]:
                remove(cut_short)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.saved = trainer.global_step
        if self.saved:  # Lightning counts batches, of which a run that goes on may have more to a step, or fewer
            done = self.saved * trainer.accumulate_grad_batches
            progress = trainer.fit_loop.epoch_loop.batch_progress
            for at in (progress.current, progress.total):
                at.ready, at.started, at.processed, at.completed = done, done, done, done - 1  # as it was saved
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self._note)
        # At step 0 for what begins, with the first step's row, which is of the same weights; not twice in that row.
        if self.due(self.saved) if self.saved else min(self.validate_every, trainer.max_steps) > 1:
            loop = trainer.fit_loop.epoch_loop.val_loop  # Lightning takes it for done when it resumes here
            loop.restarting = False
            trainer.validating = True
            loop.run()
            trainer.training = True

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if (index + 1) % trainer.accumulate_grad_batches:  # between the parts of a step there is nothing to resume
            return
        step, last = trainer.global_step, at_last_step(trainer)
        self.stop = trainer.strategy.reduce_boolean_decision(self.signalled, all=False) and not last
        if step != self.saved and (step % self.every == 0 or self.due(step) or last or self.stop):
            path = self.folder / f"step{step:06d}.ckpt"
            trainer.should_stop |= last  # with which Lightning validates, due or not
            if last and self.due(step):  # nothing resumes behind the last step: it counts once it is validated
                self.held = path
            self.prune(trainer)
            trainer.save_checkpoint(path.with_suffix(".held") if self.held else path)
            self.saved = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.go_on(trainer)  # Lightning has logged the step before only now

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.go_on(trainer)

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        signalled = trainer.strategy.reduce_boolean_decision(self.signalled, all=False)
        self.stop = signalled and not at_last_step(trainer)
        self.go_on(trainer)

    def go_on(self, trainer: L.Trainer) -> None:
        writer(trainer).release()
        if self.stop:
            self.finish(trainer)
            raise Preempted(f"stopped by SIGTERM after step {trainer.global_step}")

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        signalled = trainer.strategy.reduce_boolean_decision(self.signalled, all=False)
        self.finish(trainer)
        if self.held and trainer.is_global_zero and self.held.with_suffix(".held").exists():
            self.held.with_suffix(".held").replace(self.held)
        self.prune(trainer)
        if signalled:  # the stages that follow wait for the next start
            raise Preempted(f"stopped by SIGTERM after the last step, {trainer.global_step}")

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """End the processes that Lightning started beside this one: they wait for it in a collective, until a timeout.

        After SIGTERM they end by themselves, as this one does.
        """
        self._restore_signal()
        children = getattr(trainer.strategy.launcher, "procs", [])
        if not isinstance(exception, Preempted):
            started, children[:] = [*children], []  # Lightning's observer kills this process when it sees one killed
            for child in started:
                child.kill()

    def finish(self, trainer: L.Trainer) -> None:
        """Wait for the write in hand. ValueError when it failed: what was trained since the one before is lost."""
        self._restore_signal()
        background = writer(trainer)
        background.wait()
        failed = background.error is not None
        if not trainer.strategy.reduce_boolean_decision(failed, all=False):
            return
        if not failed:  # one process wrote for all; the others must not go on alone
            raise Preempted("another process could not write the last checkpoint")
        last = newest(self.folder)
        raise ValueError(
            f"the last checkpoint could not be written to {self.folder} ({reason(background.error)}); make room and "
            f"type the same command, it goes on from {last.name if last else 'the start'}"
        )

    def due(self, step: int) -> bool:
        """Whether the held-out loss is measured after this step."""
        return step % self.validate_every == 0

    def prune(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            writer(trainer).wait()
            for old in whole(self.folder)[: -self.keep] if self.keep else []:
                remove(old)

    def _note(self, *_: Any) -> None:
        self.signalled = True

    def _restore_signal(self) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)
            self.before = None


def at_last_step(trainer: L.Trainer) -> bool:
    return trainer.global_step >= trainer.max_steps > 0


def writer(trainer: L.Trainer) -> Any:
    """The strategy's Background."""
    from timelapse.sharding import Fsdp2

    strategy = trainer.strategy
    return strategy.background if isinstance(strategy, Fsdp2) else strategy.checkpoint_io.background


def whole(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    steps = {path: path.stem.removeprefix("step") for path in folder.glob("step*.ckpt")}
    found = (path for path, step in steps.items() if step.isdecimal() and (path.is_file() or is_sharded(path)))
    return sorted(found, key=lambda path: int(steps[path]))


def newest(folder: Path) -> Path | None:
    """The checkpoint a run goes on from; None before the first."""
    found = whole(folder)
    return found[-1] if found else None
