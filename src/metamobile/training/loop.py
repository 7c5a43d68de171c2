"""The training loop. It knows a task only through its protocol, and devices only through Accelerate.

All randomness is a function of (seed, epoch, index): order of the data, each augmentation, drop path. So a
run that goes on from an epoch's end ends in the weights of a run that never stopped.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from metamobile.errors import NotFinite
from metamobile.tasks import Task, make_metric
from metamobile.training.finetune import set_learning
from metamobile.training.progress import Bar, Reporter, rough_time
from metamobile.training.recipe import Recipe
from metamobile.training.runfolder import RunFolder
from metamobile.training.schedule import make_schedule
from metamobile.training.state import Progress, save_state
from metamobile.weights.card import Card
from metamobile.weights.file import save_weights


class Interrupted(Exception):
    """The run was asked to stop, and did; it can go on."""


class TrainingDiverged(ValueError):
    """The loss or the gradient is not finite any more."""


@dataclass
class Loop:
    """A run's epochs, with all that they work with; `run` goes from `progress` to the recipe's last epoch."""

    task: Task
    recipe: Recipe
    folder: RunFolder
    accelerator: Accelerator
    model: nn.Module
    average: ModelEmaV3 | None
    optimizer: Any
    train_loader: Any
    val_loader: Any
    loss: Any  # as the task's `make_loss` gives it
    names: list[str]
    val_samples: Sequence[Any]
    progress: Progress
    reporter: Reporter
    card: Card  # of the weights that are saved, but for their metrics

    def __post_init__(self) -> None:
        self.plain = self.accelerator.unwrap_model(self.model)
        self.steps_per_epoch = len(self.train_loader)
        self.schedule = make_schedule(self.optimizer, self.recipe, self.steps_per_epoch)
        self.main = self.task.results.HEADLINES[0]
        self.forward = torch.compile(self.model) if self.recipe.run.compile else self.model
        self._stop = False

    @property
    def measured(self) -> nn.Module:
        """The network that is measured and saved: the averaged one, if there is one."""
        return self.plain if self.average is None else self.average.module

    @property
    def lr(self) -> float:
        """The largest learning rate: the head's; those of other layers are fixed shares of it."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def run(self) -> None:
        """Errors: Interrupted after a signal, TrainingDiverged; the last whole epoch's state is on disk."""
        epochs = self.recipe.schedule.epochs
        total, done = epochs * self.steps_per_epoch, self.progress.epoch * self.steps_per_epoch
        with self._signals(), self.reporter.bar(total, done) as bar:
            if self.progress.epoch == 0:  # so that a stop in the first epoch can be gone on from, too
                save_state(self.accelerator, self.folder.state)
            for epoch in range(self.progress.epoch, epochs):
                self._epoch(epoch, bar)

    def _epoch(self, epoch: int, bar: Bar) -> None:
        started = time.perf_counter()
        train_loss = self._train(epoch, bar)
        trained = time.perf_counter() - started
        last = epoch + 1 == self.recipe.schedule.epochs
        figures: dict[str, Any] = {}
        if last or (epoch + 1) % self.recipe.run.eval_every == 0:
            figures = self.evaluate(self.measured)[0]
        self.progress.epoch = epoch + 1
        seconds = time.perf_counter() - started
        self.progress.seconds += seconds
        line = {
            "epoch": epoch + 1,
            "train_loss": train_loss,
            "lr": self.lr,
            "seconds": seconds,
            "images_per_second": self.steps_per_epoch * self.recipe.run.batch_size / trained,
        }
        line |= {"val_loss" if key == "loss" else key: value for key, value in _numbers(figures).items()}
        self._finish_epoch(line, figures)

    def _finish_epoch(self, line: dict[str, Any], figures: dict[str, Any]) -> None:
        value = figures.get(self.main[0])
        value = -math.inf if value is None else value
        better = value > self.progress.best or not self.progress.best_epoch and bool(figures)
        if better:
            self.progress.best, self.progress.best_epoch = value, line["epoch"]
        # The state comes last: a kill before it repeats this epoch, which writes the same files once more.
        if self.accelerator.is_main_process:
            self._save_weights(self.folder.last_model, figures, "last {}")
            if better:
                self._save_weights(self.folder.model, figures, f"best {{}} by validation {self.main[0]}")
            self.folder.record(kind="epoch", **line)
        save_state(self.accelerator, self.folder.state)
        self._say_epoch(line, better)

    def _save_weights(self, path: Path, figures: dict[str, Any], chosen: str) -> None:
        """`chosen` says, with a place for their kind, which weights these are."""
        kind = "weights" if self.average is None else "averaged weights"
        epoch = self.progress.epoch
        about = {"epoch": epoch, "chosen": f"{chosen.format(kind)}, epoch {epoch}"}
        card = replace(self.card, metrics=_numbers(figures) | about)
        save_weights(path, self.measured.state_dict(), card)

    def _say_epoch(self, line: dict[str, Any], better: bool) -> None:
        epochs, figure = self.recipe.schedule.epochs, self.main[0]
        measured = "not measured"
        if figure in line:
            loss = f"val loss {line['val_loss']:.3f}  " if "val_loss" in line else ""
            measured = f"{loss}{figure} {line[figure]:.2f} %{'  best' if better else ''}"
        left = line["seconds"] * (epochs - line["epoch"])
        self.reporter.say(
            f"epoch {line['epoch']:3d}/{epochs}  train loss {line['train_loss']:.3f}  {measured}  "
            f"{line['images_per_second']:.0f} img/s  {line['seconds']:.0f} s, {rough_time(left)} left"
        )

    def _train(self, epoch: int, bar: Bar) -> float:
        run, clip = self.recipe.run, self.recipe.optim.clip_norm
        self.model.train()
        if frozen_epochs := self.recipe.schedule.frozen_epochs:
            set_learning(self.plain, self.optimizer, classifier_alone=epoch < frozen_epochs)
        self.train_loader.set_epoch(epoch)
        self.train_loader.dataset.set_epoch(epoch)
        total = torch.zeros((), device=self.accelerator.device)
        for index, (pictures, targets) in enumerate(self.train_loader):
            if index == 0:  # after the loader has drawn what it draws, which depends on its workers
                set_seed(run.seed * 100_003 + epoch, device_specific=True)
            if self._stop:
                raise Interrupted(
                    f"stopped in epoch {epoch + 1}, whose steps so far are dropped; the state "
                    f"{f'after epoch {epoch}' if epoch else 'of the start'} is kept"
                )
            self.schedule.step_update(self.progress.step)
            if run.channels_last:
                pictures = pictures.to(memory_format=torch.channels_last)
            with self.accelerator.autocast():
                loss = self.loss(self.forward, pictures, targets)
            self.accelerator.backward(loss)
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), clip or math.inf)
            loss = loss.detach()
            self._check_finite(loss, norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.progress.step += 1
            if self.average is not None:
                self.average.update(self.plain, step=self.progress.step)
            total += loss
            bar.step(f"epoch {epoch + 1}")
            if self.progress.step % run.log_every == 0 and self.accelerator.is_main_process:
                self._log_step(epoch, loss.item(), norm.item() if norm is not None else 0.0)
        return total.item() / self.steps_per_epoch

    def _log_step(self, epoch: int, loss: float, norm: float) -> None:
        self.folder.record(
            kind="step", step=self.progress.step, epoch=epoch + 1, loss=loss, lr=self.lr, grad_norm=norm
        )
        self.reporter.note(
            f"step {self.progress.step}  loss {loss:.4f}  lr {self.lr:.3e}  gradient norm {norm:.3f}"
        )

    def _check_finite(self, loss: Tensor, norm: Tensor) -> None:
        if not torch.isfinite(loss + norm):  # one look at the device, not two
            found = f"loss {loss.item():.4g}, gradient norm {float(norm):.4g}"
            raise self._diverged(self.progress.step + 1, found)

    def _diverged(self, step: int, found: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"training diverged at step {step}: {found}, lr {self.lr:.3g}; the state after epoch "
            f"{self.progress.epoch} is kept. "
            "Try a lower optim.lr, a longer schedule.warmup_epochs, or run.precision=fp32"
        )

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> tuple[dict[str, Any], Any]:
        """Figures on the validation split, and the metric that they come from."""
        model.eval()
        metric = make_metric(self.task.name, self.names, self.val_samples)
        for inputs, targets in self.val_loader:
            if self.recipe.run.channels_last and isinstance(inputs, Tensor):
                inputs = inputs.to(memory_format=torch.channels_last)
            try:
                with self.accelerator.autocast():
                    answered = self.task.answer(model, inputs, targets, self.names)
            except NotFinite as error:  # an epoch's last step is seen by no other step
                raise self._diverged(self.progress.step, f"{error} after it") from error
            answered = self.accelerator.gather_for_metrics(answered, use_gather_object=True)
            answers, places = zip(*answered, strict=True)
            metric.update(answers, places)
        return metric.compute(), metric

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop the run at its next step."""

        def stop(signum: int, frame: FrameType | None) -> None:
            if self._stop:  # asked twice: at once
                raise KeyboardInterrupt
            self._stop = True
            self.reporter.say("stopping at the next step (once more: at once)")

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in previous.items():
                signal.signal(s, handler)


def _numbers(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures that are one number, without tables and lists."""
    return {key: value for key, value in figures.items() if isinstance(value, (int, float))}
