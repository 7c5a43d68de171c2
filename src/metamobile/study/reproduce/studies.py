"""Tables and figures that the other studies of this package make: called here, not written anew."""

from __future__ import annotations

import json
import shlex
from functools import cache
from typing import Any

from metamobile.models.variants import VARIANTS
from metamobile.study.ablate import PublishedCount, count_published, network_args
from metamobile.study.ablate_table import PAPERS, printed_and_recounted
from metamobile.study.complexity import Complexity
from metamobile.study.criteria import study_criteria
from metamobile.study.grids import GRIDS, Grid, Settings
from metamobile.study.operators import study_complexity
from metamobile.study.reproduce.classify import TOP1, count, has_verb
from metamobile.study.reproduce.request import Reproduced, Request
from metamobile.study.tables import criteria_tables


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
    """Tables 5, 15, 17 (a) to (d), and one without a number."""
    found = []
    for name, grid in GRIDS.items():
        request.step(f"counting the grid {name}")
        small = small_table(request, name, grid)
        if grid.source:
            found.append(paper_grid(request, name, grid))
        elif not small:  # nothing of the paper's is at hand, and nothing of ours
            title, columns = grid.title, ["cells", "ours, or what is missing"]
            rows = [[", ".join(grid.names), f"not trained: `{small_command(name)}`"]]
            found.append(
                Reproduced("ablations", title, "EMO, figures not at hand", columns, rows, [grid.note])
            )
        found += small
    return found


def paper_grid(request: Request, name: str, grid: Grid) -> Reproduced:
    """The paper's rows, each network counted at 224 px."""
    columns = ["network", "cell", ">M parameters", ">M FLOPs, by the papers' rule"]
    columns += [">M parameters, paper's", ">M FLOPs, paper's"]
    columns += [">M parameters, official code", ">M FLOPs, official code"]
    columns += [">top-1 %, paper's", "remark on the paper's row", TOP1]
    rows = []
    for each in count_published(grid):
        row, counted = each.row, each.counted
        if counted is None and each.cell.settings:  # nothing printed to compare with
            counted = count_unprinted(row.network, each.cell.settings(VARIANTS[row.network]))
        costs = ["-", "-"]
        if counted is not None:
            costs = [f"{counted.parameters / 1e6:.3f}", f"{counted.flops_paper / 1e6:.1f}"]
        top1 = "-" if row.top1 is None else f"{row.top1:.1f}"
        rows.append([PAPERS[row.network], each.cell.name, *costs, *printed_and_recounted(row), top1])
        rows[-1] += [remark_of(each), _trained(request, name, each)]
    notes = [grid.note] if grid.note else []
    if any(row.recount for cell in grid.cells for row in cell.published):
        notes.append("The official code was counted where no table prints a figure.")
    title = f"{grid.title}: {grid.varies}"
    return Reproduced("ablations", title, grid.source, columns, rows, notes)


def count_unprinted(network: str, settings: Settings) -> Complexity:
    """At 224 px. Drop path has no cost."""
    args = network_args(network, settings)
    return _count_once(network, json.dumps({k: v for k, v in args.items() if k != "drop_path_rate"}))


@cache
def _count_once(network: str, args: str) -> Complexity:
    return count(network, **json.loads(args))


def remark_of(each: PublishedCount) -> str:
    """First of all, whether a printed count is not met."""
    parts = [part for part in (each.row.unmet, each.row.remark) if part]
    if each.agrees is False or (each.counted is None and each.row.unmet):
        return "; ".join(["cannot be met exactly", *parts])
    return "; ".join(parts) or "-"


def _trained(request: Request, grid: str, each: PublishedCount) -> str:
    """Top-1 of the cell on ImageNet: the published weights where it is the published network."""
    network = each.row.network
    if each.cell.settings is None:
        return "not known: it cannot be built here"
    settings = each.cell.settings(VARIANTS[network])
    if is_published(network, settings):
        return request.classifier(f"{network}.in1k")
    recipe = "imagenet-emov2" if network.startswith("emov2") else "imagenet-emo"
    run = f"ablation-{grid}-{each.cell.name}-{network}"
    sets = ",".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
    command = f"metamobile train {network} --recipe {recipe} --set {shlex.quote(sets)}"
    command += f" --data {request.folder('imagenet')} --out {request.runs / run}"
    return request.trained("imagenet", run, [command])


def is_published(network: str, settings: dict[str, Any]) -> bool:
    """Whether settings leave a variant as it is."""
    usual = {"drop_path_rate": VARIANTS[network].drop_path, "window_size": 7}
    return all(usual.get(key) == value for key, value in network_args(network, settings).items())


def small_command(name: str) -> str:
    return f"metamobile study ablate {name} --data FOLDER --out results/ablate-{name}"


def small_table(request: Request, name: str, grid: Grid) -> list[Reproduced]:
    """What `study ablate` left in results/ablate-GRID: the same cells in small, on other data."""
    path = f"ablate-{name}/ablation.json"
    about = request.evidence(path)
    if about is None:
        return []
    columns = ["cell", ">runs", ">top-1 %, mean", ">lowest", ">highest"]
    rows = []
    for cell in about["cells"]:
        top1 = [run["top1"] for run in cell["runs"]]
        figures = [f"{n:.2f}" for n in (sum(top1) / len(top1), min(top1), max(top1))] if top1 else ["-"] * 3
        rows.append([cell["name"], f"{len(top1)}", *figures])
    order = f" The paper's order: {about['order']}." if about.get("order") else ""
    notes = [f"Not the paper's task: {about['what']} (results/{path}).{order}"]
    return [
        Reproduced(
            "ablations", f"{grid.title}, ours in small", "no table of the paper's", columns, rows, notes
        )
    ]


def diagonal(request: Request) -> list[Reproduced]:
    """Figure 7, from results/diagonal/diagonal.json."""
    from metamobile.study.diagonal_claim import CLAIM, ROLES

    path = "diagonal/diagonal.json"
    about = request.evidence(path)
    command = "metamobile study diagonal CONV ATTENTION BOTH --data FOLDER --out results/diagonal"
    columns = ["network", ">half-width, ours", ">mean similarity, ours", "what figure 7 shows, paper's"]
    measured: dict[str, Any] = {row["role"]: row for row in about["rows"]} if about else {}
    rows = []
    for role, shown in zip(ROLES, ("short range", "long range", "the most similarity"), strict=True):
        if role in measured:
            row = measured[role]
            width = row["reach"]["half_width"]
            text = f"more than {row['side'] - 1}" if width is None else f"{width:.2f}"
            cells = [f"{text} of {row['side']}", f"{row['reach']['mean']:.3f}"]
        else:
            cells = [f"not measured: `{command}`", "-"]
        rows.append([ROLES[role], *cells, shown])
    found = [
        Reproduced("diagonal", "Diagonal similarity", "EMO figure 7", columns, rows, _about_diagonal(about))
    ]
    if about:
        verdicts = [[text, about["parts"][part] or "-"] for part, text in CLAIM.items()]
        found.append(
            Reproduced(
                "diagonal", "The claim of figure 7", "EMO figure 7", ["claim, paper's", "verdict"], verdicts,
                [about["spread"]],
            )
        )  # fmt: skip
    return found


def _about_diagonal(about: dict[str, Any] | None) -> list[str]:
    notes = ["The paper has pictures and no figures; half-widths are in positions of the map."]
    if about is None:
        notes.append(
            "CONV, ATTENTION and BOTH are runs of the cells dw-conv, attention and both of `metamobile study "
            "ablate components`."
        )
    return notes


def grad_cam(request: Request) -> list[Reproduced]:
    """The figure of class activation maps: what is known of it, and what makes ours."""
    command = "metamobile explain emov2_5m.in1k PICTURES --method gradcam --out cam"
    ours = f"`{command}`" if has_verb("explain") else "`metamobile explain` is not part of this version yet"
    rows = [
        ["models compared", "not to be read", "any network"],
        ["layer", "not to be read", "-"],
        ["pictures", "not to be read", "PICTURES"],
        ["the figure", "class activation maps", ours],
    ]
    columns = ["of the figure", "paper's", "ours, or what is missing"]
    notes = ["A picture, without figures: nothing to hold ours against."]
    return [Reproduced("grad-cam", "Class activation maps", "EMOv2, figure", columns, rows, notes)]
