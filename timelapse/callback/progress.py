"""A progress bar that knows where a run of a given number of steps ends; the learning rate, once a step."""

from __future__ import annotations

from lightning.pytorch.callbacks import LearningRateMonitor, TQDMProgressBar


class StepRate(LearningRateMonitor):
    """Not once for each of the batches that a step accumulates."""

    def on_train_batch_start(self, trainer, module, batch, index):
        if index % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_start(trainer, module, batch, index)


class StepProgress(TQDMProgressBar):
    """The training stream is endless, so the total comes from max_steps."""

    @property
    def total_train_batches(self) -> int:
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def get_metrics(self, trainer, module):
        return {**super().get_metrics(trainer, module), **getattr(module, "shown", {})}

    def init_train_tqdm(self):
        bar = super().init_train_tqdm()
        bar.set_description("fit")
        return bar

    def on_train_start(self, trainer, module):
        super().on_train_start(trainer, module)
        self.begin(trainer)  # a resumed run goes on in the middle of its epoch: no epoch starts

    def on_train_epoch_start(self, trainer, *_):
        self.begin(trainer)

    def begin(self, trainer) -> None:
        """Where this run stands, from which its rate and the time left are counted."""
        self.train_progress_bar.reset(self.total_train_batches)
        self.train_progress_bar.set_description("fit")
        done = trainer.global_step * trainer.accumulate_grad_batches
        self.train_progress_bar.initial = self.train_progress_bar.n = done
