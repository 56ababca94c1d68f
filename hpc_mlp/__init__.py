"""hpc-mlp: from a ZIP of class-labelled images to a fair comparison of classifiers.

import hpc_mlp

hpc_mlp.convert("photos.zip", "shards")
runs = hpc_mlp.train("shards", variants="all", seeds=range(3))
hpc_mlp.table(runs)
run = hpc_mlp.load_run(runs[0])
for prediction in hpc_mlp.predict(run, "cat.jpg"):
    print(prediction.name, prediction.top(3))

A notebook shows what the functions return. All raise `hpc_mlp.errors.UserError` where the input is
wrong and `RunError` where the work failed. `import hpc_mlp` alone imports nothing else."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hpc_mlp._version import __version__ as __version__

if TYPE_CHECKING:
    from hpc_mlp.api import convert, submit, track, train
    from hpc_mlp.config.registry import (
        register_augmentation,
        register_loss,
        register_metric,
        register_model,
    )
    from hpc_mlp.data.inspection import inspect
    from hpc_mlp.inference.evaluate import evaluate
    from hpc_mlp.inference.export import export
    from hpc_mlp.inference.model import load_run
    from hpc_mlp.inference.predict import predict
    from hpc_mlp.launch.clean import clean
    from hpc_mlp.launch.show import status
    from hpc_mlp.reporting.pair_output import compare
    from hpc_mlp.reporting.shown import doubtful, report, summary, table

__all__ = [
    "clean",
    "compare",
    "convert",
    "doubtful",
    "evaluate",
    "export",
    "inspect",
    "load_run",
    "predict",
    "register_augmentation",
    "register_loss",
    "register_metric",
    "register_model",
    "report",
    "status",
    "submit",
    "summary",
    "table",
    "track",
    "train",
]

_HOMES = {
    "convert": "hpc_mlp.api",
    "inspect": "hpc_mlp.data.inspection",
    "train": "hpc_mlp.api",
    "submit": "hpc_mlp.api",
    "track": "hpc_mlp.api",
    "clean": "hpc_mlp.launch.clean",
    "compare": "hpc_mlp.reporting.pair_output",
    "status": "hpc_mlp.launch.show",
    "table": "hpc_mlp.reporting.shown",
    "summary": "hpc_mlp.reporting.shown",
    "report": "hpc_mlp.reporting.shown",
    "doubtful": "hpc_mlp.reporting.shown",
    "load_run": "hpc_mlp.inference.model",
    "predict": "hpc_mlp.inference.predict",
    "evaluate": "hpc_mlp.inference.evaluate",
    "export": "hpc_mlp.inference.export",
    "register_augmentation": "hpc_mlp.config.registry",
    "register_loss": "hpc_mlp.config.registry",
    "register_metric": "hpc_mlp.config.registry",
    "register_model": "hpc_mlp.config.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if "inference" in _HOMES[name] and "torch" not in sys.modules:
        # Its home imports torch, whose threads take from the environment how long they spin. Where
        # others are busy on the cores that costs a later `train` up to 35 % of its time.
        import_module("hpc_mlp.launch.cores").share_cores()
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
