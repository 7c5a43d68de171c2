"""The figure and the tables of `metamobile bench`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from metamobile.deploy.bench import BUSY, Bench, BenchRow, Ratio, Times

if TYPE_CHECKING:
    from metamobile.show import Table

WALL, CPU = "#9ecae1", "#d55e00"
LONGEST = 34  # characters of a name in the figure


def bench_tables(found: Bench) -> Iterator[Table]:
    """Times; then what else a model takes. "-" is not measured, or not known."""
    if not found.rows:
        return
    batch = found.rows[0].batch_size
    pictures = "one picture" if batch == 1 else f"{batch} pictures"
    yield (
        f"Milliseconds for {pictures}: medians, p10 to p90; ratios to the first, lowest to highest round",
        [
            "model",
            ">wall ms",
            ">p10-p90",
            ">ratio",
            ">rounds",
            ">processor ms",
            ">p10-p90",
            ">ratio",
            ">rounds",
            ">runs",
        ],
        [
            [
                row.model,
                *_times(row.wall_ms),
                *_ratio(row.ratio),
                *_times(row.cpu_ms),
                *_ratio(row.cpu_ratio),
                f"{row.runs:,}",
            ]
            for row in found.rows
        ],
    )
    yield (
        "What ran; the cold start is imports, opening and the first answer",
        [
            "model",
            "runtime",
            "precision",
            "weights",
            ">px",
            ">batch",
            ">threads",
            ">MB memory, peak",
            ">cold start s",
            ">MB file",
        ],
        [_what(row) for row in found.rows],
    )


def machine_line(found: Bench) -> str:
    """The machine in one line."""
    machine = found.machine
    cores = f"{machine['cores']} cores, " if machine["cores"] else ""
    virtual = " (virtual machine)" if machine["virtual"] else ""
    bound = "".join(f", bound to processor {one}" for one in found.settings["processors"])
    return (
        f"{machine['processor']}{virtual}, {cores}{machine['processors']} processors{bound}, "
        f"{machine['memory'] / 2**30:.0f} GB, {machine['system']}, Python {machine['python']}, "
        f"load {machine['load'][0]:.1f}"
    )


def _times(times: Times | None) -> list[str]:
    if times is None:
        return ["-", "-"]
    return [f"{times.median:.2f}", f"{times.p10:.2f}-{times.p90:.2f}"]


def _ratio(ratio: Ratio | None) -> list[str]:
    return ["-", "-"] if ratio is None else [f"{ratio.median:.2f}", f"{ratio.low:.2f}-{ratio.high:.2f}"]


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:,.1f}"


def runtime_text(row: BenchRow) -> str:
    """With its version; of PyTorch, that the network is in its deployed form."""
    versions = next(iter(row.versions.values()), "-")
    return f"{row.runtime} {versions}" + (", deployed form" if row.runtime == "PyTorch" else "")


def _pixels(size: Sequence[int]) -> str:
    height, width = size
    return f"{height}" if height == width else f"{height}x{width}"


def _what(row: BenchRow) -> list[str]:
    return [
        row.model,
        runtime_text(row),
        row.precision,
        row.weights,
        _pixels(row.size),
        f"{row.batch_size}",
        f"{row.threads}",
        _megabytes(row.memory_bytes),
        f"{row.cold_start:.2f}",
        _megabytes(row.file_bytes),
    ]


def draw(found: Bench) -> Figure:
    """A bar for each model: the median by the wall's clock with p10 and p90, processor time as a mark."""
    rows, places = found.rows, list(range(len(found.rows)))
    figure = Figure(figsize=(10, 2.0 + 0.55 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.barh(places, [row.wall_ms.median for row in rows], color=WALL, height=0.6, label="wall, median")
    ends = [row.wall_ms.p10 for row in rows], [row.wall_ms.p90 for row in rows]
    axes.hlines(places, *ends, color="black", linewidth=1.2, label="wall, p10 to p90")
    timed = [(row.cpu_ms.median, place) for place, row in zip(places, rows, strict=True) if row.cpu_ms]
    if timed:
        axes.plot(*zip(*timed, strict=True), "D", color=CPU, markersize=5, label="processor time, median")
    axes.set_yticks(places, [f"{_short(row.model)}\n{_under(row)}" for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(places, [_beside(row, place > 0) for place, row in enumerate(rows)], fontsize=9)
    beside.tick_params(length=0)
    beside.spines["right"].set_visible(False)
    axes.set_xlim(0, 1.02 * max([*ends[1], *(value for value, _ in timed)]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(
        f"milliseconds for {_count(rows[0].batch_size, 'picture')}, {_count(rows[0].threads, 'thread')}"
    )
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    busy = max(found.machine["others_before"], found.machine["others"])
    others = f"; other programs used {busy:.1f} of them" if busy > BUSY else ""
    figure.suptitle(
        f"{found.machine['processor']}, {_count(found.machine['processors'], 'processor')}{others}",
        fontsize=10,
    )
    return figure


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _beside(row: BenchRow, compared: bool) -> str:
    lines = [f"wall {row.wall_ms.median:.1f} ms" + (f", {row.ratio.median:.2f}x" if compared else "")]
    if row.cpu_ms is not None:
        ratio = f", {row.cpu_ratio.median:.2f}x" if compared and row.cpu_ratio else ""
        lines.append(f"processor {row.cpu_ms.median:.1f} ms{ratio}")
    return "\n".join(lines)


def _under(row: BenchRow) -> str:
    random = ", random weights" if row.weights == "random" else ""
    return f"{row.runtime}, {row.precision}, {_pixels(row.size)} px{random}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else "..." + name[3 - LONGEST :]
