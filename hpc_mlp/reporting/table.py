"""The table for people, in the terminal and as Markdown. In the terminal it fits the width it is given:
columns that matter least go first and are named under the table, nothing is cut off. Piped, it is as wide
as it needs to be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from hpc_mlp.errors import printable
from hpc_mlp.reporting.cautions import majority
from hpc_mlp.reporting.compare import Comparison
from hpc_mlp.reporting.rows import Row, show
from hpc_mlp.reporting.sentences import method, p_text, points
from hpc_mlp.reporting.summary import Summary, read_runs, summarise
from hpc_mlp.terminal.console import Console
from hpc_mlp.terminal.text import markdown, spans

DEFAULT = (
    "variant", "seeds", "n", "parameters", "best_epoch", "val_loss", "test_accuracy", "precision", "recall",
    "f1", "images_per_second", "seconds", "status",
)  # fmt: skip
# Where the terminal is narrow, these go, in this order.
EXPENDABLE = ("images_per_second", "parameters", "seconds", "best_epoch", "recall", "precision", "f1")
ASCII = str.maketrans({"±": "+-", "…": "..", "★": "*", "−": "-", "–": "-"})
PLENTY = 10_000  # columns of an endless line
DRAWN = (
    "How often ★ wins: 10,000 draws of the seeds, with replacement, and of validation images, whose losses are taken "
    "to vary as those of the test images do."
)


@dataclass(frozen=True)
class Column:
    title: str  # words of it may be folded onto lines
    cell: Callable[[Row], str]
    left: bool = False


def print_table(root: Path, console: Console) -> None:
    """Summarise the runs below `root` and print the table with its sentences."""
    print_summary(summarise(read_runs(root)), console)


def print_summary(summary: Summary, console: Console, columns: Sequence[str] | None = None) -> None:
    safe = writable(console)
    names, fold, dropped = fit(summary, console, list(columns) if columns else None)
    table = rich_table(summary, names, fold, not console.is_terminal, safe)
    against = None if _compares(columns) else comparison_table(summary, safe)
    asides = legend(summary, names)
    if dropped:
        titles = ", ".join(column_of(name, summary).title for name in reversed(dropped))
        asides.append(f"No room here for {titles}: widen the terminal, or choose --columns.")
    terminal, width = console.is_terminal, console.width
    console.width = width if terminal else max(width, _width(table, console))
    console.print(table, *(("", against) if against else ()))
    console.width = width
    for style, lines in (("", summary.sentences), ("dim", asides)):
        for i, line in enumerate(lines):  # piped, a line is a line: somebody greps it
            console.print(
                *([""] if i == 0 else []), Text(safe(line), style), sep="\n", soft_wrap=not terminal
            )


def default_columns(summary: Summary) -> list[str]:
    several = any(row.n > 1 for row in summary.rows)
    return [DEFAULT[0], *summary.by, *(name for name in DEFAULT[1:] if several or name != "n")]


def fit(summary: Summary, console: Console, columns: list[str] | None) -> tuple[list[str], bool, list[str]]:
    """Columns that fit the width, whether `± sd` goes on a line of its own, and the columns left out.
    Columns that the user chose all stay."""
    names = columns or default_columns(summary)
    expendable = [name for name in EXPENDABLE if columns is None]
    attempts = [(k, False) for k in range(min(3, len(expendable)) + 1)]
    attempts += [(k, True) for k in range(len(expendable) + 1)]
    for count, fold in attempts:
        dropped = expendable[:count]
        kept = [name for name in names if name not in dropped]
        if (
            not console.is_terminal
            or _width(rich_table(summary, kept, fold, False), console) <= console.width
        ):
            break
    return kept, fold, dropped


def rich_table(
    summary: Summary, names: Sequence[str], fold: bool, wide: bool, safe: Callable[[str], str] = str
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for name in names:
        column = column_of(name, summary)
        title = column.title if wide else column.title.replace(" ", "\n")
        table.add_column(title, justify="left" if column.left else "right", no_wrap=not fold, overflow="fold")
    for row in summary.rows:
        style = "bold" if row.best else "" if row.n else "dim"
        cells = [safe(column_of(name, summary).cell(row)).replace(", ", ",\n" if name == "status" else ", ")
                 for name in names]  # fmt: skip
        if fold:
            cells = [cell.replace(safe(" ± "), safe("\n± ")) for cell in cells]
        table.add_row(*map(Text, cells), style=style)
    return table


def comparison_table(summary: Summary, safe: Callable[[str], str]) -> Table | None:
    """Differences of test accuracy from the reference; None where nothing was compared."""
    cells = comparison_cells(summary)
    if not cells:
        return None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for i, title in enumerate(cells[0]):
        table.add_column(safe(title), justify="left" if i == 0 else "right", overflow="fold")
    for row, c in zip(cells[1:], summary.comparisons, strict=True):
        table.add_row(*(Text(safe(cell)) for cell in row), style="bold" if c.shown else "")
    return table


def comparison_cells(summary: Summary) -> list[list[str]]:
    """Titles, then one line a comparison; empty where there is none."""
    references = {c.against for c in summary.comparisons}
    if not references:
        return []
    corrected = any(c.family > 1 for c in summary.comparisons)
    known = any(c.detectable is not None for c in summary.comparisons)
    title = f"against {references.pop()}" if len(references) == 1 else "comparison"
    lines = [[title, "test acc.", "95 % interval", "p (adjusted)" if corrected else "p",
              *(["found from"] if known else []), "seeds"]]  # fmt: skip
    for c in summary.comparisons:
        name = c.name if title != "comparison" else f"{c.name} against {c.against}"
        size = [_found_from(c)] if known else []
        lines.append([name, points(c.difference, c, sign=True), interval_cell(c), p_text(c.p_adjusted), *size,
                      spans(c.seeds)])  # fmt: skip
    return lines


def _width(table: Table, console: Console) -> int:
    return console.measure(table, options=console.options.update(max_width=PLENTY)).maximum


def writable(console: Console) -> Callable[[str], str]:
    """Turns text into what the output can encode."""
    if console.encoding.lower().startswith("utf"):
        return str
    return lambda text: text.translate(ASCII).encode("ascii", "replace").decode()


def legend(summary: Summary, names: Sequence[str]) -> list[str]:
    """What the numbers are, for those shown."""
    shown = {"test_accuracy", "precision", "recall", "f1"} & set(names)
    sizes = sorted({row.test_images for row in summary.rows if row.test_images})
    parts = []
    if shown and sizes:
        macro = " (precision, recall and F1: mean over the classes)" if len(shown) > 1 else ""
        parts.append(f"Test metrics in % of {' or '.join(f'{size:,}' for size in sizes)} test images{macro}.")
    if any(row.n > 1 for row in summary.rows):
        parts.append("± is the standard deviation over n finished runs.")
    if any(row.best for row in summary.rows):
        parts.append("★ best by validation loss.")
    parts += _references(summary)
    lines = [" ".join(parts)] if parts else []
    if summary.comparisons:
        lines.append(method(summary.comparisons))
    if any(c.detectable is not None for c in summary.comparisons):
        lines[-1] += " Found from: the smallest true difference that is found with 80 % power."
    if any(row.best and row.wins is not None for row in summary.rows):
        lines.append(DRAWN)
    return lines


def _references(summary: Summary) -> list[str]:
    """What saying always the same is worth."""
    known = {row.dataset: found for row in summary.rows if row.n and (found := majority(row))}
    if len(known) != 1:
        return []
    [(name, share)] = known.values()
    return [
        f"Always saying {printable(name)}, the most frequent class, would be right on {100 * share:.1f} %."
    ]


def _found_from(c: Comparison) -> str:
    return "" if c.detectable is None else points(c.detectable, c)


# Cells


def _variant(row: Row) -> str:
    return f"{row.variant} ★" if row.best else row.variant


def _statistic(name: str, form: Callable[[float, Row], str], with_sd: bool = True) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value = row.values[name]
        if value is None:
            return "–"
        sd = f" ± {form(value.sd, row)}" if with_sd and value.sd is not None else ""
        return form(value.mean, row) + sd

    return cell


def _percent(x: float, row: Row) -> str:
    return f"{100 * x:.{2 if (row.test_images or 0) >= 2000 else 1}f}"


def _count(x: float, row: Row) -> str:
    return f"{x:,.0f}"


def _epoch(x: float, row: Row) -> str:
    return f"{x:.0f}" if row.n <= 1 else f"{x:.1f}"


def _loss(x: float, row: Row) -> str:
    return f"{x:.4f}" if len(row.runs) == 1 else f"{x:.3f}"


def _seconds(x: float, row: Row) -> str:
    return f"{x:.1f}" if x < 100 else f"{x:,.0f}"


COLUMNS = {
    "variant": Column("variant", _variant, left=True),
    "seeds": Column("seeds", lambda row: spans(row.seeds), left=True),
    "n": Column("n", lambda row: str(row.n)),
    "parameters": Column("parameters", lambda row: "–" if row.parameters is None else f"{row.parameters:,}"),
    "best_epoch": Column("epoch", _statistic("best_epoch", _epoch, with_sd=False)),
    "val_loss": Column("val. loss", _statistic("val_loss", _loss)),
    "val_accuracy": Column("val. acc.", _statistic("val_accuracy", _percent)),
    "test_accuracy": Column("test acc.", _statistic("test_accuracy", _percent)),
    "precision": Column("precision", _statistic("precision", _percent)),
    "recall": Column("recall", _statistic("recall", _percent)),
    "f1": Column("F1", _statistic("f1", _percent)),
    "images_per_second": Column("images/s", _statistic("images_per_second", _count, with_sd=False)),
    "seconds": Column("seconds", _statistic("seconds", _seconds, with_sd=False)),
    "test_images": Column("test images", lambda row: f"{row.test_images:,}" if row.test_images else "–"),
    "dataset": Column("dataset", lambda row: row.dataset[:12], left=True),
    # What damaged a run stands under the table.
    "status": Column("status", lambda row: row.status.partition(":")[0], left=True),
    "wins": Column("wins %", lambda row: "" if row.wins is None else f"{100 * row.wins:.0f}"),
    "best": Column("best", lambda row: "★" if row.best else "", left=True),
}


# Of the row's comparison with its reference.
COMPARED: dict[str, tuple[str, Callable[[Comparison], str]]] = {
    "compared_with": ("against", lambda c: c.against),
    "difference": ("difference", lambda c: points(c.difference, c, sign=True)),
    "interval": ("95 % interval", lambda c: interval_cell(c)),
    "difference_low": ("95 % from", lambda c: points(c.low, c, sign=True)),
    "difference_high": ("95 % to", lambda c: points(c.high, c, sign=True)),
    "p": ("p", lambda c: p_text(c.p)),
    "p_adjusted": ("p (adjusted)", lambda c: p_text(c.p_adjusted)),
    "detectable": ("found from", _found_from),
    "seeds_needed": ("seeds needed", lambda c: "" if c.seeds_needed is None else str(c.seeds_needed)),
}


def column_of(name: str, summary: Summary) -> Column:
    if name in COLUMNS:
        return COLUMNS[name]
    if name not in COMPARED:
        return Column(name, lambda row: show(row.by[name]))
    title, cell = COMPARED[name]
    return Column(title, lambda row: "" if (c := summary.comparison_of(row)) is None else cell(c),
                  left=name == "compared_with")  # fmt: skip


def interval_cell(c: Comparison) -> str:
    return f"{points(c.low, c, sign=True)} … {points(c.high, c, sign=True)}"


def _compares(columns: Sequence[str] | None) -> bool:
    """Whether the chosen columns show the comparisons, which then need no table of their own."""
    return any(name in COMPARED for name in columns or ())


def known_columns(summary: Summary) -> list[str]:
    return [*summary.by, *COLUMNS, *COMPARED]


def as_markdown(summary: Summary, columns: Sequence[str] | None = None) -> str:
    """The table as a person reads it, and the sentences under it."""
    names = list(columns or default_columns(summary))
    shown = [column_of(name, summary) for name in names]
    lines = _markdown_head([column.title for column in shown], [column.left for column in shown])
    for row in summary.rows:
        cells = [markdown(column.cell(row)) for column in shown]
        lines.append(_markdown_line([f"**{cell}**" if row.best and cell else cell for cell in cells]))
    titles, *against = ([] if _compares(columns) else comparison_cells(summary)) or [[]]
    if titles:
        lines += ["", *_markdown_head(titles, [True])]
        lines += [_markdown_line(map(markdown, cells)) for cells in against]
    notes = [*summary.sentences, *legend(summary, names)]
    return "\n".join([*lines, *("\n" + markdown(note) for note in notes)])


def _markdown_head(titles: Sequence[str], left: Sequence[bool]) -> list[str]:
    sides = [*left, *[False] * (len(titles) - len(left))]
    return [
        _markdown_line(map(markdown, titles)),
        "|" + "|".join(":---" if side else "---:" for side in sides) + "|",
    ]


def _markdown_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
