"""Line charts as geometry: numbers in, SVG path data and tick positions out. The template draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# The drawing's own units; the page scales it to the width of its column.
WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 28

Point = tuple[float, float]


@dataclass
class Line:
    """One named curve; `style` is a class of the style sheet, `show` a value in a tip."""

    name: str
    style: str
    points: Sequence[Point]
    show: str = "{:.3g}"
    path: str = ""
    tip: str = ""

    @property
    def area(self) -> float | None:
        """The mean height of its points, None without any; of precision, the average precision."""
        return sum(y for _, y in self.points) / len(self.points) if self.points else None


@dataclass
class Chart:
    """A drawn chart: everything is in drawing units, texts are ready to print."""

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    columns: list[dict] = field(default_factory=list)  # one strip an epoch: where it lies, its dots, its tip
    mark: dict | None = None  # the chosen epoch's dot
    thin: list[Line] = field(default_factory=list)  # behind the others, named in their tips only
    over: str = "epochs"  # what lies along the x axis
    axes: tuple[str, str] | None = None  # titles of the axes, where the chart's own does not say them
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that span [low, high]; the outer two enclose it."""
    if not high > low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    low: float | None = None,
    high: float | None = None,
    best_epoch: int | None = None,
) -> Chart | None:
    """Draw `lines` over epochs. None where no line has two finite values.

    `low`, `high` are limits that the value axis never passes (a percentage stays under 100).
    `best_epoch` puts a dot on the first line.
    """
    lines = [_finite(line) for line in lines]
    lines = [line for line in lines if line.points]
    if max((len(line.points) for line in lines), default=0) < 2:
        return None
    values = [y for line in lines for _, y in line.points]
    y_values = ticks(min(values), max(values))
    y_values = [y for y in y_values if (low is None or y >= low) and (high is None or y <= high)]
    bottom_value, top_value = min(y_values[0], min(values)), max(y_values[-1], max(values))
    last_epoch = max(x for line in lines for x, _ in line.points)
    first_epoch = min(x for line in lines for x, _ in line.points)

    def at(point: Point) -> Point:
        x = LEFT + (point[0] - first_epoch) / (last_epoch - first_epoch) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - bottom_value) / (top_value - bottom_value) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    for line in lines:
        line.path = "M" + "L".join(f"{x} {y}" for x, y in map(at, line.points))
    whole = [x for x in ticks(first_epoch, last_epoch) if first_epoch <= x <= last_epoch and x == int(x)]
    chart = Chart(
        title=title,
        lines=lines,
        x_ticks=[(at((x, bottom_value))[0], f"{x:g}") for x in whole],
        y_ticks=[(at((first_epoch, y))[1], _short(y)) for y in y_values],
    )
    chart.columns = _columns(lines, at)
    best = next(((x, y) for x, y in lines[0].points if x == best_epoch), None)
    if best:
        x, y = at(best)
        chart.mark = {"x": x, "y": y, "style": lines[0].style}
    return chart


def recall_chart(title: str, means: Sequence[Line], classes: Sequence[Line]) -> Chart | None:
    """Draw precision over recall, both from 0 to 1: `means` bold, `classes` as thin lines behind them.

    None where no line has two finite values.
    """
    means, classes = ([_finite(line) for line in lines] for lines in (means, classes))
    means, classes = ([line for line in lines if len(line.points) > 1] for lines in (means, classes))
    if not means and not classes:
        return None
    height = 330  # square enough for two axes of the same length
    left, bottom = LEFT + 14, height - BOTTOM - 14  # room for the axes' titles

    def at(point: Point) -> Point:
        x, y = (min(1.0, max(0.0, value)) for value in point)
        x, y = left + x * (WIDTH - RIGHT - left), bottom - y * (bottom - TOP)
        return round(x, 1), round(y, 1)

    for line in (*means, *classes):
        line.path = "M" + "L".join(f"{x} {y}" for x, y in map(at, line.points))
        line.tip = f"{line.name}\naverage precision {100 * (line.area or 0.0):.1f} %"
    shares = [i / 5 for i in range(6)]
    return Chart(
        title=title,
        lines=means,
        x_ticks=[(at((share, 0))[0], f"{share:g}") for share in shares],
        y_ticks=[(at((0, share))[1], f"{share:g}") for share in shares],
        thin=classes,
        over="recall",
        axes=("recall", "precision"),
        height=height,
        left=left,
        bottom=bottom,
    )


def _finite(line: Line) -> Line:
    points = [(x, y) for x, y in line.points if y is not None and math.isfinite(y)]
    return Line(line.name, line.style, points, line.show)


def _short(value: float) -> str:
    """A tick's text: 0.0012 -> 1.2e-3, which stays readable in 40 units of width."""
    if value and abs(value) < 0.01:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def _columns(lines: Sequence[Line], at: Callable[[Point], Point]) -> list[dict]:
    """One strip an epoch, with what each line says there."""
    epochs = sorted({x for line in lines for x, _ in line.points})
    centres = [at((x, 0.0))[0] for x in epochs]
    columns = []
    for i, epoch in enumerate(epochs):
        left = (centres[i - 1] + centres[i]) / 2 if i else LEFT
        right = (centres[i] + centres[i + 1]) / 2 if i + 1 < len(epochs) else WIDTH - RIGHT
        dots, texts = [], [f"epoch {epoch:g}"]
        for line in lines:
            value = next((y for x, y in line.points if x == epoch), None)
            if value is None:
                continue
            x, y = at((epoch, value))
            dots.append({"x": x, "y": y, "style": line.style})
            texts.append(f"{line.name} {line.show.format(value)}")
        columns.append(
            {
                "x": round(left, 1),
                "width": round(right - left, 1),
                "centre": centres[i],
                "dots": dots,
                "tip": "\n".join(texts),
            }
        )
    return columns
