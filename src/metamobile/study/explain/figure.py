"""The figure: rows pictures, columns picture, map, attention, receptive field; or a column a network.

The whole picture is shown. What lies outside of the network's crop is pale and has no map. Under a map the
picture is grey, so that colour means the map alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Circle, Rectangle
from numpy.typing import NDArray
from PIL import Image

from metamobile.study.explain.explain import Explained, Explanation, Row
from metamobile.study.explain.frame import Frame

if TYPE_CHECKING:
    from metamobile.study.explain.attention import AttentionMap
    from metamobile.study.explain.receptive import ReceptiveField

COLOURS = "inferno"  # perceptually uniform, and dark where there is nothing
MARK = "#35e0ff"  # no colour of inferno
PANEL = 2.75  # inches
TITLE = 0.5
DRAWN = 600  # longer side of a picture in pixels: more is not seen
OPACITY = 0.62
LONGEST = 34  # letters in a line of a title


def draw(result: Explanation, pictures: Sequence[Image.Image]) -> Figure:
    """All of it; `pictures` in the order of the result's."""
    small = [shrink(picture) for picture in pictures]
    return draw_comparison(result, small) if result.compares else draw_details(result, small)


def draw_details(result: Explanation, pictures: Sequence[NDArray[Any]]) -> Figure:
    """For each network a row a picture, and its receptive field once."""
    cuts = max([1, *(len(last_maps(row)) for one in result.models for row in one.rows if row)])
    inside = not all(model.is_file for model in result.models)  # attention and receptive fields are shown
    columns, forms = 3 + cuts if inside else 2, [form(picture) for picture in pictures]
    heights = [[max(forms[0], field_form(model)), *forms[1:]] for model in result.models]
    figure, grid = make_grid([height for lines in heights for height in lines], columns)
    for index, model in enumerate(result.models):
        first = index * len(pictures)
        for line, (row, picture) in enumerate(zip(model.rows, pictures, strict=True), first):
            panels = [figure.add_subplot(grid[line, column]) for column in range(2 + cuts if inside else 2)]
            name = cut(Path(result.pictures[line - first]).name, LONGEST)
            if row is None:
                show_nothing(panels[0], picture, name)
                for panel in panels[1:]:
                    panel.axis("off")
                continue
            show_picture(panels[0], picture, row, f"{name}\n{in_words(row)}")
            panels[0].set_ylabel(cut(called(model), LONGEST - 4), fontsize=9)
            show_map(panels[1], picture, row, f"{result.method_name}, {layer_in_words(row)}")
            show_attention(panels[2:], picture, row, model.no_attention)
        if inside:
            show_field(figure.add_subplot(grid[first, columns - 1]), model)
    add_bar(
        figure,
        "maps from their lowest to their highest value; attention (mean of heads, unless told) from 0 to "
        "its highest;\nreceptive field as the square root of the gradient, from 0"
        if inside
        else "how far the answer falls where a patch is hidden,\nfrom not at all to the most",
    )
    return figure


def draw_comparison(result: Explanation, pictures: Sequence[NDArray[Any]]) -> Figure:
    """A row a picture, a column a network, and below the networks' receptive fields."""
    columns, lines = 1 + len(result.models), len(pictures) + 1
    last = max(field_form(model) for model in result.models)
    figure, grid = make_grid([*(form(picture) for picture in pictures), last or 1.0], columns)
    for line, picture in enumerate(pictures):
        title = cut(Path(result.pictures[line]).name, LONGEST)
        show_plain(figure.add_subplot(grid[line, 0]), picture, title)
        for column, model in enumerate(result.models, 1):
            axes, row = figure.add_subplot(grid[line, column]), model.rows[line]
            name = cut(called(model), LONGEST)
            if row is None:
                show_nothing(axes, picture, name)
            else:
                show_map(axes, picture, row, f"{name}\n{in_words(row)}")
    figure.add_subplot(grid[lines - 1, 0]).axis("off")
    for column, model in enumerate(result.models, 1):
        show_field(figure.add_subplot(grid[lines - 1, column]), model)
    add_bar(
        figure,
        f"{result.method_name}: each map from its lowest to its highest value;\n"
        "receptive field as the square root of the gradient, from 0"
        + (f"\nleft out: {', '.join(result.left_out)}" if result.left_out else ""),
    )
    return figure


def make_grid(forms: Sequence[float], columns: int) -> tuple[Figure, GridSpec]:
    """A line for each height to width of what is in it."""
    heights = [PANEL * min(max(one, 0.4), 1.4) + TITLE for one in forms]
    figure = Figure(figsize=(columns * PANEL, sum(heights) + 0.8), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.06, h_pad=0.06)
    return figure, figure.add_gridspec(len(heights), columns, height_ratios=heights)


def form(pixels: NDArray[Any]) -> float:
    """Height to width."""
    return pixels.shape[0] / pixels.shape[1]


def field_form(model: Explained) -> float:
    return form(model.field.field) if model.field else 0.0


def called(model: Explained) -> str:
    """The model's name; of a path its last part."""
    return Path(model.name).name


def layer_called(layer: str) -> str:
    """A backbone's layer as it is called in the network itself."""
    return cut(layer.removeprefix("backbone.network.").removeprefix("model."), LONGEST - 16)


def add_bar(figure: Figure, label: str) -> None:
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), COLOURS),
        ax=figure.axes,
        location="bottom",
        fraction=0.15 / figure.get_figheight(),
        pad=0.02,
        aspect=60,
    )
    bar.set_ticks([0, 1], labels=["low", "high"])
    bar.ax.tick_params(labelsize=9, length=0)
    bar.set_label(label, fontsize=9)


def shrink(picture: Image.Image) -> NDArray[Any]:
    """(H, W, 3), with a longer side of at most `DRAWN`."""
    small = picture.copy()
    small.thumbnail((DRAWN, DRAWN))
    return np.asarray(small)


def cut(text: str, most: int) -> str:
    """The end of a long text, which tells files apart."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def in_words(row: Row) -> str:
    target = row.target
    value = f"{target.score:.2f}" if target.score_name == "score" else f"{100 * target.score:.1f} %"
    return f"{cut(target.label, LONGEST - 8)} {value}"


def layer_in_words(row: Row) -> str:
    rows, columns = row.cam.shape
    return f"{rows}x{columns} positions\n{layer_called(row.layer)}"


def last_maps(row: Row) -> list[AttentionMap]:
    """The maps of the last layer that attends: one, or one for each of its cuts."""
    return [one for one in row.attention if one.layer == row.attention[-1].layer]


def prepare(axes: Axes, title: str, frame: Frame | None = None) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9, linespacing=1.3)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if frame is not None:
        axes.set(xlim=(0, frame.size[0]), ylim=(frame.size[1], 0))


def show_plain(axes: Axes, picture: NDArray[Any], title: str) -> None:
    axes.imshow(picture)
    prepare(axes, title)


def show_nothing(axes: Axes, picture: NDArray[Any], name: str) -> None:
    show_plain(axes, picture, f"{name}\nnothing found")


def under(axes: Axes, picture: NDArray[Any], frame: Frame, grey: bool) -> None:
    """The picture on its own pixels, pale outside of the crop."""
    shown = picture.astype(float) / 255
    if grey:
        shown = np.repeat((shown @ (0.299, 0.587, 0.114))[..., None], 3, 2)
    width, height = frame.size
    axes.imshow(shown, extent=(0, width, height, 0), interpolation="antialiased")
    if frame.is_whole:
        return
    x1, y1, x2, y2 = frame.seen or frame.box
    for x, y, across, down in (
        (0, 0, x1, height),
        (x2, 0, width - x2, height),
        (x1, 0, x2 - x1, y1),
        (x1, y2, x2 - x1, height - y2),
    ):
        axes.add_patch(Rectangle((x, y), across, down, facecolor="white", alpha=0.6, linewidth=0))
    axes.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="white", linewidth=1.2, clip_on=False)
    )


def over(axes: Axes, values: NDArray[Any], frame: Frame, smooth: bool) -> None:
    """A map (h, w) over what the network saw, from 0 to its highest."""
    x1, y1, x2, y2 = frame.box
    axes.imshow(
        values,
        extent=(x1, x2, y2, y1),
        cmap=COLOURS,
        vmin=0,
        vmax=float(values.max()) or 1.0,
        alpha=OPACITY,
        interpolation="bilinear" if smooth else "nearest",
    )


def mark_point(axes: Axes, row: Row) -> None:
    if row.point is None:
        return
    axes.plot(*row.point, "+", color="black", markersize=13, markeredgewidth=3.4)
    axes.plot(*row.point, "+", color=MARK, markersize=12, markeredgewidth=1.6)


def mark_query(axes: Axes, row: Row, one: AttentionMap) -> None:
    """An outline of what the query's position stands for."""
    down, across = (np.flatnonzero(pixels == at) for pixels, at in zip(one.covers, one.query, strict=True))
    (left, top), (right, bottom) = (
        row.frame.to_picture(across[0], down[0]),
        row.frame.to_picture(across[-1] + 1, down[-1] + 1),
    )
    axes.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=MARK, linewidth=1.4)
    )


def mark_object(axes: Axes, row: Row) -> None:
    if row.target.box is None:
        return
    x1, y1, x2, y2 = row.target.box
    (left, top), (right, bottom) = row.frame.to_picture(x1, y1), row.frame.to_picture(x2, y2)
    for colour, width in (("black", 3.0), (MARK, 1.4)):
        box = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, lw=width)
        axes.add_patch(box)


def mark_region(axes: Axes, row: Row) -> None:
    if row.target.mask is None:
        return
    x1, y1, x2, y2 = row.frame.box
    mask = row.target.mask
    across, down = (x2 - x1) / mask.shape[1], (y2 - y1) / mask.shape[0]
    x, y = x1 + (np.arange(mask.shape[1]) + 0.5) * across, y1 + (np.arange(mask.shape[0]) + 0.5) * down
    if mask.any() and not mask.all():
        axes.contour(x, y, mask.astype(float), [0.5], colors=[MARK], linewidths=1.2)


def show_picture(axes: Axes, picture: NDArray[Any], row: Row, title: str) -> None:
    under(axes, picture, row.frame, grey=False)
    mark_region(axes, row)
    mark_object(axes, row)
    mark_point(axes, row)
    prepare(axes, title, row.frame)


def show_map(axes: Axes, picture: NDArray[Any], row: Row, title: str) -> None:
    under(axes, picture, row.frame, grey=True)
    over(axes, row.heat, row.frame, smooth=True)
    mark_object(axes, row)
    prepare(axes, title, row.frame)
    if not row.cam.any():
        note(axes, "empty")


def show_attention(panels: Sequence[Axes], picture: NDArray[Any], row: Row, reason: str) -> None:
    """One panel a cut; what is missing is said."""
    if row.unseen:
        reason = "the point lies outside of\nwhat the network saw"
    maps = last_maps(row) if row.attention else []
    for axes, one in zip(panels, maps, strict=False):
        under(axes, picture, row.frame, grey=True)
        over(axes, one.pixels, row.frame, smooth=False)
        mark_query(axes, row, one)
        mark_point(axes, row)
        which = "" if one.head is None else f", head {one.head}"
        prepare(
            axes,
            f"Attention, {one.cut} {one.window[0]}x{one.window[1]}{which}\n"
            f"highest {one.weights.max():.2f}, padded {100 * one.padded:.0f} %",
            row.frame,
        )
    for axes in panels[len(maps) :]:
        axes.axis("off")
        if not maps and axes is panels[0]:
            note(axes, (reason or "no window attention here").replace(" in this", "\nin this"))


def note(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9, color="#555555")


def show_field(axes: Axes, model: Explained) -> None:
    """At the network's input, the square root of the mean gradient, with the circle that holds 95 % of it."""
    field: ReceptiveField | None = model.field
    if field is None:
        axes.axis("off")
        note(axes, model.no_field)
        return
    height, width = field.field.shape
    axes.imshow(
        np.sqrt(field.field), cmap=COLOURS, vmin=0, extent=(0, width, height, 0), interpolation="nearest"
    )
    axes.add_patch(Circle(field.centre, field.radius, fill=False, edgecolor=MARK, linewidth=1.4))
    prepare(
        axes,
        f"Receptive field, {layer_called(field.layer)}\n"
        f"95 %: radius {field.radius:.0f} px, {100 * field.share:.0f} % of {width}x{height} px",
    )
    axes.set(xlim=(0, width), ylim=(height, 0))
