"""The page's sections on test results: confusion, classes, probabilities, weights; mostly of one
run, which was chosen on validation data. Plain data for `page.html.j2`."""

from __future__ import annotations

from functools import partial

import numpy as np

from hpc_mlp.errors import RunError
from hpc_mlp.reporting import confusion, probabilities, weights
from hpc_mlp.reporting.context import Context
from hpc_mlp.reporting.figures import Drawn, Named
from hpc_mlp.reporting.groups import Group, drawable
from hpc_mlp.reporting.naming import described
from hpc_mlp.reporting.ranking import Calibration, Ranking, calibrate, rank
from hpc_mlp.runs.calibration import NUM_BINS
from hpc_mlp.runs.folder import Json

MOST_RANKED, MOST_PAIRS, MOST_WEIGHTS, MOST_MATRICES = 6, 10, 4, 4
# Up to so many classes their table stands beside the figure, and not folded.
FEW_CLASSES = 20

Ranked = list[tuple[Group, Ranking]]


def sections(context: Context) -> dict[str, Json]:
    known = [
        group
        for group in context.groups
        if group.chosen is not None and group.chosen.path in context.predictions
    ]
    ranked = [
        (group, rank(context.predictions[run.path]))
        for group in drawable(known, MOST_RANKED)
        if (run := group.chosen) is not None
    ]
    own = next((found for group, found in ranked if group is context.group), None)
    return {
        "confusion": confusions(context),
        "classes": classes(context, own),
        "probabilities": ranking_curves(context, ranked, own) | {"groups": len(known)},
        "weights": first_layers(context),
    }


def confusions(context: Context) -> Json:
    run, names = context.run, context.dataset.classes
    draw = partial(confusion.confusion_panel, folder=context.folder)
    if context.group is None or run is None or run.test is None:
        return {"panels": []}
    counts, shown = np.asarray(run.test.confusion_matrix), described(context.group, run)
    title = f"Confusion in % of the true class\n{shown}"
    shares = draw(counts, names, name="confusion_normalised", title=title, shares=True)
    title, some = "Confusion in images", list(range(len(names)))
    if len(names) > confusion.ANNOTATED:
        some = confusion.most_confused(counts, confusion.ANNOTATED)
        title += f", the {len(some)} classes most confused"
    part, of_part = counts[np.ix_(some, some)], [names[k] for k in some]
    images = draw(part, of_part, name="confusion_counts", title=f"{title}\n{shown}")
    others = []
    tested = [group for group in context.groups if group.chosen is not None]
    for group in drawable(tested, MOST_MATRICES):
        other = group.chosen
        if other is not None and other.test is not None and other.name != run.name:
            matrix, name = np.asarray(other.test.confusion_matrix), f"confusion_{group.slug}"
            title = f"Confusion in % of the true class\n{described(group, other)}"
            others.append(draw(matrix, names, name=name, title=title, shares=True, small=True))
    pairs = confusion.confused_pairs(counts, MOST_PAIRS)
    rows = [(names[t], names[p], f"{n:,}", f"{100 * share:.1f} %") for t, p, n, share in pairs]
    found = {"panels": [shares, images], "pairs": rows, "others": others}
    return found | {"num_others": len(tested) - 1}


def classes(context: Context, own: Ranking | None) -> Json:
    run = context.run
    if context.group is None or run is None or run.test is None:
        return {"panels": []}
    rows = [
        (
            row.name,
            f"{row.support:,}",
            *(f"{100 * share:.1f}" for share in (row.precision, row.recall, row.f1)),
            *((_three(own.roc.areas[k]), _three(own.pr.areas[k])) if own else ("–", "–")),
        )
        for k, row in enumerate(run.test.per_class)
    ]
    shown = described(context.group, run)
    drawn = confusion.per_class_panels(run.test.per_class, context.folder, shown)
    return {"panels": drawn, "rows": rows, "few": len(rows) <= FEW_CLASSES}


def ranking_curves(context: Context, ranked: Ranked, own: Ranking | None) -> Json:
    if not ranked:
        return {"rows": []}
    drawn: list[Drawn] = []
    names = context.dataset.classes
    # Test images of one class have no curves.
    for kind in probabilities.KINDS if any(found.roc.known for _, found in ranked) else ():
        ends = probabilities.corner(kind, own, ranked)
        if own is not None and context.group is not None and context.run is not None:
            run = described(context.group, context.run)
            drawn.append(probabilities.class_panel(own, names, context.folder, kind, run, ends))
        drawn.append(probabilities.group_panel(ranked, context.folder, kind, ends))
    rows, calibrations = [], []
    for group, found in ranked:
        tested = [run.path for run in group.tested]
        calibration = calibrate([p for path, p in context.predictions.items() if path in tested])
        calibrations.append((group, calibration))
        curves = (found.roc, found.pr)
        areas = [_three(a) for c in curves for a in (c.macro_area, c.micro_area)]
        chosen = str(group.chosen.seed) if group.chosen else "–"
        null = f"{100 * calibration.null:.1f}"
        rows.append((Named(group), chosen, *areas, _ece(calibration), null))
    return {
        "rows": rows,
        "panels": drawn,
        "calibration": probabilities.calibration_panels(calibrations, context.folder),
        "bins": NUM_BINS,
    }


def _three(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "–"


def _ece(calibration: Calibration) -> str:
    mean, sd = calibration.ece.mean, calibration.ece.sd
    return f"{100 * mean:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}")


def first_layers(context: Context) -> Json:
    """First-layer weights of the chosen run of a few groups, the best first."""
    drawn, missing, without, channels = [], [], [], 1
    tested = [group for group in context.groups if group.tested]
    some = drawable(tested, MOST_WEIGHTS)
    for group in sorted(some, key=lambda group: not group.best):
        run = group.best_model
        if run is None:
            continue
        try:
            weight = weights.first_layer(run)
        except RunError as error:
            missing.append(str(error))
            continue
        if weight is None:
            without.append(run.name)
        else:
            channels = weight.shape[1]
            shown = described(group, run)
            drawn.append(weights.weight_panel(weight, context.folder, group.slug, shown))
    if without:
        missing.append(f"No first-layer weights that see pixels: {', '.join(without)}.")
    found = {"panels": drawn, "grey": channels == 1, "missing": missing}
    return found | {"groups": len(tested), "some": len(some)}
