"""`metamobile train`: from a name and a folder of pictures to a run folder."""

from __future__ import annotations

import os
import platform
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, set_seed
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader

from metamobile.data.folder import FolderData
from metamobile.data.loader import PictureDataset
from metamobile.data.preprocess import Preprocess
from metamobile.errors import DataError
from metamobile.models.create import resolved_args
from metamobile.models.emo import padded_share
from metamobile.tasks import Task, get_task
from metamobile.training.finetune import load_pretrained
from metamobile.training.loop import Interrupted, Loop
from metamobile.training.progress import Reporter
from metamobile.training.recipe import Recipe, load_recipe
from metamobile.training.runfolder import RunFolder
from metamobile.training.state import AverageState, Progress, load_state
from metamobile.weights.card import Card, current_versions
from metamobile.weights.file import load_weights, save_weights

MOST_PADDED = 0.10  # share of padded tokens above which a run says so
DEFAULT_RECIPE = "small-data"


@dataclass
class Run:
    """A finished run: its folder, its card, and the figures of its best weights."""

    folder: Path
    card: Card
    metrics: dict[str, Any]


def train(
    name: str | None = None,
    data: str | Path | None = None,
    *,
    recipe: str | Path | Recipe | None = None,
    out: str | Path | None = None,
    epochs: int | None = None,
    size: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    set: Sequence[str] = (),
    resume: str | Path | None = None,
    overwrite: bool = False,
    drop_bad: bool = False,
    quiet: bool = False,
) -> Run:
    """Train the network `name` on the folder `data` and leave a run folder (runs/NAME-DATA unless `out`).

    `recipe` is a name, a YAML file or a Recipe; the other arguments and `set` ("optim.lr=1e-3") override it.
    `resume` goes on with a run and takes its recipe from there. Errors: ValueError for a wrong setting or
    an `out` that exists, DataError for bad files, Interrupted after a signal, TrainingDiverged.
    """
    if resume is not None:
        if name or data or recipe or out or set:
            raise ValueError("--resume takes all settings from the run; give it alone (--epochs may change them)")
        folder = RunFolder(resume)
        if not folder.recipe.is_file():
            raise ValueError(f"{folder.path}: not a run folder (no recipe.yaml)")
        recipe = folder.recipe
    resolved = recipe if isinstance(recipe, Recipe) else load_recipe(recipe or DEFAULT_RECIPE)
    given = {
        "model.name": name,
        "data.path": None if data is None else str(data),
        "schedule.epochs": epochs,
        "data.size": list(size) if isinstance(size, Sequence) else size,
        "run.batch_size": batch_size,
        "run.workers": workers,
        "run.device": device,
        "data.drop_bad": True if drop_bad else None,
    }
    resolved = resolved.override([f"{key}={value}" for key, value in given.items() if value is not None])
    resolved = resolved.override(set)
    if not resolved.data.path:
        raise ValueError("no data was given; --data FOLDER names a folder of class folders, --data shapes drawn ones")
    if resume is None:
        folder = RunFolder(out or Path("runs") / f"{resolved.model.name}-{Path(resolved.data.path).resolve().name}")
        _check_settings(resolved)
    try:
        return _train(resolved, folder, resume is not None, overwrite, quiet)
    finally:
        AcceleratorState._reset_state(True)  # so that one process can train again with another precision or device


def _train(recipe: Recipe, folder: RunFolder, resume: bool, overwrite: bool, quiet: bool) -> Run:
    accelerator = _accelerator(recipe)
    reporter = Reporter(quiet=quiet or not accelerator.is_main_process)
    task = get_task(recipe.task)
    data = _open_data(task, recipe, reporter)
    names = task.class_names(data.classes)
    set_seed(recipe.run.seed)
    model = task.build_model(recipe, len(names))
    if accelerator.is_main_process and not resume:
        folder.create(recipe, overwrite=overwrite)
    accelerator.wait_for_everyone()
    reporter.log = folder.log if accelerator.is_main_process else None
    if recipe.model.pretrained and not resume:
        load_pretrained(model, recipe.model.pretrained, reporter)
    _say_what_will_happen(recipe, data, model, folder, reporter)

    record = preprocess_record(recipe)
    loaders = (
        _loader(task.train_dataset(data, recipe), recipe, reporter, shuffle=True),
        _loader(task.val_dataset(data, recipe, record), recipe, reporter, shuffle=False),
    )
    if recipe.run.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(
        model,
        opt=recipe.optim.name,
        lr=recipe.lr,
        weight_decay=recipe.optim.weight_decay,
        betas=tuple(recipe.optim.betas),
        eps=recipe.optim.eps,
    )
    model, optimizer, train_loader, val_loader = accelerator.prepare(model, optimizer, *loaders)
    average = None
    if recipe.ema.enabled:
        average = ModelEmaV3(
            accelerator.unwrap_model(model), decay=recipe.ema.decay, use_warmup=recipe.ema.warmup
        )
        accelerator.register_for_checkpointing(AverageState(average))
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    if resume:
        load_state(accelerator, folder.state)
        reporter.say(f"going on after epoch {progress.epoch}")

    def save(network: nn.Module, figures: dict[str, Any], best: bool) -> None:
        kind = "averaged weights" if average is not None else "weights"
        chosen = f"best {kind} by validation {task.main_figure}" if best else f"last {kind}"
        metrics = {k: figures[k] for k in ("top1", "top5", "loss") if k in figures}
        metrics |= {"epoch": progress.best_epoch if best else progress.epoch, "chosen": chosen}
        card = Card(
            recipe.model.name,
            {**recipe.model.args, **resolved_args(network)},
            task=recipe.task,
            classes=data.classes,
            names=names,
            preprocess=record,
            recipe=recipe.to_dict(),
            metrics=metrics,
            versions=current_versions(),
        )
        save_weights(folder.model if best else folder.last_model, network.state_dict(), card)

    if accelerator.is_main_process and not resume:
        folder.record(kind="start", **_start(recipe, data, model))
    loop = Loop(
        task=task,
        recipe=recipe,
        folder=folder,
        accelerator=accelerator,
        model=model,
        average=average,
        optimizer=optimizer,
        train_loader=train_loader,
        val_loader=val_loader,
        names=names,
        progress=progress,
        reporter=reporter,
        save_weights=save,
    )
    try:
        loop.run()
    except Interrupted as stop:
        reporter.say(f"{stop}; go on with: metamobile train --resume {folder.path}")
        raise
    return _close(loop, data, folder, reporter)


def _close(loop: Loop, data: FolderData, folder: RunFolder, reporter: Reporter) -> Run:
    """Measure the chosen weights once more, from the file, and write the evaluation and the report."""
    state, card = load_weights(folder.model)
    loop.plain.load_state_dict(state)
    figures, outputs = loop.evaluate(loop.plain)
    if loop.accelerator.is_main_process:
        worst = loop.task.worst(outputs, data, loop.names, most=24)
        folder.write_evaluation({**figures, "wrong": worst})
        from metamobile.report import write_report

        write_report(folder.path)
        reporter.say(
            f"{card.metrics['chosen']}: epoch {card.metrics['epoch']}, top-1 {figures['top1']:.2f} % on "
            f"{len(data.val):,} pictures, after {loop.progress.seconds / 60:.1f} minutes"
        )
    return Run(folder.path, card, figures)


def _accelerator(recipe: Recipe) -> Accelerator:
    run = recipe.run
    if run.device not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError(f"run.device {run.device!r} is unknown; known are auto, cpu, cuda, mps")
    available = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if run.device in available and not available[run.device]():
        raise ValueError(f"run.device {run.device!r} is not available on this machine; use auto or cpu")
    return Accelerator(
        cpu=run.device == "cpu",
        mixed_precision={"fp32": "no", "bf16": "bf16"}[run.precision],
        dataloader_config=DataLoaderConfiguration(
            split_batches=True, use_seedable_sampler=True, data_seed=run.seed, use_stateful_dataloader=True
        ),
    )


def _open_data(task: Task, recipe: Recipe, reporter: Reporter) -> FolderData:
    inspection = task.check_data(recipe)
    exclude: list[Path] = []
    if not inspection.ok:
        lines = [f"{p.path}: {p.kind}: {p.detail}" for p in inspection.problems]
        if not recipe.data.drop_bad:
            advice = "mend or remove them, or leave out exactly the bad files with --drop-bad"
            raise DataError(f"{inspection.summary()}; {advice}\n" + "\n".join(lines))
        exclude = sorted(inspection.files_to_drop())
        reporter.say(f"left out, as --drop-bad says, {len(exclude)} files:")
        for path in exclude:
            reporter.say(f"  {path}")
    return task.open_data(recipe, exclude)


def _loader(dataset: PictureDataset, recipe: Recipe, reporter: Reporter, shuffle: bool) -> StatefulDataLoader:
    if shuffle and len(dataset) < recipe.run.batch_size:
        raise ValueError(
            f"{len(dataset)} training pictures do not fill a batch of {recipe.run.batch_size}; lower --batch-size"
        )
    with reporter.bar(len(dataset)) as bar:
        dataset.fill(lambda done: bar.step("reading pictures"))
    workers = recipe.run.workers
    return StatefulDataLoader(
        dataset,
        batch_size=recipe.run.batch_size,
        shuffle=shuffle,
        drop_last=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_ignore_interrupts,
    )


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the loop alone decides when workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def preprocess_record(recipe: Recipe) -> Preprocess:
    data = recipe.data
    return Preprocess(data.shape, data.resize, data.interpolation, tuple(data.mean), tuple(data.std))  # type: ignore[arg-type]


def _check_settings(recipe: Recipe) -> None:
    """Errors: ValueError for settings that cannot work."""
    if recipe.run.precision not in ("fp32", "bf16"):
        raise ValueError(f"run.precision {recipe.run.precision!r} is unknown; known are fp32, bf16")
    if recipe.schedule.epochs < 1:
        raise ValueError(f"schedule.epochs is {recipe.schedule.epochs}; expected at least 1")
    if min(recipe.data.shape) < 32:
        raise ValueError(f"data.size {recipe.data.size} is too small; EMO needs at least 32 pixels")
    preprocess_record(recipe)


def _say_what_will_happen(
    recipe: Recipe, data: FolderData, model: nn.Module, folder: RunFolder, reporter: Reporter
) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    reporter.say(
        f"{recipe.model.name}, {parameters:,} parameters, {recipe.data.shape[0]}x{recipe.data.shape[1]} px; "
        f"{len(data.classes)} classes, {len(data.train):,} pictures to train, {len(data.val):,} to validate "
        f"({data.split}); {folder.path}"
    )
    if recipe.optim.lr_per:
        reporter.say(f"lr {recipe.optim.lr:g} per {recipe.optim.lr_per} pictures, {recipe.lr:g} for this batch size")
    share = padded_share(model, recipe.data.shape)
    if share > MOST_PADDED:
        reporter.say(
            f"{share:.0%} of attention's tokens are padding at this size; --set model.window_size=auto avoids them"
        )
    for setting in _without_effect(recipe):
        reporter.say(f"without effect: {setting}")


def _without_effect(recipe: Recipe) -> list[str]:
    default = Recipe()
    told = []
    if not recipe.ema.enabled and recipe.ema.decay != default.ema.decay:
        told.append("ema.decay, as ema.enabled is false")
    if recipe.schedule.warmup_epochs == 0 and recipe.schedule.warmup_lr != default.schedule.warmup_lr:
        told.append("schedule.warmup_lr, as schedule.warmup_epochs is 0")
    if recipe.augment.auto_augment and recipe.augment.color_jitter:
        told.append("augment.color_jitter, as augment.auto_augment takes its place in timm's transform")
    return told


def _start(recipe: Recipe, data: FolderData, model: nn.Module) -> dict[str, Any]:
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "device": str(next(model.parameters()).device),
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": {
            "classes": len(data.classes),
            "train": len(data.train),
            "val": len(data.val),
            "split": data.split,
        },
        "versions": current_versions(),
    }
