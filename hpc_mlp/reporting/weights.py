"""What the first layer looks for: its weights as images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from hpc_mlp.files.checked import damaged
from hpc_mlp.reporting import figures
from hpc_mlp.reporting.figures import Drawn
from hpc_mlp.reporting.predictions import Array
from hpc_mlp.runs.folder import BEST, Run
from hpc_mlp.terminal.text import count

MOST_UNITS = 36


def first_layer(run: Run) -> Array | None:
    """The first layer's weights float32 [units, C, H, W]; None where the first layer does not see
    pixels (a convolution, say) or no weights were kept. RunError where the file is damaged."""
    from safetensors import SafetensorError, safe_open

    path = run.path / BEST
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            weight = file.get_tensor("0.weight") if "0.weight" in names else None
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error), "Delete the run folder and train again.") from None
    shape = (run.config.dataset.channels, *run.config.dataset.image_size)
    if weight is None or weight.ndim != 2 or weight.shape[1] != math.prod(shape):
        return None
    return np.asarray(weight.astype(np.float32).reshape(len(weight), *shape))


def weight_tiles(weight: Array) -> Array:
    """The units with the largest weights as one sheet of tiles, RGB float [H, W, 3] in [0, 1], gaps
    NaN. Each tile has its own scale around zero (grey)."""
    units, _, height, width = weight.shape
    norms = np.linalg.norm(weight.reshape(units, -1), axis=1)
    picked = weight[np.argsort(-norms, kind="stable")[:MOST_UNITS]]
    columns = max(1, min(len(picked), round(math.sqrt(len(picked) * height / width))))
    rows = math.ceil(len(picked) / columns)
    gap = max(1, round(min(height, width) / 16))
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), np.nan)
    for number, tile in enumerate(picked):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        scale = float(np.abs(tile).max()) or 1.0
        # One channel is broadcast to three.
        image = 0.5 + 0.5 * np.moveaxis(tile, 0, -1) / scale
        sheet[top : top + height, left : left + width] = image
    return sheet


def weight_panel(weight: Array, folder: Path, slug: str, label: str) -> Drawn:
    sheet = weight_tiles(weight)
    shown = min(MOST_UNITS, len(weight))
    what = f"the {shown} of {len(weight):,} units with the largest weights"
    what = what if shown < len(weight) else f"all {count(shown, 'unit')}, the largest weights first"
    height = min(6.0, 0.75 + figures.WIDTH * sheet.shape[0] / sheet.shape[1])
    axes = figures.new_axes(label, what, "", height=height)
    alpha = np.isfinite(sheet).all(axis=2, keepdims=True)
    axes.imshow(np.concatenate([np.nan_to_num(sheet), alpha], axis=2), interpolation="none")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    return figures.save(axes, folder, f"weights_{slug}", f"First-layer weights: {label}")
