"""The weights of a plain module as a safetensors file: loading it never executes code."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hpc_mlp.errors import RunError


def load_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by their names in the plain module. RunError where the file cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot read {path}: {error}") from None
