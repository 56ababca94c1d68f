"""A run as the Python functions take it: a folder, or what `load_run` returned."""

from __future__ import annotations

from os import PathLike

from hpc_mlp.errors import UserError
from hpc_mlp.inference.model import TrainedRun, load_run


def given_run(
    run: TrainedRun | str | PathLike[str],
    *,
    ensemble: bool = False,
    calibrated: bool = False,
    trust_plugins: bool = False,
) -> TrainedRun:
    """Loaded; one that is so already, as it is. UserError where that is not what is asked for."""
    if not isinstance(run, TrainedRun):
        return load_run(run, ensemble=ensemble, calibrated=calibrated, trust_plugins=trust_plugins)
    if ensemble:
        raise UserError("ensemble is chosen when the run is loaded: load_run(path, ensemble=True).")
    if calibrated and run.temperatures is None:
        raise UserError(
            "calibrated is chosen when the run is loaded: load_run(path, calibrated=True)."
        )
    return run
