"""The table for people, in the terminal and as Markdown. In the terminal it fits the width it is
given: columns that matter least go first and are named under the table, nothing is cut off. Piped,
it is as wide as it needs to be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

from hpc_mlp.reporting.columns import column_of, compares, comparison_cells, default_columns, legend
from hpc_mlp.reporting.summary import Summary, summarise
from hpc_mlp.runs.folder import list_runs
from hpc_mlp.terminal.console import Console
from hpc_mlp.terminal.text import markdown

# Where the terminal is narrow, these go, in this order.
EXPENDABLE = ["images_per_second", "parameters", "seconds", "best_epoch"]
EXPENDABLE += ["recall", "precision", "f1"]
ASCII = str.maketrans({"±": "+-", "…": "..", "★": "*", "−": "-", "–": "-"})
# Columns of an endless line.
PLENTY = 10_000


def print_table(root: Path, console: Console) -> None:
    """Summarise the runs below `root` and print the table with its sentences."""
    print_summary(summarise(list_runs(root)), console)


def print_summary(summary: Summary, console: Console, columns: Sequence[str] | None = None) -> None:
    safe = writable(console)
    names, fold, dropped = fit(summary, console, list(columns) if columns else None)
    table = rich_table(summary, names, fold, not console.is_terminal, safe)
    against = None if compares(columns) else comparison_table(summary, safe)
    asides = legend(summary, names)
    if dropped:
        titles = ", ".join(column_of(name, summary).title for name in reversed(dropped))
        asides.append(f"No room here for {titles}: widen the terminal, or choose --columns.")
    terminal, width = console.is_terminal, console.width
    console.width = width if terminal else max(width, _width(table, console))
    console.print(table, *(("", against) if against else ()))
    console.width = width
    for style, lines in (("", summary.sentences), ("dim", asides)):
        # Piped, a line is a line: somebody greps it.
        for i, line in enumerate(lines):
            above = [""] if i == 0 else []
            console.print(*above, Text(safe(line), style), sep="\n", soft_wrap=not terminal)


def fit(
    summary: Summary, console: Console, columns: list[str] | None
) -> tuple[list[str], bool, list[str]]:
    """Columns that fit the width, whether `± sd` goes on a line of its own, and the columns left
    out. Columns that the user chose all stay."""
    names = columns or default_columns(summary)
    expendable = [name for name in EXPENDABLE if columns is None]
    attempts = [(k, False) for k in range(min(3, len(expendable)) + 1)]
    attempts += [(k, True) for k in range(len(expendable) + 1)]
    for count, fold in attempts:
        dropped = expendable[:count]
        kept = [name for name in names if name not in dropped]
        table = rich_table(summary, kept, fold, False)
        if not console.is_terminal or _width(table, console) <= console.width:
            break
    return kept, fold, dropped


def rich_table(
    summary: Summary, names: Sequence[str], fold: bool, wide: bool, safe: Callable[[str], str] = str
) -> Table:
    table, columns = _table(), [column_of(name, summary) for name in names]
    for column in columns:
        title = column.title if wide else column.title.replace(" ", "\n")
        side: Literal["left", "right"] = "left" if column.left else "right"
        table.add_column(title, justify=side, no_wrap=not fold, overflow="fold")
    for row in summary.rows:
        style = "bold" if row.best else "" if row.n else "dim"
        cells = [safe(column.cell(row)) for column in columns]
        if "status" in names:
            at = names.index("status")
            cells[at] = cells[at].replace(", ", ",\n")
        if fold:
            cells = [cell.replace(safe(" ± "), safe("\n± ")) for cell in cells]
        table.add_row(*map(Text, cells), style=style)
    return table


def comparison_table(summary: Summary, safe: Callable[[str], str]) -> Table | None:
    """Differences of test accuracy from the reference; None where nothing was compared."""
    cells = comparison_cells(summary)
    if not cells:
        return None
    table = _table()
    for i, title in enumerate(cells[0]):
        table.add_column(safe(title), justify="left" if i == 0 else "right", overflow="fold")
    for row, c in zip(cells[1:], summary.comparisons, strict=True):
        table.add_row(*(Text(safe(cell)) for cell in row), style="bold" if c.shown else "")
    return table


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)


def _width(table: Table, console: Console) -> int:
    return console.measure(table, options=console.options.update(max_width=PLENTY)).maximum


def writable(console: Console) -> Callable[[str], str]:
    """Turns text into what the output can encode."""
    if console.encoding.lower().startswith("utf"):
        return str
    return lambda text: text.translate(ASCII).encode("ascii", "replace").decode()


def as_markdown(summary: Summary, columns: Sequence[str] | None = None) -> str:
    """The table as a person reads it, and the sentences under it."""
    names = list(columns or default_columns(summary))
    shown = [column_of(name, summary) for name in names]
    lines = _markdown_head([column.title for column in shown], [column.left for column in shown])
    for row in summary.rows:
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
