"""Everything the page is made of, read once: what cannot be read is noted and said on the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hpc_mlp.data.manifest import Manifest
from hpc_mlp.errors import HpcMlpError, UserError
from hpc_mlp.reporting.answers import Predictions, read_predictions
from hpc_mlp.reporting.groups import Group, winner
from hpc_mlp.reporting.summary import Summary
from hpc_mlp.runs.folder import Run


@dataclass
class Material:
    """Everything the sections draw from. `group` and `run` are the ones chosen on validation data."""

    summary: Summary
    groups: list[Group]
    folder: Path  # for the figures
    shards: Path | None
    group: Group | None = None
    run: Run | None = None
    manifest: Manifest | None = None
    predictions: dict[str, Predictions] = field(default_factory=dict)  # by run name
    missing: list[str] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        run = self.run or self.groups[0].runs[0]
        return list(run.config.dataset.classes)

    @property
    def chosen_predictions(self) -> Predictions | None:
        return self.predictions.get(self.run.name) if self.run else None


def gather(summary: Summary, groups: list[Group], folder: Path, shards: Path | None) -> Material:
    """Read the predictions and the manifest; what cannot be read is noted, not raised."""
    group = winner(groups)
    run = group.chosen if group else None
    material = Material(summary, groups, folder, shards, group, run)
    if material.shards is None:
        path = (run or groups[0].runs[0]).config.dataset.path
        material.shards = Path(path) if path else None
    for tested in (run for group in groups for run in group.tested):
        try:
            found = read_predictions(tested)
        except HpcMlpError as error:
            material.missing.append(str(error))
            continue
        if found is None:
            material.missing.append(f"{tested.name} has no predictions.npz: no curves or calibration for it.")
        else:
            material.predictions[tested.name] = found
    try:
        if material.shards is None:
            raise UserError(
                "The runs do not say where their shards are: no images and no dataset statistics."
            )
        material.manifest = Manifest.load(material.shards, "report --data")
        if material.manifest.digest != (run or groups[0].runs[0]).config.dataset.digest:
            material.manifest = None
            raise UserError(f"{material.shards} holds another dataset than the runs were trained on.")
    except UserError as error:
        material.missing.append(f"No test images and no dataset statistics: {error}")
    return material
