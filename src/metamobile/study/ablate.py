"""`metamobile study ablate`: the papers' ablations in small, each grid under one recipe and several seeds.

Cells of a grid differ in what it varies and in nothing else: data, size, epochs, recipe and seeds are the
same. A cell's figure is the top-1 of its last epoch, not of its best one, which would be chosen on the
pictures it is measured on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from metamobile.errors import nearest
from metamobile.files import expect_folder
from metamobile.models.operators import WindowAttention
from metamobile.models.variants import VARIANTS
from metamobile.study.ablate_table import write_results
from metamobile.study.complexity import Complexity, complexity, count_network
from metamobile.study.grids import GRIDS, Cell, Grid, Published, Settings
from metamobile.tasks import get_task
from metamobile.training.loop import Interrupted
from metamobile.training.progress import Reporter
from metamobile.training.recipe import Recipe, load_recipe
from metamobile.training.runfolder import RunFolder
from metamobile.training.train import train

PUBLISHED_SIZE = 224  # pixels of the papers' ablations, on 1,000 classes
NO_MATTER = ("run.device", "run.workers")  # settings that may differ between runs of a grid


@dataclass(frozen=True)
class SeedRun:
    """A finished run: top-1 in % of the last epoch and of every measured one, its loss and its time."""

    seed: int
    top1: float
    measured: dict[int, float]
    train_loss: float
    seconds: float


@dataclass(frozen=True)
class CellResult:
    """A cell as it is trained here: its counts at the size trained at, and its runs by seed."""

    cell: Cell
    counted: Complexity
    runs: list[SeedRun]


@dataclass(frozen=True)
class PublishedCount:
    """A row of the papers, and the same network counted here, at 224 px; None: it cannot be built."""

    cell: Cell
    row: Published
    counted: Complexity | None

    @property
    def agrees(self) -> bool | None:
        """Whether each printed figure is the count, rounded or truncated; None where there is nothing to
        compare."""
        if self.counted is None or (self.row.parameters is None and self.row.flops is None):
            return None
        pairs = ((self.row.parameters, self.counted.parameters), (self.row.flops, self.counted.flops_paper))
        return all(printed is None or prints_as(count / 1e6, printed) for printed, count in pairs)


@dataclass
class Ablation:
    """What is known of a grid so far. `seeds` are those asked for; `start` is the first run's own record."""

    name: str
    grid: Grid
    recipe: Recipe
    seeds: int
    classes: int
    folder: Path
    results: list[CellResult]
    published: list[PublishedCount]
    start: dict[str, Any] = field(default_factory=dict)


def prints_as(value: float, printed: str) -> bool:
    """Whether `value`, rounded or truncated to as many decimals, is the `printed` figure."""
    scale = 10 ** len(printed.partition(".")[2])
    return round(float(printed) * scale) in (int(value * scale), round(value * scale))


def ablate(
    grid: str,
    data: str | Path | None = None,
    *,
    model: str = "emo_1m",
    recipe: str | Path | Recipe = "ablate",
    out: str | Path | None = None,
    seeds: int = 3,
    only: Sequence[str] | None = None,
    epochs: int | None = None,
    size: int | None = None,
    device: str | None = None,
    workers: int | None = None,
    set: Sequence[str] = (),
    dry_run: bool = False,
    quiet: bool = False,
) -> Ablation:
    """Train the cells of `grid` (of `GRIDS`) with seeds 0 to `seeds` - 1, and compare them.

    Runs lie in `out` (runs/ablate-GRID unless given) as CELL-seedN. One that is finished is not trained
    again and one that was stopped goes on, so the same command leads to the end over any number of sittings.
    Each seed goes through all cells before the next. After every run ablation.json, .md and .png are written
    anew. `only` names the cells to train; the table has what is there of the others, too.

    `dry_run` trains nothing: it counts, needs no data, and writes only where `out` is given.
    Errors: ValueError for an unknown grid or cell, for what a grid varies among `set`, and for runs in `out`
    that were trained with other settings; those of `train`, Interrupted among them.
    """
    cells = find_cells(grid, only)
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}; expected at least 1, and 3 or more for a spread")
    reporter = Reporter(quiet=quiet)
    base = base_recipe(recipe, model, data, epochs, size, device, workers, set)
    _check_varied(GRIDS[grid], base, set)
    if not dry_run and not base.data.path:
        raise ValueError("no data was given; --data FOLDER names a folder of class folders")
    folder = Path(out or Path("runs") / f"ablate-{grid}")
    expect_folder(folder)
    check_runs(grid, folder, base)
    classes = count_classes(base)
    ablation = Ablation(
        grid,
        GRIDS[grid],
        base,
        seeds,
        classes,
        folder,
        [
            CellResult(cell, count_cell(cell, base, classes), [])
            for cell in GRIDS[grid].cells
            if cell.settings
        ],
        count_published(GRIDS[grid]),
    )
    for line in without_effect(ablation):
        reporter.say(f"without effect: {line}")
    read_results(ablation)
    if not dry_run:
        _train_all(ablation, cells, reporter)
    elif out is not None:
        write_results(ablation)
    return ablation


def find_cells(grid: str, only: Sequence[str] | None = None) -> list[Cell]:
    """The cells of a grid that can be trained, or those named. Errors: ValueError with the nearest name."""
    if grid not in GRIDS:
        raise ValueError(f"no grid is called {grid!r}; known are {', '.join(GRIDS)}{nearest(grid, GRIDS)}")
    names = GRIDS[grid].names
    for name in only or ():
        if name not in names:
            missing = next((cell for cell in GRIDS[grid].cells if cell.name == name), None)
            if missing is not None:
                raise ValueError(f"{grid}: {name} cannot be trained: {missing.published[0].unmet}")
            known = ", ".join(names)
            raise ValueError(f"{grid} has no cell {name!r}; it has {known}{nearest(name, names)}")
    return [cell for cell in GRIDS[grid].cells if cell.name in (only or names)]


def base_recipe(
    recipe: str | Path | Recipe,
    model: str,
    data: str | Path | None,
    epochs: int | None = None,
    size: int | None = None,
    device: str | None = None,
    workers: int | None = None,
    set: Sequence[str] = (),
) -> Recipe:
    """What all cells share. Errors: ValueError for a network that is not EMO's, and a recipe for another
    task."""
    if model not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise ValueError(f"{model!r} has no parts to vary; known are {known}{nearest(model, VARIANTS)}")
    resolved = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if resolved.task != "classify":
        raise ValueError(f"the recipe is one of {resolved.task}; expected classify, as ablations classify")
    given = {
        "model.name": model,
        "data.path": None if data is None else str(data),
        "data.size": size,
        "schedule.epochs": epochs,
        "run.device": device,
        "run.workers": workers,
    }
    resolved = resolved.replace({key: value for key, value in given.items() if value is not None})
    if size is not None:  # of validation too, unless that is set
        resolved = replace(resolved, data=replace(resolved.data, val_size=None))
    return resolved.override(set)


def _check_varied(grid: Grid, base: Recipe, set: Sequence[str]) -> None:
    """Errors: ValueError for a setting among `set` that the grid or the seeds decide."""
    variant = VARIANTS[base.model.name]
    varied = {key for cell in grid.cells if cell.settings for key in cell.settings(variant)}
    for setting in set:
        key = setting.partition("=")[0].strip()
        if key in varied:
            raise ValueError(f"--set {setting!r}: {key} is what the grid varies; leave it out")
        if key in ("run.seed", "model.name"):
            instead = "--seeds" if key == "run.seed" else "--model"
            raise ValueError(f"--set {setting!r}: {key} is set for each run; give {instead} instead")


def cell_recipe(cell: Cell, base: Recipe, seed: int) -> Recipe:
    """The shared recipe with what the cell sets, and the seed."""
    assert cell.settings is not None  # as the cell is one to train
    return base.replace({**cell.settings(VARIANTS[base.model.name]), "run.seed": seed})


def found_runs(grid: Grid, folder: Path) -> Iterator[tuple[Cell, int, RunFolder]]:
    """Cell, seed and folder of each run that was begun."""
    if not folder.is_dir():
        return
    cells = {cell.name: cell for cell in grid.cells}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(r"(.+)-seed(\d+)", path.name)
        if match and match[1] in cells and (path / "recipe.yaml").is_file():
            yield cells[match[1]], int(match[2]), RunFolder(path)


def check_runs(grid: str, folder: Path, base: Recipe) -> None:
    """Errors: ValueError for a run in `folder` that was trained with other settings. Without data given, any
    data will do."""
    for cell, seed, run in found_runs(GRIDS[grid], folder):
        then, now = load_recipe(run.recipe), cell_recipe(cell, base, seed)
        if not now.data.path:
            now = now.replace({"data.path": then.data.path})
        for key, was, wanted in differences(then, now):
            raise ValueError(
                f"{run.path}: was trained with {key} {was!r}, and {wanted!r} is wanted now; cells compare "
                "only under one recipe: give the settings of then, or another --out"
            )


def differences(then: Recipe, now: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """Settings that matter and are not the same: key, value then, value now."""
    old, new = _flat(then.to_dict()), _flat(now.to_dict())
    for key in {**old, **new}:
        was, wanted = old.get(key), new.get(key)
        if key == "data.path" and was and wanted:
            if Path(was).resolve() != Path(wanted).resolve():
                yield key, was, wanted
        elif key == "schedule.warmup_epochs" and (now.schedule.warmup_epochs >= now.schedule.epochs):
            continue  # the run shortened it
        elif was != wanted and key not in NO_MATTER:
            yield key, was, wanted


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def count_classes(base: Recipe) -> int:
    """Of the data; ImageNet-1K's where none are given. Errors: DataError for a folder that cannot be used."""
    if not base.data.path:
        return 1000
    return len(get_task("classify").data.open_data(base.data, []).classes)


def network_args(name: str, settings: Settings) -> dict[str, Any]:
    """Arguments for `create_model` of a cell's recipe settings, without those that the network has anyway."""
    args = {key.removeprefix("model.args.").removeprefix("model."): value for key, value in settings.items()}
    own = json.loads(json.dumps(asdict(VARIANTS[name])))  # lists, as in settings
    return {key: value for key, value in args.items() if key not in own or own[key] != value}


def count_cell(cell: Cell, base: Recipe, classes: int) -> Complexity:
    """The network that the cell trains, at the size it is trained at."""
    network = get_task("classify").build_model(cell_recipe(cell, base, 0), classes)
    return complexity(network, base.data.shape)[0]


def count_published(grid: Grid) -> list[PublishedCount]:
    """Every row of the papers, each with a count where it has figures to compare and can be built."""
    counts = []
    for cell in grid.cells:
        for row in cell.published:
            counted = None
            if cell.settings and (row.parameters or row.flops):
                args = network_args(row.network, cell.settings(VARIANTS[row.network]))
                counted = count_network(row.network, PUBLISHED_SIZE, **args)
            counts.append(PublishedCount(cell, row, counted))
    return counts


def without_effect(ablation: Ablation) -> Iterator[str]:
    """Where windows are as large as the maps, ways to cut them are one."""
    names = set(ablation.grid.names)
    if not {"strided", "contiguous"} <= names:
        return
    cell = next(cell for cell in ablation.grid.cells if cell.name == "strided")
    network = get_task("classify").build_model(cell_recipe(cell, ablation.recipe, 0), ablation.classes)
    height, width = ablation.recipe.data.shape
    for index, stage in enumerate(network.stages):  # type: ignore[arg-type]
        shape = -(-height // 2 ** (index + 1)), -(-width // 2 ** (index + 1))
        for module in stage.modules():
            if isinstance(module, WindowAttention) and module.max_path_length(*shape) != 1:
                return
    yield (
        f"strided or contiguous, as windows are as large as the maps at {height}x{width} px; "
        "--set model.window_size=N with a smaller N tells them apart"
    )


def read_results(ablation: Ablation) -> None:
    """Put the finished runs that lie in the folder into the results."""
    results = {result.cell.name: result for result in ablation.results}
    for result in ablation.results:
        result.runs.clear()
    for cell, seed, run in found_runs(ablation.grid, ablation.folder):
        if is_finished(run):
            results[cell.name].runs.append(read_run(run, seed))
            ablation.start = ablation.start or _records(run, "start")[0]
    for result in ablation.results:
        result.runs.sort(key=lambda run: run.seed)


def is_finished(run: RunFolder) -> bool:
    """A run measures its chosen weights last of all."""
    return run.evaluation.is_file()


def read_run(run: RunFolder, seed: int) -> SeedRun:
    """From metrics.jsonl, where an epoch that was done twice counts once."""
    epochs = {line["epoch"]: line for line in _records(run, "epoch")}
    last = epochs[max(epochs)]
    measured = {epoch: line["top1"] for epoch, line in sorted(epochs.items()) if "top1" in line}
    seconds = sum(line["seconds"] for line in epochs.values())
    return SeedRun(seed, last["top1"], measured, last["train_loss"], seconds)


def _records(run: RunFolder, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, run.metrics.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["kind"] == kind]


def _train_all(ablation: Ablation, cells: Sequence[Cell], reporter: Reporter) -> None:
    """Errors: those of `train`; Interrupted, after a line that says how to go on."""
    write_results(ablation)
    runs = [(cell, seed) for seed in range(ablation.seeds) for cell in cells]
    for index, (cell, seed) in enumerate(runs, 1):
        run = RunFolder(ablation.folder / f"{cell.name}-seed{seed}")
        if is_finished(run):
            reporter.say(f"run {index} of {len(runs)}: {cell.name}, seed {seed}: done before")
            continue
        reporter.say(f"run {index} of {len(runs)}: {cell.name}, seed {seed}")
        try:
            train_run(run, cell_recipe(cell, ablation.recipe, seed), reporter.quiet)
        except Interrupted:
            reporter.say("the same command goes on with this run, and then with those that are left")
            raise
        read_results(ablation)
        write_results(ablation)


def train_run(run: RunFolder, recipe: Recipe, quiet: bool) -> None:
    """From the start, or from the last whole epoch of a run that was stopped."""
    if run.state.is_dir() or run.state.with_name(".last.old").is_dir():  # the latter: killed as it was saved
        workers, device = recipe.run.workers, recipe.run.device
        train(resume=run.path, workers=workers, device=device, quiet=quiet)
        return
    train(recipe=recipe, out=run.path, overwrite=run.recipe.is_file(), quiet=quiet)
