"""explain.html: the figure and what it shows in tables, one page that needs no network."""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from metamobile.study.explain.explain import Explained, Explanation, Row
from metamobile.study.explain.methods import OCCLUSION

if TYPE_CHECKING:
    from metamobile.show import Table

HERE = Path(__file__).parent


def render(result: Explanation, image: bytes) -> str:
    """The page's HTML, with `image`, a PNG, inside."""
    names = ", ".join(model.name for model in result.models)
    view = {
        "title": f"{result.method_name}: {names}",
        "image": base64.b64encode(image).decode(),
        "alt": f"{result.method_name} of {names} on {len(result.pictures)} pictures",
        "method": result.method_name,
        "hides": result.method == OCCLUSION,
        "notes": [*result.notes, *result.failures],
        "tables": [
            (title, [(name.lstrip(">"), name.startswith(">")) for name in columns], rows)
            for title, columns, rows in explain_tables(result)
        ],
    }
    return _template().render(view)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html")


def explain_tables(result: Explanation) -> Iterator[Table]:
    """What is shown; the attention of each layer; the receptive fields. Empty tables are left out."""
    cells = [map_cells(model, row) for model in result.models for row in model.rows if row]
    columns = ["model", "picture", "asked", ">answer", "layer", ">map", ">point x,y", ">shuffled"]
    title = result.method_name
    if result.method == OCCLUSION:
        columns, cells = columns[:-1], [row[:-1] for row in cells]
    else:
        title += "; the last column is the rank correlation with maps of shuffled weights"
    yield title, columns, cells
    attention = [line for model in result.models for row in model.rows if row
                 for line in attention_cells(model, row)]  # fmt: skip
    if attention:
        columns = ["model", "picture", "layer", "windows", "heads", ">row,column", ">highest", ">padded"]
        yield "Attention of the point, in its window", columns, attention
    fields = [field_cells(model) for model in result.models if model.field]
    if fields:
        columns = ["model", "layer", ">input", ">pictures", ">radius of 95 %", ">share of pixels with 95 %"]
        yield "Effective receptive field of the middle of the map", columns, fields


def map_cells(model: Explained, row: Row) -> list[str]:
    target = row.target
    box = "" if target.box is None else f" at {','.join(f'{value:.0f}' for value in target.box)}"
    value = f"{100 * target.score:.1f} %" if target.score_name != "score" else f"{target.score:.2f}"
    return [
        model.name,
        Path(row.picture).name,
        f"{target.label} ({target.index}){box}",
        f"{target.score_name} {value}",
        row.layer,
        "x".join(map(str, row.cam.shape)),
        "-" if row.point is None else f"{row.point[0]:.0f},{row.point[1]:.0f}",
        "-" if row.correlation is None else f"{row.correlation:+.2f}",
    ]


def attention_cells(model: Explained, row: Row) -> Iterator[list[str]]:
    for one in row.attention:
        yield [
            model.name,
            Path(row.picture).name,
            one.layer,
            f"{one.cut} {one.window[0]}x{one.window[1]}",
            "mean" if one.head is None else str(one.head),
            f"{one.query[0]},{one.query[1]}",
            f"{one.weights.max():.3f}",
            f"{100 * one.padded:.1f} %",
        ]


def field_cells(model: Explained) -> list[str]:
    field = model.field
    assert field is not None
    height, width = field.field.shape
    size = [
        f"{width}x{height} px",
        f"{field.pictures}",
        f"{field.radius:.1f} px",
        f"{100 * field.share:.1f} %",
    ]
    return [model.name, field.layer, *size]
