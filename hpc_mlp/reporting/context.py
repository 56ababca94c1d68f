"""Everything the page is made of, read once: what cannot be read is noted and said on the page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from hpc_mlp.data.manifest import Manifest
from hpc_mlp.errors import HpcMlpError, UserError
from hpc_mlp.reporting.groups import Group
from hpc_mlp.reporting.naming import labelled
from hpc_mlp.reporting.predictions import RunPredictions, read_predictions
from hpc_mlp.reporting.summary import Summary
from hpc_mlp.runs.folder import Run
from hpc_mlp.runs.records import Dataset


class Shards(NamedTuple):
    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class Context:
    """`groups`: those of the summary that are not damaged. `group` and `run`: chosen on validation
    data, where there is a run with test metrics. `folder`: for the figures. `predictions`: by run
    folder, as several folders may have runs of one name. `missing`: what could not be read, in
    sentences."""

    summary: Summary
    groups: list[Group]
    group: Group | None
    run: Run | None
    folder: Path
    shards: Shards | None
    predictions: dict[Path, RunPredictions]
    missing: list[str]

    @property
    def dataset(self) -> Dataset:
        return (self.run or self.groups[0].runs[0]).config.dataset

    @property
    def chosen_predictions(self) -> RunPredictions | None:
        return self.predictions.get(self.run.path) if self.run else None


def read_context(summary: Summary, folder: Path, shards: Path | None) -> Context | None:
    """Read the predictions and the manifest; None where no run can be shown. `shards` overrides the
    folder that the runs name."""
    groups = labelled([row for row in summary.rows if row.runs[0].state != "damaged"])
    if not groups:
        return None
    # Of several datasets' best groups, the one with the most runs.
    best = [group for group in groups if group.best]
    group = max(best, key=lambda group: len(group.tested), default=None)
    run = group.chosen if group else None
    predictions: dict[Path, RunPredictions] = {}
    missing: list[str] = []
    for tested in (run for group in groups for run in group.tested):
        try:
            if found := read_predictions(tested):
                predictions[tested.path] = found
            else:
                missing.append(
                    f"{tested.name} has no predictions.npz: no curves or calibration for it."
                )
        except HpcMlpError as error:
            missing.append(str(error))
    context = Context(summary, groups, group, run, folder, None, predictions, missing)
    try:
        return replace(context, shards=read_shards(shards, context.dataset))
    except UserError as error:
        missing.append(f"No test images and no dataset statistics: {error}")
        return context


def read_shards(folder: Path | None, dataset: Dataset, option: str = "report --data") -> Shards:
    """UserError where they are gone, or of another dataset than that of the runs."""
    folder = folder or (Path(dataset.path) if dataset.path else None)
    if folder is None:
        raise UserError("The runs do not say where their shards are.")
    manifest = Manifest.load(folder, option)
    if manifest.digest != dataset.digest:
        raise UserError(f"{folder} holds another dataset than the runs were trained on.")
    return Shards(folder, manifest)
