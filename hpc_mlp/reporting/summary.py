"""Everything there is to say about a folder of runs: rows, comparisons, sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_mlp.reporting.cautions import cautions
from hpc_mlp.reporting.compare import Comparison, compare
from hpc_mlp.reporting.rows import (
    Row,
    Value,
    check_by,
    damaged_row,
    dataset,
    groups,
    make_row,
    mark_best,
    show,
    swept_keys,
)
from hpc_mlp.reporting.sentences import findings, recipe_notes, troubles
from hpc_mlp.reporting.winner import with_wins
from hpc_mlp.runs.folder import Run, list_runs
from hpc_mlp.runs.identity import once

__all__ = ["Comparison", "Row", "Summary", "Value", "read_runs", "show", "summarise"]


# Copies that are named.
MOST_COPIES = 5


@dataclass(frozen=True)
class Summary:
    rows: list[Row]  # baseline first; `best` is marked on validation loss alone
    comparisons: list[Comparison]  # each variant with its reference (the baseline), in the order of `rows`
    sentences: list[str]  # what is shown and what is not, then what could not be compared, what failed
    by: list[str]  # configuration keys that, beside the variant, make the groups
    # For this difference `seeds_needed` is told, as a fraction.
    detect: float = 0.01

    def comparison_of(self, row: Row) -> Comparison | None:
        return next((comparison for comparison in self.comparisons if comparison.name == row.name), None)


def read_runs(root: Path) -> list[Run]:
    """The runs below `root`, damaged ones too."""
    return list_runs(root)


def summarise(runs: Sequence[Run], by: Sequence[str] | None = None, detect: float = 0.01) -> Summary:
    """Rows in the customary order. `by`: dotted configuration keys (or `seed`, `dataset`) to group by
    beside the variant; None takes the keys that sweeps varied. `detect`: the true difference of accuracies for
    which the seeds needed are told. UserError for an unknown key."""
    damaged = [run for run in runs if run.state == "damaged"]
    runs = [run for run in runs if run.state != "damaged"]
    keys = [key for key in dict.fromkeys(by) if key != "variant"] if by is not None else swept_keys(runs)
    check_by(runs, keys)
    if len({dataset(run) for run in runs}) > 1 and "dataset" not in keys:
        keys.append("dataset")
    runs, copies = once(runs, keys)
    rows = with_wins(mark_best([make_row(keys, group) for group in groups(runs, keys)]))
    compared = compare(rows, detect)
    return Summary(
        rows=[*rows, *(damaged_row(keys, run) for run in damaged)],
        comparisons=compared.against,
        sentences=[
            *findings(rows, compared, detect),
            *compared.notes,
            *cautions(rows),
            *recipe_notes(rows, compared.against, keys),
            *copies[:MOST_COPIES],
            *([f"{len(copies) - MOST_COPIES} more are copies."] if len(copies) > MOST_COPIES else []),
            *troubles([*runs, *damaged]),
        ],
        by=keys,
        detect=detect,
    )
