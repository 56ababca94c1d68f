"""Everything there is to say about a folder of runs: rows, comparisons, sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_mlp.errors import unknown_name
from hpc_mlp.reporting.cautions import cautions, of_ece
from hpc_mlp.reporting.compare import compare
from hpc_mlp.reporting.comparison import Comparison
from hpc_mlp.reporting.ensembles import with_ensembles
from hpc_mlp.reporting.groups import (
    FOLDS,
    Group,
    check_by,
    damaged_group,
    group_runs,
    keys_apart,
    lookup,
    swept_keys,
)
from hpc_mlp.reporting.metrics import METRICS, with_ece
from hpc_mlp.reporting.searches import search_notes
from hpc_mlp.reporting.sentences import findings, recipe_notes, troubles
from hpc_mlp.reporting.values import own_metrics, statistics
from hpc_mlp.reporting.winner import with_wins
from hpc_mlp.runs.folder import Run
from hpc_mlp.runs.identity import once

# Copies that are named.
MOST_COPIES = 5


@dataclass(frozen=True)
class Summary:
    """`rows`: baseline first; `best` is marked on validation loss alone. `comparisons`: each
    variant with its reference (the baseline), in the order of `rows`. `sentences`: what is shown
    and what is not, then what could not be compared, what failed. `by`: configuration keys that,
    beside the variant, make the groups. `detect`: the difference for which `seeds_needed` is told,
    a fraction. `metric`: in which rows are compared, of `metrics.METRICS`. `ensembles`: whether
    they were asked for."""

    rows: list[Group]
    comparisons: list[Comparison]
    sentences: list[str]
    by: list[str]
    detect: float = 0.01
    metric: str = "accuracy"
    ensembles: bool = False

    @property
    def lines(self) -> list[Group]:
        """As they are shown: each row, and then its ensemble."""
        return [line for row in self.rows for line in (row, row.ensemble) if line]

    @property
    def own_metrics(self) -> dict[str, bool]:
        """Of the runs' plugins: whether more of it is better."""
        return own_metrics(run for row in self.rows for run in row.runs)

    def comparison_of(self, row: Group) -> Comparison | None:
        return next((c for c in self.comparisons if c.name == row.name), None)


def summarise(
    runs: Sequence[Run],
    by: Sequence[str] | None = None,
    detect: float = 0.01,
    notes: Sequence[str] = (),
    metric: str = "accuracy",
    ensembles: bool = False,
) -> Summary:
    """Rows in the customary order. `by`: dotted configuration keys (or `seed`, `dataset`) to group
    by beside the variant; None takes the keys that sweeps varied, and those in which several
    folders differ. `detect`: the true difference for which the seeds needed are told. `notes`: said
    first. `metric`: of `metrics.METRICS`. UserError for an unknown key or metric."""
    if metric not in METRICS:
        raise unknown_name("metric", metric, [*METRICS])
    damaged = [run for run in runs if run.state == "damaged"]
    runs = [run for run in runs if run.state != "damaged"]
    keys = (
        [key for key in dict.fromkeys(by) if key != "variant"]
        if by is not None
        else list(dict.fromkeys([*swept_keys(runs), *keys_apart(runs)]))
    )
    check_by(runs, keys)
    if len({run.config.dataset.digest for run in runs}) > 1 and "dataset" not in keys:
        keys.append("dataset")
    # Of files that anybody may have written: a list, too.
    if len({repr(lookup(run, FOLDS)) for run in runs}) > 1 and FOLDS not in keys:
        keys.append(FOLDS)
    runs, copies = once(runs, keys)
    rows = with_wins(group_runs(runs, keys))
    rows, null = with_ece(rows) if metric == "ece" else (rows, {})
    compared, known = compare(rows, detect, metric), statistics(runs)
    # After the comparison, of which they are no part.
    rows, said = with_ensembles(rows) if ensembles else (rows, [])
    if ensembles or metric == "ece":
        known |= {"ece": ("ece",)}
    return Summary(
        rows=[*rows, *(damaged_group(keys, run, known) for run in damaged)],
        comparisons=compared.against,
        sentences=[
            *notes,
            *search_notes(runs),
            *findings(rows, compared, detect),
            *compared.notes,
            *of_ece(null, compared.against),
            *said,
            *cautions(rows),
            *recipe_notes(rows, compared.against, keys),
            *copies[:MOST_COPIES],
            *([f"{more} more are copies."] if (more := len(copies) - MOST_COPIES) > 0 else []),
            *troubles([*runs, *damaged]),
        ],
        by=keys,
        detect=detect,
        metric=metric,
        ensembles=ensembles,
    )
