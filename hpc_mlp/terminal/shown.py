"""What a notebook and a Python prompt show of a result: the tables of the commands, as HTML or as
text, and its records as a DataFrame."""

from __future__ import annotations

import io
from collections.abc import Iterable
from html import escape
from typing import Any
from urllib.parse import quote

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from hpc_mlp.errors import UserError, printable
from hpc_mlp.terminal.console import Console

# Jupyter's style sheet decides on the rest, in light and in dark.
_CELL = "text-align:{side};white-space:pre"


class Showable:
    """`parts`: what is shown, tables and lines of text; `records`: the same for programs, flat."""

    def parts(self) -> Iterable[RenderableType]:
        raise NotImplementedError

    def records(self) -> list[dict[str, Any]]:
        """One dictionary a row, all with the same keys."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """The tables alone; the lines where there are none."""
        parts = list(self.parts())
        return as_text([part for part in parts if isinstance(part, Table)] or parts)

    def __str__(self) -> str:
        return as_text(self.parts())

    def _repr_html_(self) -> str:
        return as_html(self.parts())

    def show(self, console: Console) -> None:
        """All of it, as a command does."""
        show(self.parts(), console)

    def to_pandas(self) -> Any:
        """`records` as a pandas.DataFrame. UserError where pandas is not installed."""
        try:
            import pandas
        except ModuleNotFoundError:
            raise UserError(
                "to_pandas needs pandas: pip install 'hpc-mlp[pandas]'. Without it, records() has "
                "the same as dictionaries."
            ) from None
        return pandas.DataFrame(self.records())


def as_text(parts: Iterable[RenderableType]) -> str:
    """As wide as the terminal, without colour."""
    buffer = io.StringIO()
    show(parts, text_console(buffer))
    return buffer.getvalue().rstrip("\n")


def show(parts: Iterable[RenderableType], console: Console) -> None:
    for part in parts:
        # A table fits the width, a line need not.
        console.print(part, soft_wrap=isinstance(part, Text))


def text_console(buffer: io.StringIO) -> Console:
    return Console(file=buffer, force_terminal=True, color_system=None)


def as_html(parts: Iterable[RenderableType]) -> str:
    """Foreign text in it is shown, and never acts."""
    return "\n".join(map(_html, parts))


def _html(part: RenderableType) -> str:
    if isinstance(part, Group):
        return as_html(part.renderables)
    if isinstance(part, Table):
        return _table(part)
    return f'<p style="margin:.3em 0">{_inline(part)}</p>'


def _table(table: Table) -> str:
    columns = [(column.justify, list(column.cells)) for column in table.columns]
    head = "".join(
        f'<th style="{_CELL.format(side=column.justify)}">{_inline(column.header)}</th>'
        for column in table.columns
    )
    body = []
    for i, row in enumerate(table.rows):
        cells = "".join(
            f'<td style="{_CELL.format(side=side)}">{_inline(cells[i])}</td>'
            for side, cells in columns
        )
        style = row.style if isinstance(row.style, Style) else Style.parse(row.style or "")
        body.append(f'<tr style="{_css(style)}">{cells}</tr>')
    title = f"<caption>{_inline(table.title)}</caption>" if table.title else ""
    lines = [f"<table>{title}<thead><tr>{head}</tr></thead><tbody>", *body, "</tbody></table>"]
    return "\n".join(lines)


def _inline(part: RenderableType) -> str:
    if isinstance(part, ProgressBar):
        return f'<progress value="{part.completed:.3f}" max="{part.total or 1}"></progress>'
    text = part if isinstance(part, Text) else Text(str(part))
    shown = escape(printable(text.plain, keep="\n")).replace("\n", "<br>")
    style = text.style if isinstance(text.style, Style) else Style.parse(text.style)
    if style.link:
        return f'<a href="{escape(quote(style.link))}">{shown}</a>'
    css = _css(style)
    return f'<span style="{css}">{shown}</span>' if css else shown


def _css(style: Style) -> str:
    return style.get_html_style() + ("; opacity: .65" if style.dim else "")
