"""Tables and figures that the other studies of this package make: called here, not written anew."""

from __future__ import annotations

import shlex
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from metamobile.models.variants import VARIANTS
from metamobile.study.ablate import PUBLISHED_SIZE, PublishedCount, count_published, network_args
from metamobile.study.ablate_table import PAPERS, printed_and_recounted, remark_of
from metamobile.study.complexity import Complexity, count_network
from metamobile.study.criteria import study_criteria
from metamobile.study.grids import EMO_5M, GRIDS, Grid, Published, Settings
from metamobile.study.operators import study_complexity
from metamobile.study.reproduce.classify import TOP1
from metamobile.study.reproduce.request import Reproduced, Request
from metamobile.study.tables import criteria_tables

DIAGONAL = "diagonal/diagonal.json"


def complexity(request: Request) -> list[Reproduced]:
    """Table 2: the paper's formulas at one size, and the same counted and measured."""
    request.step("counting operators")
    columns = ["module", ">parameters", ">parameters, paper's", ">FLOPs", ">FLOPs, paper's"]
    columns += [">path length, measured", ">path length, paper's"]
    rows = []
    for row in study_complexity(channels=(64,), sides=(14,)):
        measured = "-" if row.path_measured is None else f"{row.path_measured:.3g}"
        formula = f"{row.path_formula:.3g}"
        rows.append([row.module, f"{row.parameters_counted:,}", f"{row.parameters_formula:,}"])
        rows[-1] += [f"{row.flops_counted:,}", f"{row.flops_formula:,}", measured, formula]
        if row.module.startswith("iRMB"):  # the paper gives the iRMB's path alone
            rows[-1][2] = rows[-1][4] = "-"
    notes = [
        "The paper prints formulas; its columns hold their values for 64 channels, a map of 14x14, windows "
        "of 7 and a kernel of 3. `metamobile study complexity` takes other sizes, and draws them.",
        "The path length is the number of modules that connect all positions; inf: they never do.",
    ]
    return [Reproduced("complexity", "Operators", "EMOv2 table 2", columns, rows, notes)]


def criteria(request: Request) -> list[Reproduced]:
    """Table 1, by the rules of `study criteria`."""
    request.step("counting for the criteria")
    note = "The paper gives marks and no rule; ours are by the rules of `metamobile study criteria`."
    return [
        Reproduced("criteria", title, "EMOv2 table 1", columns, rows, [note])
        for title, columns, rows in criteria_tables(study_criteria())
        if rows
    ]


def ablations(request: Request) -> list[Reproduced]:
    """Tables 5, 15, 17 (a) to (d), and one without a number; and the grids whose figures are not at hand."""
    found = []
    for name, grid in GRIDS.items():
        request.step(f"counting the grid {name}")
        found += [paper_grid(request, name, grid), *small_table(request, name, grid)]
    return found


def rows_of(grid: Grid) -> list[PublishedCount]:
    """The paper's rows; of a grid without any, EMO-5M with each cell."""
    return count_published(grid) or [PublishedCount(cell, Published(EMO_5M), None) for cell in grid.cells]


def paper_grid(request: Request, name: str, grid: Grid) -> Reproduced:
    """The paper's rows, each network counted at 224 px."""
    has_recounts = any(row.recount for cell in grid.cells for row in cell.published)
    columns = ["network", "cell", ">M parameters", ">M FLOPs, by the papers' rule"]
    columns += [">M parameters, paper's", ">M FLOPs, paper's"]
    columns += [">M parameters, official code", ">M FLOPs, official code"] * has_recounts
    columns += [">top-1 %, paper's", "remark on the paper's row", TOP1]
    rows = []
    for each in rows_of(grid):
        row, counted = each.row, each.counted
        if counted is None and each.cell.settings:  # nothing printed to compare with
            counted = count_unprinted(row.network, each.cell.settings(VARIANTS[row.network]))
        costs = ["-", "-"]
        if counted is not None:
            costs = [f"{counted.parameters / 1e6:.3f}", f"{counted.flops_paper / 1e6:.1f}"]
        printed = printed_and_recounted(row)
        top1 = "-" if row.top1 is None else f"{row.top1:.1f}"
        rows.append([PAPERS[row.network], each.cell.name, *costs, *printed[: 4 if has_recounts else 2], top1])
        rows[-1] += [remark_of(each), _trained(request, name, each)]
    notes = [grid.note] if grid.note else []
    if has_recounts:
        notes.append("The official code was counted where no table prints a figure.")
    if request.find(small_path(name)) is None:
        notes.append(f"In small, on other data, not trained yet: `{small_command(request, name)}`.")
    title = f"{grid.title}: {grid.varies}"
    return Reproduced("ablations", title, grid.source or "EMO, figures not at hand", columns, rows, notes)


def count_unprinted(network: str, settings: Settings) -> Complexity:
    """At 224 px. Drop path has no cost."""
    args = {k: v for k, v in network_args(network, settings).items() if k != "drop_path_rate"}
    return count_network(network, PUBLISHED_SIZE, **args)


def _trained(request: Request, grid: str, each: PublishedCount) -> str:
    """Top-1 of the cell on ImageNet: the published weights where it is the published network."""
    network = each.row.network
    if each.cell.settings is None:
        return f"not known: it cannot be built here, as {each.row.unmet}"
    settings = each.cell.settings(VARIANTS[network])
    if is_published(network, settings):
        return request.classifier(f"{network}.in1k")
    recipe = "imagenet-emov2" if network.startswith("emov2") else "imagenet-emo"
    run = f"ablation-{grid}-{each.cell.name}-{network}"
    return request.trained("imagenet", run, [request.train(network, recipe, "imagenet", run, settings)])


def is_published(network: str, settings: dict[str, Any]) -> bool:
    """Whether settings leave a variant as it is."""
    usual = {"drop_path_rate": VARIANTS[network].drop_path, "window_size": 7}
    return all(usual.get(key) == value for key, value in network_args(network, settings).items())


def small_path(name: str) -> str:
    """Below `results`, or below `runs`, where `study ablate` leaves it."""
    return f"ablate-{name}/ablation.json"


def small_command(request: Request, name: str) -> str:
    out = str(request.runs / f"ablate-{name}")
    return shlex.join(["metamobile", "study", "ablate", name, "--data", "FOLDER", "--out", out])


def small_table(request: Request, name: str, grid: Grid) -> list[Reproduced]:
    """What `study ablate` found: the same cells in small, on other data."""
    about = request.evidence(small_path(name))
    if about is None:
        return []
    columns = ["cell", ">M parameters", ">M FLOPs, by the papers' rule", ">runs", ">top-1 %, mean"]
    columns += [">standard deviation", ">lowest", ">highest"]
    rows = []
    for cell in about["cells"]:
        top1 = [run["top1"] for run in cell["runs"]]
        spread = f"{stdev(top1):.2f}" if len(top1) > 1 else "-"
        figures = [f"{n:.2f}" for n in (min(top1), max(top1))] if top1 else ["-"] * 2
        counted = cell["counted"]
        costs = [f"{counted['parameters'] / 1e6:.3f}", f"{counted['flops_paper'] / 1e6:.1f}"]
        mean = f"{fmean(top1):.2f}" if top1 else "-"
        rows.append([cell["name"], *costs, f"{len(top1)}", mean, spread, *figures])
    notes = [f"Not the paper's task: {about['what']} ({request.called(small_path(name))})."]
    if any(len(cell["runs"]) < about["seeds"] for cell in about["cells"]):
        notes.append(f"Runs are missing, of {about['seeds']} a cell: `{about['command']}` goes on.")
    if about["steps"]:
        steps = (f"{step['lower']} < {step['higher']}: {step['verdict']}" for step in about["steps"])
        notes.append(f"The paper's order: {about['order']} ({'; '.join(steps)}).")
    title = f"{grid.title}, ours in small"
    return [Reproduced("ablations", title, "no table of the paper's", columns, rows, notes)]


def diagonal(request: Request) -> list[Reproduced]:
    """Figure 7, from results/diagonal/diagonal.json: the networks of each role, and the verdict."""
    from metamobile.study.diagonal_claim import CLAIM, ROLES

    about = request.evidence(DIAGONAL)
    columns = ["network", "run, ours", ">half-width, ours", ">mean similarity, ours"]
    columns += ["what figure 7 shows, paper's"]
    rows = []
    for role, shown in zip(ROLES, ("short range", "long range", "the most similarity"), strict=True):
        measured = [row for row in (about or {}).get("rows", ()) if row["role"] == role]
        for row in measured:
            width = row["reach"]["half_width"]
            text = f"more than {row['side'] - 1}" if width is None else f"{width:.2f}"
            cells = [row["name"], f"{text} of {row['side']}", f"{row['reach']['mean']:.3f}"]
            rows.append([ROLES[role], *cells, shown])
        if not measured:
            rows.append([ROLES[role], f"not measured: `{diagonal_command(request)}`", "-", "-", shown])
    notes = ["The paper has pictures and no figures; half-widths are in positions of the map."]
    found = [Reproduced("diagonal", "Diagonal similarity", "EMO figure 7", columns, rows, notes)]
    if about:
        columns = ["claim, paper's", "verdict"]
        verdicts = [[text, about["parts"][part] or "-"] for part, text in CLAIM.items()]
        notes = [f"{about['spread']} ({request.called(DIAGONAL)})."]
        found.append(
            Reproduced("diagonal", "The claim of figure 7", "EMO figure 7", columns, verdicts, notes)
        )
    return found


def diagonal_command(request: Request) -> str:
    """Of three runs of the ablation of components, which come first where they are not there."""
    runs = [f"ablate-components/{cell}-seed0" for cell in ("dw-conv", "attention", "both")]
    words = ["metamobile", "study", "diagonal", *(str(request.runs / run) for run in runs)]
    command = shlex.join([*words, "--data", "FOLDER", "--out", f"results/{Path(DIAGONAL).parent}"])
    if all(request.has_run(run) for run in runs):
        return command
    return f"{small_command(request, 'components')} --seeds 1 && {command}"


def grad_cam(request: Request) -> list[Reproduced]:
    """The figure of class activation maps: what is known of it, and what makes ours."""
    command = "metamobile pull emo_5m.in1k && metamobile explain --compare resnet50 emo_5m.in1k PICTURES"
    rows = [
        ["models compared", "not to be read", "any of ours and of timm's, side by side; MPViT is in neither"],
        ["layer", "not to be read", "the last map; `--stage`, `--layer` choose another"],
        ["pictures", "not to be read", "of one's own"],
        ["the figure", "class activation maps", f"not drawn here: `{command}`"],
    ]
    columns = ["of the figure", "paper's", "ours, or what is missing"]
    notes = ["A picture, without figures: nothing to hold ours against."]
    return [Reproduced("grad-cam", "Class activation maps", "EMOv2, figure", columns, rows, notes)]
