"""A trained run as one file for other programs: ONNX, PyTorch's pt2, or safetensors."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from os import PathLike
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor

from hpc_mlp._version import __version__
from hpc_mlp.errors import RunError, UserError, unknown_name
from hpc_mlp.files.atomic import write_bytes
from hpc_mlp.inference.card import is_card, model_card
from hpc_mlp.inference.given import given_run
from hpc_mlp.inference.model import Classifier, TrainedRun
from hpc_mlp.runs.folder import Json
from hpc_mlp.terminal.text import json_text

Format = Literal["onnx", "pt2", "safetensors"]
InputType = Literal["uint8", "float32"]

INPUT, OUTPUT = "images", "probabilities"
# The metadata key; in pt2 an extra file of that name and .json.
METADATA = "hpc_mlp"


def export(
    run: TrainedRun | str | PathLike[str],
    format: Format = "onnx",
    out: str | Path | None = None,
    *,
    dtype: InputType = "uint8",
    calibrated: bool = False,
    overwrite: bool = False,
    trust_plugins: bool = False,
) -> tuple[Path, Path]:
    """Write the model to `out` (default: the run's name, in the working folder) and a model card
    beside it (its name with the suffix .md; where the card of another file has that, with .md after
    its own); → the two paths.

    onnx, pt2: input `images` [N, C, H, W] of type `dtype`, values in 0..255, of the run's size, any
    N; output `probabilities` float32 [N, K]. The normalisation is inside, resizing is not.
    safetensors: the weights under the names of the plain module. `metadata(run)` is inside as JSON:
    in ONNX and safetensors under the metadata key "hpc_mlp", in pt2 as the extra file
    "hpc_mlp.json".

    `calibrated`: the probabilities are those of the logits divided by the run's temperature; of
    safetensors, which leaves the softmax to its reader, the temperature is in the metadata.
    `trust_plugins`: as of `load_run`. UserError where a file exists or the packages for ONNX are
    missing, RunError where the export fails."""
    if format not in _FORMATS:
        raise unknown_name("format", format, _FORMATS)
    if dtype not in ("uint8", "float32"):
        raise unknown_name("input type", dtype, ("uint8", "float32"))
    run = given_run(run, calibrated=calibrated, trust_plugins=trust_plugins)
    file = Path(out) if out is not None else Path(f"{run.name}.{format}")
    card = file.with_suffix(".md")
    if file == card:
        raise UserError(f"{file} would be the name of the model card: give --out another suffix.")
    if not overwrite and _is_of_another(card, file):
        card = Path(f"{file}.md")
    for path in (file, card):
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists. Choose another --out, or replace it with --overwrite.")
    data = _FORMATS[format](run, dtype)
    try:
        write_bytes(file, data)
        write_bytes(card, model_card(run, file.name, format, dtype).encode())
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error.strerror or error}.") from None
    return file, card


def _is_of_another(card: Path, file: Path) -> bool:
    """Whether `card` is a model card of ours, of another file: mostly of another format."""
    try:
        text = card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return is_card(text) and f'"{file.name}"' not in text


def metadata(run: TrainedRun) -> Json:
    """What a user of the file must know: classes in the order of the outputs, size and kind of the
    images, the normalisation, where the model comes from."""
    return {
        "classes": list(run.classes),
        "image_size": [run.image.height, run.image.width],
        "channels": run.image.channels,
        "mean": list(run.mean),
        "std": list(run.std),
        "model": run.config.value("model"),
        "runs": list(run.members),
        # Of these runs, where the probabilities are those of logits / temperature; else null.
        "temperatures": run.temperatures and list(run.temperatures),
        "variant": run.config.variant,
        "dataset_digest": run.config.dataset.digest,
        "hpc_mlp": __version__,
    }


def _metadata_text(run: TrainedRun) -> str:
    return json_text(metadata(run))


def _program(run: TrainedRun, dtype: InputType) -> torch.export.ExportedProgram:
    model: Classifier = copy.deepcopy(run.model).cpu()
    # A batch of 1 would become a constant.
    shape = (2, run.image.channels, run.image.height, run.image.width)
    example: Tensor = torch.zeros(shape, dtype=getattr(torch, dtype))
    try:
        return torch.export.export(model, (example,), dynamic_shapes=_shapes())
    # A user's own model may hold what cannot be traced.
    except Exception as error:
        raise RunError(
            f"the model of {run.name} cannot be exported ({_first_line(error)}). "
            "Its weights can: --format safetensors."
        ) from error


def _shapes() -> dict[str, dict[int, torch.export.Dim]]:
    return {INPUT: {0: torch.export.Dim("batch")}}


def _pt2(run: TrainedRun, dtype: InputType) -> bytes:
    buffer = io.BytesIO()
    with _quiet():
        extra = {f"{METADATA}.json": _metadata_text(run)}
        torch.export.save(_program(run, dtype), buffer, extra_files=extra)
    return buffer.getvalue()


def _onnx(run: TrainedRun, dtype: InputType) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError(
            "export to ONNX needs two more packages: pip install 'hpc-mlp[export]'. "
            "Without: --format pt2 or safetensors."
        ) from None
    with _quiet():
        program = _program(run, dtype)
        try:
            converted = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=_shapes(),
                verbose=False,
            )
            assert converted is not None
            converted.model.metadata_props[METADATA] = _metadata_text(run)
            return bytes(converted.model_proto.SerializeToString())
        # More than 2 GB, or an operation that ONNX does not have.
        except Exception as error:
            raise RunError(
                f"the model of {run.name} cannot be written as ONNX ({_first_line(error)}). Try "
                "--format pt2."
            ) from error


def _safetensors(run: TrainedRun, dtype: InputType) -> bytes:
    if len(run.model.members) > 1:
        raise UserError("an ensemble is no single set of weights: use --format onnx or pt2.")
    state = run.model.members[0].state_dict()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    return save(tensors, {METADATA: _metadata_text(run)})


_FORMATS: dict[str, Callable[[TrainedRun, InputType], bytes]] = {
    "onnx": _onnx,
    "pt2": _pt2,
    "safetensors": _safetensors,
}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters tell of their insides, and print whole graphs where they fail."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        nowhere = io.StringIO()
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
