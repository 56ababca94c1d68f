"""The table in the terminal and for machines. It fits the width it is given: columns that matter least
go first and are named under the table, nothing is cut off. Piped, it is as wide as it needs to be."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpc_mlp.errors import UserError, unknown_name
from hpc_mlp.report.summary import STATISTICS, Row, Summary, Value, read_runs, show, summarise
from hpc_mlp.runs import Json

HIGHER_IS_BETTER = {"val_accuracy", "test_accuracy", "precision", "recall", "f1", "images_per_second"}
DEFAULT = (
    "variant", "seeds", "n", "parameters", "best_epoch", "val_loss", "test_accuracy", "precision", "recall",
    "f1", "images_per_second", "seconds", "status",
)  # fmt: skip
# Where the terminal is narrow, these go, in this order.
EXPENDABLE = ("images_per_second", "parameters", "seconds", "best_epoch", "recall", "precision", "f1")
ASCII = str.maketrans({"±": "+-", "…": "..", "★": "*", "−": "-", "–": "-"})
PLENTY = 10_000  # columns of an endless line


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
    notes = [*legend(summary, names), *summary.sentences]
    if dropped:
        titles = ", ".join(COLUMNS[name].title for name in reversed(dropped))
        notes.append(f"No room here for {titles}: widen the terminal, or choose --columns.")
    if console.is_terminal:
        console.print(table, "", *(Text(safe(note)) for note in notes), sep="\n")
        return
    width, console.width = console.width, max(console.width, _width(table, console))
    console.print(table, "")
    console.width = width
    for note in notes:  # whole lines, however long: somebody greps them
        console.print(Text(safe(note)), soft_wrap=True)


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
        column = column_of(name)
        title = column.title if wide else column.title.replace(" ", "\n")
        table.add_column(title, justify="left" if column.left else "right", no_wrap=not fold, overflow="fold")
    for row in summary.rows:
        style = "bold" if row.best else "" if row.n else "dim"
        cells = [safe(column_of(name).cell(row)).replace(", ", ",\n" if name == "status" else ", ")
                 for name in names]  # fmt: skip
        if fold:
            cells = [cell.replace(safe(" ± "), safe("\n± ")) for cell in cells]
        table.add_row(*map(Text, cells), style=style)
    return table


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
        parts.append("★ lowest validation loss.")
    return [" ".join(parts)] if parts else []


# Cells


def _variant(row: Row) -> str:
    return f"{row.variant} ★" if row.best else row.variant


def seed_text(seeds: Sequence[int]) -> str:
    """[0, 1, 2, 5] → `0-2, 5`."""
    spans: list[list[int]] = []
    for seed in seeds:
        if spans and seed == spans[-1][1] + 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


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
    "seeds": Column("seeds", lambda row: seed_text(row.seeds), left=True),
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
    "status": Column("status", lambda row: row.status, left=True),
    "best": Column("best", lambda row: "★" if row.best else "", left=True),
}


def column_of(name: str) -> Column:
    if name in COLUMNS:
        return COLUMNS[name]
    return Column(name, lambda row: show(row.by[name]))


def check_columns(names: Sequence[str], summary: Summary, for_people: bool = False) -> None:
    """UserError naming the right columns unless `names` are columns of the table: those for machines,
    or those for people (which hold `x_sd` in the cell of `x`)."""
    known = [*summary.by, *COLUMNS] if for_people else list(records(summary)[0])
    if not names:
        raise UserError(f"--columns is empty. Known: {', '.join(known)}.")
    for name in names:
        if name not in known:
            raise unknown_name("column", name, known)


def sort_rows(summary: Summary, name: str) -> Summary:
    """Best first for metrics, smallest first for the rest; rows without the value last."""
    check_columns([name], summary)
    table = records(summary)

    def key(i: int) -> Any:
        value = table[i][name]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return 0, -value if name in HIGHER_IS_BETTER else value, ""
        return (2, 0, "") if value is None else (1, 0, "" if value is True else str(value))

    order = sorted(range(len(table)), key=key)
    return Summary(**{**vars(summary), "rows": [summary.rows[i] for i in order]})


# For machines


def records(summary: Summary) -> list[Json]:
    """One flat dictionary a row; every row has every key, None where there is no value. Metrics are
    fractions, `<metric>_sd` is None below two runs."""
    return [_record(row, summary.by) for row in summary.rows]


def _record(row: Row, by: Sequence[str]) -> Json:
    record: Json = {"variant": row.variant, **{key: row.by[key] for key in by}}
    record |= {"seeds": row.seeds, "n": row.n, "parameters": row.parameters}
    for name in STATISTICS:
        value = row.values[name] or Value(math.nan)
        record |= {name: _finite(value.mean), f"{name}_sd": _finite(value.sd)}
    record["best_epoch"] = _whole(record["best_epoch"])
    record |= {"test_images": row.test_images, "dataset": row.dataset}
    return record | {"status": row.status, "best": row.best}


def _finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None


def _whole(x: float | None) -> float | int | None:
    return int(x) if x is not None and x == int(x) else x


def chosen(summary: Summary, columns: Sequence[str] | None) -> list[Json]:
    table = records(summary)
    return [{name: record[name] for name in columns} for record in table] if columns else table


def as_json(summary: Summary, columns: Sequence[str] | None = None) -> str:
    return json.dumps(chosen(summary, columns), indent=1, ensure_ascii=False)


def as_csv(summary: Summary, columns: Sequence[str] | None = None) -> str:
    table = chosen(summary, columns)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table[0]), lineterminator="\n")
    writer.writeheader()
    for record in table:
        writer.writerow({key: _csv(value) for key, value in record.items()})
    return out.getvalue().rstrip("\n")


def _csv(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else value


def as_markdown(summary: Summary, columns: Sequence[str] | None = None) -> str:
    """The table as a person reads it, and the sentences under it."""
    names = list(columns or default_columns(summary))
    shown = [column_of(name) for name in names]
    lines = [
        "| " + " | ".join(column.title for column in shown) + " |",
        "|" + "|".join(":---" if column.left else "---:" for column in shown) + "|",
    ]
    for row in summary.rows:
        cells = [column.cell(row).replace("|", "\\|") for column in shown]
        cells = [f"**{cell}**" if row.best and cell else cell for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    notes = [*legend(summary, names), *summary.sentences]
    return "\n".join([*lines, *("\n" + note for note in notes)])
