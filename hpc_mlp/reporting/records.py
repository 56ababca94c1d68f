"""The table for machines: flat records, JSON, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hpc_mlp.errors import UserError, unknown_name
from hpc_mlp.reporting.cautions import majority
from hpc_mlp.reporting.groups import Group
from hpc_mlp.reporting.metrics import METRICS
from hpc_mlp.reporting.summary import Summary
from hpc_mlp.reporting.values import HELD_OUT
from hpc_mlp.runs.folder import Json
from hpc_mlp.terminal.text import csv_cell, json_text

HIGHER_IS_BETTER = {"val_accuracy", "val_f1", "test_accuracy", "precision", "recall", "f1"}
HIGHER_IS_BETTER |= {"images_per_second", "difference", "wins", *HELD_OUT} - {"held_out_loss"}

# Keys of a row's comparison with its reference: as in `Comparison`.
COMPARED = {
    "compared_with": "against",
    "difference": "difference",
    "difference_low": "low",
    "difference_high": "high",
    **{name: name for name in ("p", "p_adjusted", "test", "shown", "detectable")},
}
_NO_FOLDS: Json = {"folds": None, "folds_done": None}
# One column for people, two for machines.
SHORT = {"interval": ["difference_low", "difference_high"]}


def known_columns(summary: Summary) -> list[str]:
    return [*records(summary)[0], *SHORT]


def check_names(names: Sequence[str], known: Sequence[str]) -> None:
    """UserError naming the right columns unless `names` are among them."""
    if not names:
        raise UserError(f"no column is named. Known: {', '.join(known)}.")
    for name in names:
        if name not in known:
            raise unknown_name("column", name, known)


def sort_rows(summary: Summary, name: str) -> Summary:
    """Best first for metrics, smallest first for the rest; rows without the value last."""
    table = [_record(row, summary) for row in summary.rows]
    check_names([name], list(table[0]))
    rising = [own for own, higher in summary.own_metrics.items() if higher]
    falls = {"difference"} if METRICS[summary.metric].lower_is_better else set[str]()
    higher = (HIGHER_IS_BETTER - falls) | {
        f"{split}_{own}" for own in rising for split in ("val", "test")
    }

    def key(i: int) -> Any:
        value = table[i][name]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return 0, -value if name in higher else value, ""
        return (2, 0, "") if value is None else (1, 0, "" if value is True else str(value))

    order = sorted(range(len(table)), key=key)
    return replace(summary, rows=[summary.rows[i] for i in order])


def records(summary: Summary) -> list[Json]:
    """One flat dictionary a row; every row has every key, None where there is no value. Metrics are
    fractions, `<metric>_sd` is None below two runs. `ensemble`, where asked for: of how many runs a
    row is one, None of others."""
    return [_record(row, summary) for row in summary.lines]


def _record(row: Group, summary: Summary) -> Json:
    record: Json = {"variant": row.variant, **{key: row.by[key] for key in summary.by}}
    record |= {"seeds": row.seeds, "n": row.n, "parameters": row.parameters}
    record |= {"folds": row.folds, "folds_done": row.folds_done} if row.folds > 1 else _NO_FOLDS
    for name, value in row.values.items():
        record |= {name: value and value.mean, f"{name}_sd": value and value.sd}
    if record["best_epoch"] is not None and record["best_epoch"] == int(record["best_epoch"]):
        record["best_epoch"] = int(record["best_epoch"])
    record |= {"test_images": row.test_images, "held_out_images": row.held_out}
    record |= {"dataset": row.dataset}
    known = majority(row)
    record |= {"majority_share": known[1] if known else None}
    record |= {"status": row.status, "best": row.best, "wins": row.wins}
    record |= {"ensemble": row.averaged or None} if summary.ensembles else {}
    c = None if row.averaged else summary.comparison_of(row)
    record |= {key: getattr(c, name) if c else None for key, name in COMPARED.items()}
    return record | {
        "detect": summary.detect if c else None,
        "seeds_needed": c.seeds_needed if c else None,
        "metric": c.metric if c else None,
    }


def chosen(summary: Summary, columns: Sequence[str] | None) -> list[Json]:
    table = records(summary)
    names = [name for column in columns or table[0] for name in SHORT.get(column, [column])]
    return [{name: record[name] for name in names} for record in table]


def as_json(summary: Summary, columns: Sequence[str] | None = None) -> str:
    return json_text(chosen(summary, columns), indent=1)


def as_csv(summary: Summary, columns: Sequence[str] | None = None) -> str:
    table = chosen(summary, columns)
    return csv_text(table, list(table[0]))


def csv_text(table: Sequence[Json], names: Sequence[str]) -> str:
    """`names`: the keys of every record, in order."""
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for record in table:
        writer.writerow({key: _csv(value) for key, value in record.items()})
    return out.getvalue().rstrip("\n")


def _csv(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return csv_cell(value) if isinstance(value, str) else value
