"""`metamobile train`: from a name and a folder of pictures to a run folder."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, set_seed
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

from metamobile.data.loader import PictureDataset
from metamobile.errors import DataError, nearest
from metamobile.models.create import resolved_args
from metamobile.report import write_report
from metamobile.tasks import TASKS, Data, Task, get_task
from metamobile.tasks.look import find_task
from metamobile.training.checks import check_batch, check_resumed, check_settings, preprocess_record
from metamobile.training.finetune import load_pretrained
from metamobile.training.loop import Interrupted, Loop
from metamobile.training.memory import keep_freed_memory
from metamobile.training.optimizer import make_optimizer
from metamobile.training.progress import Reporter, rough_time
from metamobile.training.qat import add_rounding, qat_recipe
from metamobile.training.recipe import Recipe, load_recipe
from metamobile.training.runfolder import RunFolder
from metamobile.training.schedule import fit_warmup
from metamobile.training.start import say_what_will_happen, say_where_it_stands, start_record
from metamobile.training.state import AverageState, Progress, load_state
from metamobile.weights.card import Card, current_versions
from metamobile.weights.file import load_weights

MOST_NAMED = 100  # bad files in one error message


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
    task: str | None = None,
    head: str | None = None,
    recipe: str | Path | Recipe | None = None,
    out: str | Path | None = None,
    epochs: int | None = None,
    size: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    set: Sequence[str] = (),
    qat: str | Path | None = None,
    resume: str | Path | None = None,
    overwrite: bool = False,
    drop_bad: bool = False,
    quiet: bool = False,
) -> Run:
    """Train the network `name` on the folder `data` and leave a run folder (runs/NAME-DATA unless `out`).

    `task` is that of `head` or of the recipe, else what the data look like; each has a recipe to start from.
    `recipe` is a name, a YAML file or a Recipe; the other arguments and `set` ("optim.lr=1e-3") override it.
    `qat` names a trained model to go on from, for three epochs (unless `epochs`) of its own recipe in which
    layers round as an int8 file does; the run folder is runs/MODEL-qat unless `out`.
    `resume` goes on with a run by its own recipe, of which only `epochs`, `workers` and `device` can change;
    they may stand in `set`.
    Errors: ValueError for a wrong setting or an `out` that exists, DataError for bad files, Interrupted after
    a signal, TrainingDiverged.
    """
    given = {
        "model.name": name,
        "model.head": head,
        "data.path": None if data is None else str(data),
        "data.size": size if size is None or isinstance(size, int) else list(size),
        "data.drop_bad": drop_bad or None,
        "run.batch_size": batch_size,
        "schedule.epochs": epochs,
        "run.workers": workers,
        "run.device": device,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if resume is not None:
        folder = RunFolder(resume)
        may = ("schedule.epochs", "run.workers", "run.device")
        others = [key for key in given if key not in may]
        others += [setting for setting in set if setting.partition("=")[0].strip() not in may]
        if others or recipe is not None or out is not None or qat is not None or overwrite:
            raise ValueError(
                f"{folder.path}: a run goes on by its own recipe; beside --resume, only --epochs and "
                "--set run.device=, run.workers= can be given"
            )
        if not folder.recipe.is_file():
            raise ValueError(f"{folder.path}: not a run folder (no recipe.yaml)")
        recipe = folder.recipe
    if qat is not None:
        if recipe is not None or name is not None or head is not None:
            raise ValueError(
                f"--qat {qat}: the network and the recipe are the model's own; expected no name, --head or "
                "--recipe beside it (--set changes a setting)"
            )
        recipe = qat_recipe(str(qat))
    if recipe is None:
        recipe = get_task(task or _task_of(head, data, quiet)).recipe
    resolved = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if task is not None and task != resolved.task:
        raise ValueError(f"task {task!r} does not fit the recipe, which is one of {resolved.task}; give one")
    resolved = resolved.replace(given)
    if size is not None:  # of validation too, unless that is set
        resolved = replace(resolved, data=replace(resolved.data, val_size=None))
    resolved = resolved.override(set)
    if not resolved.data.path:
        raise ValueError(
            "no data was given; --data FOLDER names a folder of class folders, --data shapes drawn ones"
        )
    check_settings(resolved)
    if resume is None:
        data_name = Path(resolved.data.path).resolve().name
        title = f"{Path(qat).stem}-qat" if qat is not None else f"{resolved.model.name}-{data_name}"
        folder = RunFolder(out or Path("runs") / title)
        folder.check_free(overwrite)
    try:
        return _train(resolved, folder, resume is not None, quiet)
    finally:
        AcceleratorState._reset_state(True)  # one process may train again, with another precision or device


def _task_of(head: str | None, data: str | Path | None, quiet: bool) -> str:
    """The head's task, else what the data look like. Errors: ValueError for an unknown head."""
    if head is not None:
        heads = {name: task for task in TASKS for name in get_task(task).heads}
        if head not in heads:
            raise ValueError(
                f"no head is called {head!r}; known are {', '.join(heads)}{nearest(head, heads)}"
            )
        return heads[head]
    task = find_task(data) if data is not None else TASKS[0]
    if task != TASKS[0]:
        Reporter(quiet=quiet).say(
            f"{data} looks like data to {task}, so that is the task (--task says otherwise)"
        )
    return task


def _train(recipe: Recipe, folder: RunFolder, resume: bool, quiet: bool) -> Run:
    accelerator = _accelerator(recipe)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    reporter = Reporter(quiet=quiet or not accelerator.is_main_process)
    task = get_task(recipe.task)
    data = _open_data(task, recipe, resume, reporter)
    names = task.data.class_names(data.classes)
    set_seed(recipe.run.seed)
    model = task.build_model(recipe, len(names))
    check_batch(recipe, model, accelerator.num_processes)
    if recipe.model.pretrained and not resume:
        load_pretrained(model, data.classes, recipe.model.pretrained, reporter)
    if recipe.model.qat:
        reporter.say(
            f"{add_rounding(model)} layers round to eight bits, in training and where it is measured"
        )
    if recipe.run.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, recipe)
    loss = task.make_loss(recipe, data)
    record = preprocess_record(recipe)
    loaders = (
        _loader(task, task.train_dataset(data, recipe, record), recipe, accelerator, reporter, training=True),
        _loader(task, task.val_dataset(data, recipe, record), recipe, accelerator, reporter, training=False),
    )
    model, optimizer, train_loader, val_loader = accelerator.prepare(model, optimizer, *loaders)
    plain = accelerator.unwrap_model(model)
    average = None
    if recipe.ema.enabled:
        average = ModelEmaV3(plain, decay=recipe.ema.decay, use_warmup=recipe.ema.warmup)
        accelerator.register_for_checkpointing(AverageState(average))
    progress = Progress(steps_per_epoch=len(train_loader))
    recipe = fit_warmup(recipe, len(train_loader), reporter)
    accelerator.register_for_checkpointing(progress)
    if resume:
        load_state(accelerator, folder.state)
        check_resumed(progress, len(train_loader), recipe, folder)
    if accelerator.is_main_process:
        if resume:
            folder.go_on(recipe)
        else:
            folder.create(recipe)
            folder.record("start", **start_record(recipe, data, plain))
        reporter.start_log(folder.log)
    accelerator.wait_for_everyone()
    if resume:
        say_where_it_stands(recipe, progress.epoch, folder.path, reporter)
    else:
        steps = recipe.schedule.epochs * len(train_loader)
        say_what_will_happen(recipe, data, plain, optimizer.optimizer, steps, reporter)
        if loss.about:
            reporter.say(loss.about)
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
        loss=loss,
        names=names,
        val_samples=data.val,
        progress=progress,
        reporter=reporter,
        card=Card(
            recipe.model.name,
            {**recipe.model.args, **resolved_args(plain)},
            task=recipe.task,
            classes=data.classes,
            names=names,
            preprocess=record,
            recipe=recipe.to_dict(),
            versions=current_versions(),
            category_ids=getattr(data, "category_ids", []),
        ),
    )
    try:
        loop.run()
    except Interrupted as stop:
        reporter.say(f"{stop}; go on with: metamobile train --resume {folder.path}")
        if accelerator.is_main_process:
            write_report(folder.path)
        raise
    return _close(loop, data, folder, reporter)


def _close(loop: Loop, data: Data, folder: RunFolder, reporter: Reporter) -> Run:
    """Measure the chosen weights once more, from their file; write the evaluation and the report."""
    state, card = load_weights(folder.model)
    loop.plain.load_state_dict(state)
    figures, metric = loop.evaluate(loop.plain)
    if loop.accelerator.is_main_process:
        worst = loop.task.worst(metric, data, loop.names, 24, folder.path)
        folder.write_evaluation({**figures, "wrong": worst})
        key, label, unit, _ = loop.main
        figure = "not measurable" if figures[key] is None else f"{figures[key]:.2f} {unit}"
        reporter.say(
            f"{folder.model}: {card.metrics['chosen']}; {label} {figure} on "
            f"{len(data.val):,} pictures, {rough_time(loop.progress.seconds)} of training"
        )
        reporter.say(f"next: metamobile predict {folder.path} PICTURES")
        if getattr(loop.plain, "exports", True):
            reporter.say(f"      metamobile export {folder.path} --to onnx")
        write_report(folder.path)  # last: all else is safe by now, whatever happens in there
    return Run(folder.path, card, figures)


def _accelerator(recipe: Recipe) -> Accelerator:
    """Errors: ValueError for a device that is unknown or not there."""
    run = recipe.run
    if run.device != "auto":
        try:
            device = torch.device(run.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # an unknown name; torch built without this device
            raise ValueError(
                f"device {run.device!r} cannot be used ({str(error).splitlines()[0]}); "
                "expected auto, cpu, cuda, cuda:1, mps"
            ) from error
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    # while only the classifier learns, several processes have no gradients to exchange for all else
    unused = DistributedDataParallelKwargs(find_unused_parameters=recipe.schedule.frozen_epochs > 0)
    return Accelerator(
        cpu=run.device == "cpu",
        mixed_precision={"fp32": "no", "bf16": "bf16"}[run.precision],
        dataloader_config=DataLoaderConfiguration(
            split_batches=True, use_seedable_sampler=True, data_seed=run.seed
        ),
        kwargs_handlers=[unused],
    )


def _open_data(task: Task, recipe: Recipe, resume: bool, reporter: Reporter) -> Data:
    """Errors: DataError that names the bad files, unless the recipe drops them."""
    exclude: list[Path] = []
    # A run that goes on has seen its data; only the list of what was dropped is made again.
    if recipe.data.check and (recipe.data.drop_bad or not resume):
        with reporter.bar(0) as bar:
            inspection = task.data.inspect(
                recipe.data, recipe.run.workers, partial(bar.move, "checking pictures")
            )
        if not inspection.ok and not recipe.data.drop_bad:
            lines = [str(problem) for problem in inspection.problems]
            more = len(lines) - MOST_NAMED
            lines[MOST_NAMED:] = [f"and {more} more; `metamobile check` names all"] if more > 0 else []
            advice = "mend or remove them, or leave out exactly the bad files with --drop-bad"
            raise DataError(f"{inspection.summary()}; {advice}\n" + "\n".join(lines))
        exclude = sorted(inspection.files_to_drop())
        if exclude:
            reporter.say(f"left out, as --drop-bad says, {len(exclude)} files:")
        for path in exclude:
            reporter.say(f"  {path}")
        if inside := [problem for problem in inspection.problems if problem.path not in exclude]:
            reporter.say(
                f"and what is wrong inside of {len({p.path for p in inside})} files, such as {inside[0]}"
            )
    return task.data.open_data(recipe.data, exclude)


def _loader(
    task: Task,
    dataset: PictureDataset,
    recipe: Recipe,
    accelerator: Accelerator,
    reporter: Reporter,
    training: bool,
) -> DataLoader:
    """Order and augmentation depend on (seed, epoch, index) alone, so no loader has state to keep."""
    batch_size, workers = recipe.run.batch_size, recipe.run.workers
    if training and len(dataset) < batch_size:
        raise ValueError(
            f"{len(dataset)} training pictures do not fill a batch of {batch_size}; lower it: "
            f"--set run.batch_size={max(1, len(dataset) // 4)}"
        )
    if dataset.cache_side is not None:
        expected = dataset.cache_bytes()
        memory = psutil.virtual_memory().total
        if expected > memory / 2:
            reporter.say(
                f"pictures are read anew each epoch: {expected / 1e9:.1f} GB of them would take over half of "
                f"this machine's {memory / 1e9:.1f} GB (data.cache)"
            )
            dataset.cache_side = None
    with reporter.bar(len(dataset)) as bar:
        dataset.fill(lambda done: bar.step("reading pictures"))
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=training,
        drop_last=training,
        collate_fn=task.collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=_ignore_interrupts,
    )


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the loop alone decides when workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
