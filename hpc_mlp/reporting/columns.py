"""The table's columns and what they show, as text: for the terminal, Markdown and the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hpc_mlp.errors import printable
from hpc_mlp.reporting.cautions import majority
from hpc_mlp.reporting.comparison import Comparison, p_text, points
from hpc_mlp.reporting.groups import Group, show
from hpc_mlp.reporting.metrics import METRICS
from hpc_mlp.reporting.sentences import join, method
from hpc_mlp.reporting.summary import Summary
from hpc_mlp.reporting.values import HELD_OUT
from hpc_mlp.terminal.text import count, spans

# Shown where they are asked for.
ON_DEMAND = {"val_accuracy", "val_f1", "test_loss", "ece", "test_images", "dataset", "wins", "best"}
ON_DEMAND |= {"held_out_precision", "held_out_recall", "held_out_loss"}
ON_DEMAND |= {"temperature", "calibrated_loss", "calibrated_ece"}
# Shown where a row has them.
OF_FOLDS = ("folds", "held_out_accuracy", "held_out_f1", "held_out_loss")
DRAWN = (
    "How often ★ wins: 10,000 draws of the seeds, with replacement, and of validation images, "
    "whose losses are taken to vary as those of the test images do."
)
FOLDS_DRAWN = (
    "How often ★ wins: 10,000 draws of the folds, with replacement, spread for the overlap of "
    "their training sets."
)


@dataclass(frozen=True)
class Column:
    """Words of its `title` may be folded onto lines. `left`: where it stands, as text does."""

    title: str
    cell: Callable[[Group], str]
    left: bool = False


def default_columns(summary: Summary) -> list[str]:
    several = any(row.n > 1 for row in summary.rows)
    metric = METRICS[summary.metric]
    hidden = ON_DEMAND - {metric.column, metric.held_out}
    hidden -= {"test_loss", "ece"} if summary.ensembles else set()
    first, *rest = (name for name in COLUMNS if name not in hidden)
    own, after = [f"test_{name}" for name in summary.own_metrics], rest.index("f1") + 1
    rest[after:after] = own
    known = [
        *(["n"] if several else []),
        *(["folds"] if any(row.folds > 1 for row in summary.rows) else []),
        *(row_values(summary) & {*OF_FOLDS}),
    ]
    some = ("n", *OF_FOLDS)
    return [first, *summary.by, *(name for name in rest if name not in some or name in known)]


def row_values(summary: Summary) -> set[str]:
    """Statistics that the rows have."""
    return {name for row in summary.rows for name in row.values}


def known_columns(summary: Summary) -> list[str]:
    absent = {*HELD_OUT, "ece"} - row_values(summary)
    return [*summary.by, *(c for c in COLUMNS if c not in absent), *_own(summary), *COMPARED]


def _own(summary: Summary) -> list[str]:
    return [f"{split}_{name}" for name in summary.own_metrics for split in ("val", "test")]


def compares(columns: Sequence[str] | None) -> bool:
    """Whether the chosen columns show the comparisons, which then need no table of their own."""
    return any(name in COMPARED for name in columns or ())


def comparison_cells(summary: Summary) -> list[list[str]]:
    """Titles, then one line a comparison; empty where there is none."""
    references = {c.against for c in summary.comparisons}
    if not references:
        return []
    one = len(references) == 1
    folds = [c.folds is not None for c in summary.comparisons]
    metric = METRICS[summary.metric]
    kind = f"{'held-out' if all(folds) else 'test'} {metric.title}"
    titles = {
        "difference": kind if all(folds) or not any(folds) else metric.noun,
        "interval": "95 % interval",
        "p_adjusted": "p (adjusted)" if any(c.family > 1 for c in summary.comparisons) else "p",
    }
    if any(c.detectable is not None for c in summary.comparisons):
        titles["detectable"] = "found from"
    rests_on = ["folds", "seeds"] if any(folds) else ["seeds"]
    first = f"against {next(iter(references))}" if one else "comparison"
    lines = [[first, *titles.values(), *rests_on]]
    for c in summary.comparisons:
        name = c.name if one else f"{c.name} against {c.against}"
        rests_on = [str(c.folds or "–"), spans(c.seeds)] if any(folds) else [spans(c.seeds)]
        lines.append([name, *(COMPARED[key][1](c) for key in titles), *rests_on])
    return lines


def legend(summary: Summary, names: Sequence[str]) -> list[str]:
    """What the numbers are, for those shown."""
    parts = _sizes(summary, {"test_accuracy", "precision", "recall", "f1"} & set(names))
    if own := [name.partition("_")[2] for name in names if name in _own(summary)]:
        parts.append(f"As their functions give them: {join(list(dict.fromkeys(own)))}.")
    if "ece" in names:
        of = " of what folds hold out" if any(row.held_out for row in summary.rows) else ""
        parts.append(f"ECE, the expected calibration error{of}, in points.")
    if any(row.n > 1 and row.folds == 1 for row in summary.rows):
        parts.append("± is the standard deviation over n finished runs.")
    if any(row.n > 1 and row.folds > 1 for row in summary.rows):
        parts.append("Of folds, ± is the standard deviation over them, the seeds of each averaged.")
    if any(row.best for row in summary.rows):
        parts.append("★ best by validation loss.")
    if any(row.ensemble for row in summary.rows):
        parts.append("Ensembles, the mean of their runs' probabilities, are not compared.")
    parts += _references(summary)
    lines = [" ".join(parts)] if parts else []
    if summary.comparisons:
        lines.append(method(summary.comparisons))
    if any(c.detectable is not None for c in summary.comparisons):
        lines[-1] += " Found from: the smallest true difference that is found with 80 % power."
    won = [row for row in summary.rows if row.best and row.wins is not None]
    lines += [DRAWN] if any(row.folds == 1 for row in won) else []
    lines += [FOLDS_DRAWN] if any(row.folds > 1 for row in won) else []
    return lines


def _sizes(summary: Summary, shown: set[str]) -> list[str]:
    """What the metrics `shown` are shares of."""
    macro = " (precision, recall and F1: mean over the classes)" if len(shown) > 1 else ""
    fold = ", each tested by the fold that held it out"

    def images(sizes: Iterable[int | None]) -> str:
        return " or ".join(f"{size:,}" for size in sorted({size for size in sizes if size}))

    rows = summary.rows
    test = images(row.test_images for row in rows if row.folds == 1 or row.held_out)
    whole = images(row.test_images for row in rows if row.folds > 1 and not row.held_out)
    held_out = images(row.held_out for row in rows)
    return [
        *([f"Test metrics in % of {test} test images{macro}."] if shown and test else []),
        *([f"Test metrics in % of {whole} images{fold}{macro}."] if shown and whole else []),
        *([f"Held-out metrics in % of {held_out} images{fold}."] if held_out else []),
    ]


def _references(summary: Summary) -> list[str]:
    """What saying always the same is worth."""
    known = {row.dataset: found for row in summary.rows if row.n and (found := majority(row))}
    if len(known) != 1:
        return []
    [(name, share)] = known.values()
    always = f"Always saying {printable(name)}, the most frequent class"
    return [f"{always}, would be right on {100 * share:.1f} %."]


# Cells


def _variant(row: Group) -> str:
    if row.averaged:
        what = "seed" if row.averaged == len(row.seeds) else "run"
        return f"  ensemble of {count(row.averaged, what)}"
    return f"{row.variant} ★" if row.best else row.variant


def _statistic(
    name: str, form: Callable[[float, Group], str], with_sd: bool = True
) -> Callable[[Group], str]:
    def cell(row: Group) -> str:
        value = row.values.get(name)
        if value is None:
            return "–"
        sd = f" ± {form(value.sd, row)}" if with_sd and value.sd is not None else ""
        return form(value.mean, row) + sd

    return cell


def _percent(x: float, row: Group) -> str:
    return f"{100 * x:.{2 if (row.test_images or 0) >= 2000 else 1}f}"


def _held_out(x: float, row: Group) -> str:
    return f"{100 * x:.{2 if (row.held_out or 0) >= 2000 else 1}f}"


def _folds(row: Group) -> str:
    if row.folds == 1:
        return "–"
    return str(row.folds) if row.complete else f"{row.folds_done} of {row.folds}"


def _count(x: float, row: Group) -> str:
    return f"{x:,.0f}"


def _epoch(x: float, row: Group) -> str:
    return f"{x:.0f}" if row.n <= 1 else f"{x:.1f}"


def _loss(x: float, row: Group) -> str:
    return f"{x:.4f}" if len(row.runs) == 1 else f"{x:.3f}"


def _seconds(x: float, row: Group) -> str:
    return f"{x:.1f}" if x < 100 else f"{x:,.0f}"


COLUMNS = {
    "variant": Column("variant", _variant, left=True),
    "seeds": Column("seeds", lambda row: spans(row.seeds), left=True),
    "folds": Column("folds", _folds),
    "n": Column("n", lambda row: str(row.n)),
    "parameters": Column(
        "parameters", lambda row: "–" if row.parameters is None else f"{row.parameters:,}"
    ),
    "best_epoch": Column("epoch", _statistic("best_epoch", _epoch, with_sd=False)),
    "val_loss": Column("val. loss", _statistic("val_loss", _loss)),
    "val_accuracy": Column("val. acc.", _statistic("val_accuracy", _percent)),
    "val_f1": Column("val. F1", _statistic("val_f1", _percent)),
    "test_accuracy": Column("test acc.", _statistic("test_accuracy", _percent)),
    "precision": Column("precision", _statistic("precision", _percent)),
    "recall": Column("recall", _statistic("recall", _percent)),
    "f1": Column("F1", _statistic("f1", _percent)),
    "test_loss": Column("test loss", _statistic("test_loss", _loss)),
    "ece": Column("ECE", _statistic("ece", _percent)),
    "temperature": Column("temperature", _statistic("temperature", _loss)),
    "calibrated_loss": Column("calibrated loss", _statistic("calibrated_loss", _loss)),
    "calibrated_ece": Column("calibrated ECE", _statistic("calibrated_ece", _percent)),
    **{
        f"held_out_{name}": Column(f"held-out {title}", _statistic(f"held_out_{name}", _held_out))
        for name, title in (
            ("accuracy", "acc."),
            ("precision", "precision"),
            ("recall", "recall"),
            ("f1", "F1"),
        )
    },
    "held_out_loss": Column("held-out loss", _statistic("held_out_loss", _loss)),
    "images_per_second": Column("images/s", _statistic("images_per_second", _count, with_sd=False)),
    "seconds": Column("seconds", _statistic("seconds", _seconds, with_sd=False)),
    "test_images": Column(
        "test images", lambda row: f"{row.test_images:,}" if row.test_images else "–"
    ),
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
    "detectable": ("found from", lambda c: _found_from(c)),
    "seeds_needed": ("seeds needed", lambda c: str(c.seeds_needed or "")),
}


def column_of(name: str, summary: Summary) -> Column:
    if name in COLUMNS:
        return COLUMNS[name]
    if name in _own(summary):
        split, _, own = name.partition("_")
        return Column(f"{'val.' if split == 'val' else split} {own}", _statistic(name, _loss))
    if name not in COMPARED:
        return Column(name, lambda row: show(row.by[name]))
    title, cell = COMPARED[name]

    def compared(row: Group) -> str:
        found = None if row.averaged else summary.comparison_of(row)
        return cell(found) if found else ""

    return Column(title, compared, left=name == "compared_with")


def _found_from(c: Comparison) -> str:
    """No difference is larger than 100 points."""
    if c.detectable is None:
        return ""
    return "> 100" if c.measure.share and c.detectable > 1 else points(c.detectable, c)


def interval_cell(c: Comparison) -> str:
    return f"{points(c.low, c, sign=True)} … {points(c.high, c, sign=True)}"
