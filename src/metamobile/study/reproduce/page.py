"""All tables as one HTML page that needs no network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from metamobile.files import write_text
from metamobile.study.reproduce.request import Reproduced
from metamobile.weights.card import current_versions

WORDS = 24  # letters from which a cell without a number may break lines


def write_page(path: str | Path, tables: Sequence[Reproduced]) -> Path:
    write_text(path, render(tables))
    return Path(path)


def render(tables: Sequence[Reproduced]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    view = [view_of(index, table) for index, table in enumerate(tables)]
    links = {item["table"].name: item["anchor"] for item in reversed(view)}  # to the first of each name
    return environment.get_template("page.html").render(
        tables=view,
        links=[(anchor, name) for name, anchor in reversed(links.items())],
        versions=current_versions(),
        today=date.today().isoformat(),
    )


def view_of(index: int, table: Reproduced) -> dict[str, Any]:
    """What the template shows: texts with the classes of the style sheet."""
    rows = [
        [(cell_html(cell), cell_class(cell, column)) for cell, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]
    columns = [(column.lstrip(">"), column_class(column)) for column in table.columns]
    notes = [cell_html(note) for note in table.notes]
    return {"anchor": f"table-{index}", "table": table, "columns": columns, "rows": rows, "notes": notes}


def is_paper(column: str) -> bool:
    return column.endswith("paper's")


def column_class(column: str) -> str:
    return " ".join(["paper"] * is_paper(column) + ["number"] * column.startswith(">"))


def cell_class(cell: str, column: str) -> str:
    wide = ["words"] * (len(cell) > WORDS)
    missing = ["missing"] * ("missing: `" in cell or cell.startswith(("not ", "no ")))
    return " ".join([column_class(column), *wide, *missing]).strip()


def cell_html(cell: str) -> Markup:
    """Escaped; `commands` in a face of their own, whose --options are not broken between their dashes."""
    code = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(cell)))
    return Markup(re.sub(r"(?<= )--[a-z-]+", r'<span class="flag">\g<0></span>', code))
