"""The page's sections on all runs together: summary, training, throughput. Each is one function from the
material to HTML; where material is missing, the section says so."""

from __future__ import annotations

from hpc_mlp.reporting import curves, html, table
from hpc_mlp.reporting.figures import PALETTE
from hpc_mlp.reporting.groups import Group, drawable
from hpc_mlp.reporting.html import Html, Section
from hpc_mlp.reporting.material import Material
from hpc_mlp.reporting.summary import Summary

ELSEWHERE = ("images_per_second", "seconds")  # they have a section of their own


TRAINING_NOTE = (
    "Bold lines are means over seeds as far as all seeds went, bands are ± one standard deviation, and thin "
    "lines single seeds. A dot marks a seed's best epoch, whose weights are the ones tested; a bar, where "
    "early stopping ended it."
)
THROUGHPUT_NOTE = (
    "Images per second and run while training. Runs of one bank are trained together, in one process on one "
    "device: the bank as a whole passes as many times more images as it has runs."
)


def named(group: Group, text: object = "") -> Html:
    """A group's name behind a dot of its colour."""
    return Html(html.swatch(group.index % len(PALETTE)) + html.text(text or group.label))


def summary_section(material: Material) -> Section:
    """The table with its sentences, and what is missing from this page."""
    summary = material.summary
    names = [name for name in table.default_columns(summary) if name not in ELSEWHERE]
    columns = [table.column_of(name, summary) for name in names]
    titles = [("" if column.left else "#") + column.title for column in columns]
    rows = []
    for group in material.groups:
        cells: list[object] = [column.cell(group.row) for column in columns]
        cells[0] = named(group, cells[0])
        rows.append(cells)
    marked = next((g.index for g in material.groups if g.row.best), -1)
    parts: list[object] = [
        html.table(titles, rows, marked=marked),
        _comparisons(summary),
        *(html.paragraph(line, kind="note") for line in table.legend(summary, names)),
        html.bullets(summary.sentences) if summary.sentences else "",
    ]
    if material.run is not None and material.group is not None:
        seeds = len(material.group.tested)
        why = "the lowest validation loss" + (f" of its {seeds} seeds" if seeds > 1 else "")
        one = (
            f"Where this page shows one run, it is {material.run.name}: of the best group by mean validation "
        )
        parts.append(html.paragraph(one, f"loss, {why}."))
    return Section("summary", "Summary", html.join(*parts))


def _comparisons(summary: Summary) -> Html:
    cells = table.comparison_cells(summary)
    if not cells:
        return Html("")
    return html.table([cells[0][0], *(f"#{title}" for title in cells[0][1:])], cells[1:])


def missing_note(material: Material) -> Html:
    """What could not be shown; empty where nothing is missing. For the top of the page, once all is drawn."""
    if not material.missing:
        return Html("")
    lines = list(dict.fromkeys(material.missing))
    return Html(f'<div class="missing"><b>Missing from this page</b>{html.bullets(lines)}</div>')


def training_section(material: Material) -> Section:
    groups = [group for group in material.groups if any(run.metrics for run in group.runs)]
    if not groups:
        material.missing.append("No run has finished an epoch yet: no training curves.")
        return Section("training", "Training", html.paragraph("No run has finished an epoch yet."))
    panels = drawable(groups, curves.MOST_PANELS)
    lines = drawable(groups, curves.MOST_LINES)
    left_out = ""
    if len(groups) > len(panels):
        left_out = (f"Of {len(groups)} groups, the panels show the first and the {len(panels) - 1} best by "
                    f"validation loss, the overview the {len(lines)} best. ")  # fmt: skip
    return Section("training", "Training", html.join(
        html.paragraph(left_out, TRAINING_NOTE, kind="note"),
        html.panels(curves.validation_panels(lines, material.folder)),
        html.heading("Training and validation loss, on one scale"),
        html.panels(curves.loss_panels(panels, material.folder)),
    ))  # fmt: skip


def throughput_section(material: Material) -> Section:
    drawn = curves.throughput_panel(material.groups, material.folder)
    if drawn is None:
        return Section("throughput", "Throughput", html.paragraph("No run has finished an epoch yet."))
    rows = []
    for group in material.groups:
        results = [run.result for run in group.runs if run.result]
        if results:
            banks = sorted({result.bank_size or 1 for result in results})
            seconds = sum(result.seconds or 0.0 for result in results)
            rates = [rate for run in group.runs if (rate := curves.throughput(run))] or [0.0]
            devices = sorted({str(result.device) for result in results})
            rows.append((named(group), f"{sum(rates) / len(rates):,.0f}", f"{seconds / len(results):,.1f}",
                         " or ".join(map(str, banks)), ", ".join(devices)))  # fmt: skip
    columns = ["group", "#images/s and run", "#seconds a run", "#runs in the bank", "device"]
    listed = html.table(columns, rows) if rows else ""
    note = html.paragraph(THROUGHPUT_NOTE, kind="note")
    return Section("throughput", "Throughput", html.join(note, html.panels([drawn]), listed))
