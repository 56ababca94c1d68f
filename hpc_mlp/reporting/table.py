"""The table for people, as plain text and as Markdown. Plain text fits the width of the terminal,
in a pipe COLUMNS or 80: columns that matter least go first and are named under the table, nothing
is cut off."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from hpc_mlp.reporting.choice import choose_runs
from hpc_mlp.reporting.columns import (
    Column,
    column_of,
    compares,
    comparison_cells,
    default_columns,
    legend,
)
from hpc_mlp.reporting.summary import Summary, summarise
from hpc_mlp.terminal import output
from hpc_mlp.terminal.console import Console
from hpc_mlp.terminal.text import markdown

# Where the terminal is narrow, these go, in this order.
EXPENDABLE = ["images_per_second", "parameters", "seconds", "best_epoch"]
EXPENDABLE += ["recall", "precision", "f1"]
ASCII = output.ASCII | str.maketrans({"±": "+-", "…": "..", "→": "->"})
# Titles on one line; on several; and `± sd` on a line of its own.
Shape = Literal["wide", "narrow", "folded"]
# Between two columns: a space, and the line that is not drawn.
_GAP = 2


def print_table(root: Path, console: Console, *others: Path) -> None:
    """Summarise the runs below `root`, and `others`, and print the table with its sentences."""
    print_summary(summarise(choose_runs([root, *others], None, "table").runs), console)


def print_summary(summary: Summary, console: Console, columns: Sequence[str] | None = None) -> None:
    safe = writable(console)
    names, shape, dropped = fit(summary, console, list(columns) if columns else None)
    table = rich_table(summary, names, shape, safe)
    against = None if compares(columns) else comparison_table(summary, safe, console.width)
    asides = legend(summary, names)
    if dropped:
        titles = ", ".join(column_of(name, summary).title for name in reversed(dropped))
        widen = "widen the terminal" if console.is_terminal else "set COLUMNS"
        asides.append(f"No room here for {titles}: {widen}, or choose --columns.")
    console.print(table, *(("", against) if against else ()))
    for style, lines in (("", summary.sentences), ("dim", asides)):
        for i, line in enumerate(lines):
            above = [""] if i == 0 else []
            console.print(*above, Text(safe(line), style), sep="\n")


def fit(
    summary: Summary, console: Console, columns: list[str] | None
) -> tuple[list[str], Shape, list[str]]:
    """Columns that fit the width, how they are laid out, and the columns left out. Columns that the
    user chose all stay."""
    names = columns or default_columns(summary)
    expendable = [name for name in EXPENDABLE if columns is None]
    attempts: list[tuple[int, Shape]] = [(0, "wide")]
    attempts += [(k, "narrow") for k in range(min(3, len(expendable)) + 1)]
    attempts += [(k, "folded") for k in range(len(expendable) + 1)]
    shown = {name: column_of(name, summary) for name in names}
    cells = {name: {column.cell(row) for row in summary.lines} for name, column in shown.items()}

    def width(name: str, shape: Shape) -> int:
        texts = [_title(shown[name], shape), *(_laid_out(name, c, shape) for c in cells[name])]
        return max(cell_len(line) for text in texts for line in text.splitlines())

    for count, shape in attempts:
        dropped = expendable[:count]
        kept = [name for name in names if name not in dropped]
        if sum(width(name, shape) + _GAP for name in kept) - _GAP <= console.width:
            break
    return kept, shape, dropped


def _title(column: Column, shape: Shape) -> str:
    """A configuration key is broken after its dots."""
    return column.title if shape == "wide" else re.sub(r" |(?<=\.)(?=\w)", "\n", column.title)


def _laid_out(name: str, cell: str, shape: Shape) -> str:
    if name == "status":
        return cell.replace(", ", ",\n")
    return cell.replace(" ± ", "\n± ") if shape == "folded" else cell


def rich_table(
    summary: Summary, names: Sequence[str], shape: Shape, safe: Callable[[str], str] = str
) -> Table:
    table, columns = plain_table(), {name: column_of(name, summary) for name in names}
    for column in columns.values():
        side: Literal["left", "right"] = "left" if column.left else "right"
        title, fold = _title(column, shape), shape == "folded"
        table.add_column(title, justify=side, no_wrap=not fold, overflow="fold")
    for row in summary.lines:
        style = "bold" if row.best else "" if row.n else "dim"
        cells = (_laid_out(name, column.cell(row), shape) for name, column in columns.items())
        table.add_row(*(Text(safe(cell)) for cell in cells), style=style)
    return table


def comparison_table(
    summary: Summary, safe: Callable[[str], str], width: int | None = None
) -> Table | None:
    """Differences of test accuracy from the reference; None where nothing was compared. Where they
    are wider than `width`, titles are broken, then folds and seeds go: the table above has them."""
    cells = comparison_cells(summary)
    if not cells:
        return None
    titles, *rows = cells
    if width is not None and _width(titles, rows) > width:
        titles = [re.sub(" (?!%)", "\n", title) for title in titles]
        while titles[-1] in ("folds", "seeds") and _width(titles, rows) > width:
            titles, rows = titles[:-1], [row[:-1] for row in rows]
    table = plain_table()
    for i, title in enumerate(titles):
        table.add_column(safe(title), justify="left" if i == 0 else "right", overflow="fold")
    for row, c in zip(rows, summary.comparisons, strict=True):
        table.add_row(*(Text(safe(cell)) for cell in row), style="bold" if c.shown else "")
    return table


def _width(titles: list[str], rows: list[list[str]]) -> int:
    columns = zip(titles, *rows, strict=True)
    widths = [max(cell_len(line) for text in c for line in text.split("\n")) for c in columns]
    return sum(widths) + _GAP * (len(widths) - 1)


def plain_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)


def writable(console: Console) -> Callable[[str], str]:
    """Turns text into what the output can encode."""
    if console.encoding.lower().startswith("utf"):
        return str
    code = console.encoding
    return lambda text: text.translate(ASCII).encode(code, "replace").decode(code)


def as_markdown(summary: Summary, columns: Sequence[str] | None = None) -> str:
    """The table as a person reads it, and the sentences under it."""
    names = list(columns or default_columns(summary))
    shown = [column_of(name, summary) for name in names]
    lines = _markdown_head([column.title for column in shown], [column.left for column in shown])
    for row in summary.lines:
        cells = [markdown(column.cell(row)) for column in shown]
        lines.append(_markdown_line(f"**{cell}**" if row.best and cell else cell for cell in cells))
    titles, *against = ([] if compares(columns) else comparison_cells(summary)) or [[]]
    if titles:
        lines += ["", *_markdown_head(titles, [True])]
        lines += [_markdown_line(map(markdown, cells)) for cells in against]
    notes = [*summary.sentences, *legend(summary, names)]
    return "\n".join([*lines, *("\n" + markdown(note) for note in notes)])


def _markdown_head(titles: Sequence[str], left: Sequence[bool]) -> list[str]:
    sides = [*left, *[False] * (len(titles) - len(left))]
    rule = "|" + "|".join(":---" if side else "---:" for side in sides) + "|"
    return [_markdown_line(map(markdown, titles)), rule]


def _markdown_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
