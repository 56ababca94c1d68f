"""The commands `predict`, `evaluate` and `export`: what to do with a trained run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpc_mlp.cli.options import PATH, Command
from hpc_mlp.errors import printable
from hpc_mlp.terminal.output import say
from hpc_mlp.terminal.text import count, json_text

if TYPE_CHECKING:
    from hpc_mlp.inference.model import TrainedRun

run_argument = click.argument("run", type=PATH)
ensemble_option = click.option(
    "--ensemble",
    is_flag=True,
    help="Average all complete runs beside RUN that differ from it by seed and fold alone.",
)
calibrated_option = click.option(
    "--calibrated",
    is_flag=True,
    help="Divide the logits by the run's temperature, fitted on its validation images.",
)
trust_option = click.option(
    "--trust-plugins",
    is_flag=True,
    help="Run the Python files that the model comes from, though you have not trained with them.",
)
cpu_option = click.option("--cpu", is_flag=True, help="Do not use a GPU.")


@click.command(cls=Command)
@run_argument
@click.argument("images", metavar="IMAGE|FOLDER|ZIP...", nargs=-1, required=True, type=PATH)
@click.option(
    "--format",
    "form",
    type=click.Choice(["rich", "json", "csv"]),
    default="rich",
    help="In json and csv, probabilities are from 0 to 1. In csv, names that a spreadsheet would "
    "take for a formula begin with '.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    metavar="K",
    help="The K most probable classes. [default: 3 in a table, all in json and csv]",
)
@click.option(
    "--batch-size", metavar="N", type=click.IntRange(1), default=256, help="Images at once."
)
@ensemble_option
@calibrated_option
@trust_option
@cpu_option
def predict(
    run: Path,
    images: tuple[Path, ...],
    form: str,
    top_k: int | None,
    batch_size: int,
    ensemble: bool,
    calibrated: bool,
    trust_plugins: bool,
    cpu: bool,
) -> None:
    """Predict the classes of images with the run in the folder RUN.

    Images are decoded and resized exactly as `convert` does. Those that cannot be read are named,
    and do not stop the rest; the exit code is then 1.

    \b
    hpc-mlp predict runs/batchnorm-s0 cat.jpg dog.png
    hpc-mlp predict runs/batchnorm-s0 photos.zip --ensemble --format csv > out.csv
    """
    from hpc_mlp.cli.predict_output import WRITERS, Counted
    from hpc_mlp.files.wrong_path import want_run

    want_run(run, "predict")
    from hpc_mlp.inference.predict import predict as run_predict

    trained = _load(run, ensemble, cpu, trust_plugins, calibrated)
    predictions = Counted(run_predict(trained, images, batch_size=batch_size), form)
    try:
        failed = WRITERS[form](trained.classes, predictions, top_k)
    finally:
        predictions.hide()
    if failed:
        say(f"hpc-mlp: {count(failed, 'image')} could not be read.", err=True)
        sys.exit(1)


@click.command(cls=Command)
@run_argument
@click.argument("shards")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test")
@click.option("--format", "form", type=click.Choice(["rich", "json"]), default="rich")
@ensemble_option
@calibrated_option
@trust_option
@cpu_option
def evaluate(
    run: Path,
    shards: str,
    split: str,
    form: str,
    ensemble: bool,
    calibrated: bool,
    trust_plugins: bool,
    cpu: bool,
) -> None:
    """Measure the run in the folder RUN on another dataset with the same classes.

    Classes are matched by name. SHARDS is a folder written by `convert`, with the image size of the
    run.

    \b
    hpc-mlp evaluate runs/batchnorm-s0 other-shards
    hpc-mlp evaluate runs/batchnorm-s0 other-shards --split val --format json
    """
    from hpc_mlp.data.remote import is_url
    from hpc_mlp.files.wrong_path import want_run, want_shards

    want_run(run, "evaluate")
    if not is_url(shards):
        want_shards(Path(shards), f"evaluate {shlex.quote(printable(run))}")
    from hpc_mlp.config.plugins import FOLDER
    from hpc_mlp.inference.evaluate import evaluate as run_evaluate

    trained = _load(run, ensemble, cpu, trust_plugins, calibrated)
    metrics = run_evaluate(trained, shards, split=split, trust_plugins=trust_plugins)
    if (own := trained.config.metrics) and "metrics" not in metrics:
        _note(
            f"not measured: {', '.join(own)}, whose Python file you have not trained with. A copy "
            f"lies in {run / FOLDER}: read it, then allow it with --trust-plugins."
        )
    if form == "json":
        about = {
            "run": trained.name,
            "members": list(trained.members),
            "temperatures": trained.temperatures and list(trained.temperatures),
            "dataset": shards,
            "split": split,
        }
        say(json_text(about | metrics, indent=1))
    else:
        from hpc_mlp.cli.predict_output import print_metrics

        print_metrics(metrics, f"{trained.name} on {split} of {shards}")


@click.command(cls=Command)
@run_argument
@click.option("--format", "form", type=click.Choice(["onnx", "pt2", "safetensors"]), default="onnx")
@click.option(
    "--out",
    type=PATH,
    metavar="FILE",
    help="Where to. [default: the run's name with the format as suffix, here]",
)
@click.option(
    "--input",
    "dtype",
    type=click.Choice(["uint8", "float32"]),
    default="uint8",
    help="Type of the input tensor, with values in 0..255 either way.",
)
@calibrated_option
@click.option("--overwrite", is_flag=True, help="Replace FILE.")
@trust_option
def export(
    run: Path,
    form: str,
    out: Path | None,
    dtype: str,
    calibrated: bool,
    overwrite: bool,
    trust_plugins: bool,
) -> None:
    """Write the model of the run in the folder RUN as one file, and a model card (Markdown) beside
    it.

    onnx and pt2 take images [N, C, H, W] of the run's size, with values in 0..255, and give class
    probabilities [N, K]: the normalisation is inside, resizing is not. safetensors holds the
    weights alone, and the temperature of --calibrated in its metadata. The class names are in the
    file's metadata.

    \b
    hpc-mlp export runs/batchnorm-s0
    hpc-mlp export runs/batchnorm-s0 --format pt2 --out model.pt2
    """
    from hpc_mlp.files.wrong_path import want_run

    want_run(run, "export")
    from hpc_mlp.inference.export import export as run_export

    trained = _load(run, False, True, trust_plugins, calibrated)
    file, card = run_export(trained, form, out, dtype=dtype, overwrite=overwrite)  # type: ignore[arg-type]
    say(f"{file}  {file.stat().st_size / 1e6:,.1f} MB")
    say(f"{card}  model card")


def _load(
    run: Path, ensemble: bool, cpu: bool, trust_plugins: bool, calibrated: bool = False
) -> TrainedRun:
    """Load the run, and say on stderr what one should know of it."""
    from hpc_mlp.inference.model import load_run
    from hpc_mlp.machine.command_line import importing
    from hpc_mlp.runs.calibration import is_fitted

    with importing():
        import torch

    device = "cuda" if torch.cuda.is_available() and not cpu else "cpu"
    trained = load_run(
        run, ensemble=ensemble, calibrated=calibrated, device=device, trust_plugins=trust_plugins
    )
    if trained.state != "done":
        _note(f"{trained.name} is {trained.state}: these are the best weights so far.")
    for name, value in zip(trained.members, trained.temperatures or (), strict=False):
        if not is_fitted(value):
            _note(
                f"the temperature of {name} is {value:g}: its validation images have no best one."
            )
    if ensemble:
        if len(trained.members) == 1:
            _note("no other complete run differs by the seed alone: one run, no ensemble.")
        else:
            _note(f"averaging {len(trained.members)} runs: {', '.join(trained.members)}")
        folds = trained.config.value("data.folds") or 1
        if len(trained.members) % folds:
            _note(f"not all {folds} folds of each seed are complete: some are not in the average.")
    return trained


def _note(text: str) -> None:
    say(f"hpc-mlp: {text}", err=True)
