"""The page's sections on test results: confusion, classes, probabilities, weights. Mostly of one run, which
was chosen on validation data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpc_mlp.errors import RunError
from hpc_mlp.reporting import confusion, html, probabilities, ranking, weights
from hpc_mlp.reporting.figures import Drawn
from hpc_mlp.reporting.groups import Group, drawable
from hpc_mlp.reporting.html import Section
from hpc_mlp.reporting.material import Material
from hpc_mlp.reporting.overview import named

MOST_RANKED, MOST_PAIRS, MOST_WEIGHTS = 6, 10, 4

CONFUSION_NOTE = (
    "Blue cells are right, orange ones mistakes; the deeper the colour, the more. Colour grows with the "
    "square root of the share, so that rare mistakes can be seen."
)
CLASSES_NOTE = "Worst F1 first; the number of test images (support) stands behind each class."
RANKED = ["group", "run", "#macro AUC", "#micro AUC", "#macro AP", "#micro AP", "#ECE %", "#by chance"]
CURVES_NOTE = (
    "Curves are one class against the rest, of each group's seed with the lowest validation loss. Macro is "
    "the mean over classes; micro counts every pair of image and class as one decision."
)
CALIBRATION_NOTE = (
    "On the dotted line, confidence is the share that is right; below it the model is too sure of itself. "
    f"{ranking.NUM_BINS} bins of equal width, all seeds of a group pooled. ECE is the mean of the runs, each by "
    "itself, ± its standard deviation; by chance, perfectly calibrated models would show this much on as many images."
)


def confusion_section(material: Material) -> Section:
    run = material.run
    if run is None or run.test is None:
        return _not_yet("confusion", "Confusion")
    classes, folder = material.classes, material.folder
    counts = np.asarray(run.test.confusion_matrix)
    share = confusion.confusion_panel(run.test, classes, folder, "confusion_normalised",
                                      f"{run.name}: % of the true class", normalised=True)  # fmt: skip
    plain = confusion.confusion_panel(run.test, classes, folder, "confusion_counts", f"{run.name}: images",
                                      normalised=False, small=share.wide)  # fmt: skip
    others = [
        confusion.confusion_panel(other.test, classes, folder, f"confusion_{group.slug}", f"{other.name}: %",
                                  normalised=True, small=True)
        for group in drawable(material.groups, 4)
        if (other := group.chosen) is not None and other.test is not None and other.name != run.name
    ]  # fmt: skip
    pairs = confusion.confused_pairs(counts, MOST_PAIRS)
    rows = [(classes[t], classes[p], f"{n:,}", f"{100 * part:.1f} %") for t, p, n, part in pairs]
    return Section("confusion", "Confusion", html.join(
        html.paragraph(CONFUSION_NOTE, kind="note"),
        html.panels([share, plain]),
        html.heading(f"Most frequent mistakes of {run.name}"),
        html.table(["true class", "taken for", "#images", "#of the true class"], rows) if rows
        else html.paragraph("It made no mistake on the test images."),
        html.details(f"The other groups ({len(others)})", html.panels(others)) if others else "",
    ))  # fmt: skip


def classes_section(material: Material, ranked: ranking.Ranking | None) -> Section:
    run = material.run
    if run is None or run.test is None:
        return _not_yet("classes", "Classes")
    per_class, classes = run.test.per_class, material.classes
    drawn = confusion.per_class_panels(per_class, material.folder, run.name)
    rows = [
        [row.name, f"{row.support:,}",
         *(f"{100 * row[key]:.1f}" for key in ("precision", "recall", "f1")),
         *((_three(ranked.roc.areas[k]), _three(ranked.pr.areas[k])) if ranked else ("–", "–"))]
        for k, row in enumerate(per_class)
    ]  # fmt: skip
    columns = ["class", "#support", "#precision", "#recall", "#F1", "#ROC AUC", "#AP"]
    listed = html.table(
        columns, rows, "Precision, recall and F1 in %. AUC and AP: this class against the rest."
    )
    return Section("classes", "Classes", html.join(
        html.paragraph(CLASSES_NOTE, kind="note"),
        html.panels([*drawn, listed]) if len(classes) <= 20
        else html.join(html.panels(drawn), html.details(f"All {len(classes)} classes as a table", listed)),
    ))  # fmt: skip


def _three(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "–"


def _ece(calibration: ranking.Calibration) -> str:
    mean, sd = calibration.ece.mean, calibration.ece.sd
    return f"{100 * mean:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}")


def rank_groups(material: Material) -> list[tuple[Group, ranking.Ranking]]:
    """One-vs-rest curves of the chosen run of each group that is drawn."""
    return [
        (group, ranking.rank(material.predictions[run.name]))
        for group in drawable(material.groups, MOST_RANKED)
        if (run := group.chosen) is not None and run.name in material.predictions
    ]


def probabilities_section(material: Material, ranked: Sequence[tuple[Group, ranking.Ranking]]) -> Section:
    if not ranked:
        return _not_yet("probabilities", "Probabilities")
    folder, drawn = material.folder, list[Drawn]()
    own = next((found for group, found in ranked if group is material.group), None)
    kinds: tuple[probabilities.Kind, ...] = ("roc", "pr")
    for kind in kinds:
        if own is not None and material.run is not None:
            drawn.append(probabilities.class_panel(own, material.classes, folder, kind, material.run.name))
        drawn.append(probabilities.group_panel(ranked, folder, kind))
    calibrations = [
        (group, ranking.calibrate([material.predictions[run.name] for run in group.tested
                                   if run.name in material.predictions]))
        for group, _ in ranked
    ]  # fmt: skip
    rows = [
        (named(group), group.chosen.name if group.chosen else "–",
         _three(found.roc.macro_area), _three(found.roc.micro_area),
         _three(found.pr.macro_area), _three(found.pr.micro_area), _ece(calibration), f"{100 * calibration.null:.1f}")
        for (group, found), (_, calibration) in zip(ranked, calibrations, strict=True)
    ]  # fmt: skip
    return Section("probabilities", "Probabilities", html.join(
        html.paragraph(CURVES_NOTE, kind="note"),
        html.table(RANKED, rows),
        html.panels(drawn),
        html.heading("Calibration"),
        html.paragraph(CALIBRATION_NOTE, kind="note"),
        html.panels(probabilities.calibration_panels(calibrations, folder)),
    ))  # fmt: skip


def weights_section(material: Material) -> Section:
    """First-layer weights of the chosen run of a few groups, the best first."""
    drawn, channels, without = list[Drawn](), 1, list[str]()
    groups = sorted(drawable(material.groups, MOST_WEIGHTS), key=lambda group: not group.row.best)
    for group in groups:
        run = group.chosen
        if run is None:
            continue
        try:
            weight = weights.first_layer(run)
        except RunError as error:
            material.missing.append(str(error))
            continue
        if weight is None:
            without.append(run.name)
        else:
            channels = weight.shape[1]
            drawn.append(weights.weight_panel(weight, material.folder, group.slug, run.name))
    if without:
        material.missing.append(f"No first-layer weights that see pixels: {', '.join(without)}.")
    body = html.join(
        html.paragraph(
            "What each unit of the first layer looks for. ", weights.colors_text(channels), kind="note"
        ),
        html.panels(drawn),
    )
    return Section(
        "weights", "Weights", body if drawn else html.paragraph("There are no first-layer weights to show.")
    )


def _not_yet(anchor: str, title: str) -> Section:
    return Section(anchor, title, html.paragraph("No run has test results for this yet."))
