"""The page's sections on all runs: summary, searches and sweeps, training, throughput. Plain
data for their template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hpc_mlp.reporting import by_fold, columns, curves, figures, search_figures, sweep_figures
from hpc_mlp.reporting.context import Context
from hpc_mlp.reporting.figures import Named
from hpc_mlp.reporting.groups import Group, drawable
from hpc_mlp.reporting.metrics import METRICS, Metric
from hpc_mlp.reporting.searches import searches, trial_tables
from hpc_mlp.runs.folder import Json

# They have a section of their own.
ELSEWHERE = ("images_per_second", "seconds")


def sections(context: Context) -> dict[str, Json]:
    return {
        "summary": summary(context),
        "searched": searched(context),
        "training": training(context),
        "throughput": throughput(context),
    }


def summary(context: Context) -> Json:
    found = context.summary
    names = [name for name in columns.default_columns(found) if name not in ELSEWHERE]
    shown = [columns.column_of(name, found) for name in names]
    rows = best_first(context.groups, METRICS[found.metric])
    groups = [line for row in rows for line in (row, row.ensemble) if line]
    cells = [[column.cell(group) for column in shown] for group in groups]
    order = {group.name: i for i, group in enumerate(groups)}
    title, *lines = columns.comparison_cells(found) or [[]]
    known = zip(lines, found.comparisons, strict=True)
    lines = [line for line, _ in sorted(known, key=lambda pair: order.get(pair[1].name, 0))]
    # Its numbers stand at the right.
    titles = [f"#{cell}" if i else cell for i, cell in enumerate(title)]
    folded = Counter(group.folds for group in context.groups if group.folds > 1 and group.n)
    return {
        "columns": [("" if column.left else "#") + column.title for column in shown],
        "rows": [
            [Named(group, first), *rest]
            for group, (first, *rest) in zip(groups, cells, strict=True)
        ],
        "folds": by_fold.fold_panels(context.groups, context.folder),
        "most_folded": by_fold.MOST_ROWS,
        "folded": max(folded.values(), default=0),
        "best": [i for i, group in enumerate(groups) if group.best],
        "compared": [titles, *lines] if lines else [],
        "notes": columns.legend(found, names),
        "sentences": found.sentences,
    }


def best_first(groups: Sequence[Group], metric: Metric) -> list[Group]:
    """By the mean of the metric that is compared, on test images or on those held out; rows without
    last."""
    sign = 1.0 if metric.lower_is_better else -1.0

    def order(group: Group) -> tuple[bool, float]:
        value = group.values.get(metric.held_out) or group.values.get(metric.column)
        return value is None, sign * value.mean if value else 0.0

    return sorted(groups, key=order)


def training(context: Context) -> Json:
    groups = [group for group in context.groups if any(run.metrics for run in group.runs)]
    if not groups:
        return {"groups": 0, "missing": ["No run has finished an epoch yet: no training curves."]}
    panels, lines = drawable(groups, curves.MOST_PANELS), drawable(groups, curves.MOST_LINES)
    monitors = list(dict.fromkeys(run.monitor.name for group in panels for run in group.runs))
    return {
        "groups": len(groups),
        "num_panels": len(panels),
        "num_lines": len(lines),
        "seeds": any(len(group.runs) > 1 for group in groups),
        "monitors": [] if monitors == ["loss"] else [f"train.monitor={name}" for name in monitors],
        "lines": curves.validation_panels(lines, context.folder),
        "panels": curves.loss_panels(panels, context.folder),
    }


def throughput(context: Context) -> Json:
    rows = []
    for group in context.groups:
        results = [run.result for run in group.runs if run.result]
        if results:
            rates = [rate for run in group.runs if (rate := curves.throughput(run))] or [0.0]
            seconds = sum(result.seconds or 0.0 for result in results) / len(results)
            banks = sorted({result.bank_size or 1 for result in results})
            devices = sorted({str(result.device) for result in results})
            rows.append(
                (
                    Named(group),
                    f"{sum(rates) / len(rates):,.0f}",
                    f"{seconds:,.1f}",
                    " or ".join(map(str, banks)),
                    ", ".join(devices),
                )
            )
    drawn = curves.throughput_panels(context.groups, context.folder)
    trained = sum(any(map(curves.throughput, group.runs)) for group in context.groups)
    found = {"groups": trained, "drawn_rows": min(trained, curves.MOST_ROWS)}
    return found | {"drawn": drawn, "rows": rows}


def searched(context: Context) -> Json:
    """Of searches and sweeps: `title` of the section, empty without."""
    runs = [run for group in context.groups for run in group.runs]
    best, trials, notes = list[figures.Drawn](), list[figures.Drawn](), list[str]()
    classes = len(context.dataset.classes)
    for number, records in enumerate(searches(runs), 1):
        suffix = f"_{number}" if number > 1 else ""
        of_all, of_each = search_figures.search_panels(records, classes, context.folder, suffix)
        best, trials = best + of_all, trials + of_each
        notes += [line for line in search_figures.captions(records, classes) if line not in notes]
    first = context.group or context.groups[0]
    peers = [group for group in context.groups if group.peers == first.peers]
    swept = sweep_figures.sweep_panels(peers, context.folder)
    return {
        "title": "Search" if notes else "Sweep" if swept else "",
        "notes": notes,
        "best": best,
        "trials": trials,
        "sweep": swept,
        "left_out": sweep_figures.left_out(peers),
        "variants": len({group.variant for group in peers}),
        "most": search_figures.MOST_VARIANTS,
        "tables": trial_tables(runs),
    }
