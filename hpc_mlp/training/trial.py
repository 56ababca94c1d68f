"""Each model tried before it trains: whether it works alone, so that one that cannot fails without
its bank, and what it takes of memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hpc_mlp.bank.bank import STACKS
from hpc_mlp.bank.evaluate import EVAL_BATCH
from hpc_mlp.bank.loss import registered_loss
from hpc_mlp.config.plan import RunSpec
from hpc_mlp.config.registry import CROSS_ENTROPY
from hpc_mlp.data.manifest import Manifest
from hpc_mlp.data.own_augment import AugmentationError, Broken, augment_own
from hpc_mlp.errors import HpcMlpError, OwnCodeError, RunError, UserError
from hpc_mlp.machine.memory import machine_memory
from hpc_mlp.models.registry import BUILT_IN, build_module, count_parameters

# Weights, their gradient, and the optimizer's two moments: float32 each.
BYTES_PER_PARAMETER = 16


def shape_of(spec: RunSpec, manifest: Manifest) -> nn.Module | None:
    """The run's module without memory for its weights; None where a plugin's cannot be built so.
    UserError where a built-in one cannot be built at all."""
    model = spec.config.model
    try:
        with torch.device("meta"):
            return build_module(model, _image_shape(manifest), len(manifest.classes), spec.seed)
    except HpcMlpError:
        raise
    except Exception as error:
        if model.kind in BUILT_IN:
            raise UserError(
                f"{spec.name} cannot be built: {' '.join(str(error).split())}"
            ) from None
        return None


def check_memory(spec: RunSpec, manifest: Manifest, device: torch.device) -> None:
    """UserError where the run's weights can't be trained in the memory of this device, whatever
    else is in it."""
    module = shape_of(spec, manifest)
    count = 0 if module is None else count_parameters(module)
    there = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else machine_memory()
    needed = BYTES_PER_PARAMETER * count
    if needed > there:
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine"
        raise UserError(
            f"{spec.name} has {count:,} parameters: weights, gradient and the optimizer's two "
            "moments take "
            f"{needed / 2**30:,.1f} GiB ({BYTES_PER_PARAMETER} bytes for each), {where} has "
            f"{there / 2**30:,.1f}. "
            "Make model.hidden, or the images, smaller."
        )


def member_bytes(spec: RunSpec, manifest: Manifest) -> int:
    """About what a member of a bank takes of a GPU's memory, rather more, in bytes.

    Of each parameter, float32 each: weight, gradient, two moments, and while the step is captured
    the weight and the moments once more; with an average that and the weight's copy while it stands
    in: 28 or 36. In an update Lion takes 4 more, and Muon 20 of one hidden weight after another. Of
    each image of a batch 20 a pixel (its stream's, if it has that alone) and 80 a hidden unit of an
    MLP, in the eager steps before the capture and in the graph; in evaluation 20. What lies between
    the layers of other models is not counted."""
    config, module = spec.config, shape_of(spec, manifest)
    parameters = 0 if module is None else count_parameters(module)
    weights = [] if module is None else [p.numel() for p in module.parameters() if p.dim() > 1]
    update = {"lion": 4 * parameters, "muon": 20 * max(weights[1:-1], default=0)}
    hidden = sum(config.model.hidden) if config.model.kind == "mlp" else 0
    if config.model.kind == "residual_mlp":
        # What a block adds, its norm and the wider layer within.
        hidden = config.model.hidden[0] * (1 + config.model.blocks * (2 + config.model.expansion))
    images = max(config.train.batch_size, EVAL_BATCH * 20 // 80)
    each = 36 if config.train.ema else 28
    held = each * parameters + update.get(config.optim.name, 0)
    return held + images * (20 * manifest.num_features + 80 * hidden)


def fitting(specs: Sequence[RunSpec], manifest: Manifest, free: int) -> list[list[RunSpec]]:
    """Neighbours together, as many as so many bytes of a GPU hold. One that needs more is alone."""
    parts: list[list[RunSpec]] = []
    left = 0.0
    for spec in specs:
        needed = member_bytes(spec, manifest)
        if not parts or needed > left:
            parts.append([])
            # The rest is for cuBLAS (67 MB), and for gaps.
            left = 0.9 * free
        parts[-1].append(spec)
        left -= needed
    return parts


def failure(spec: RunSpec, manifest: Manifest, device: torch.device) -> Exception | None:
    """Why the run's model cannot be trained or evaluated, by itself and on two black images; None
    where it can.

    It is built for this alone: neither weights nor random draws of the training are touched.
    Stacked MLPs are our own code, whatever their settings, and are not tried: 20 of them would take
    a second, and torch without memory for the weights would first import its compiler. Losses
    and augmentations of the user's own are."""
    model, expected = spec.config.model, (2, len(manifest.classes))
    try:
        _try_loss(spec, expected[1], device)
        _try_augmentations(spec, manifest, device)
    except OwnCodeError as error:
        return error
    if model.kind in STACKS:
        return None
    mixed = torch.autocast(
        device.type, torch.bfloat16, enabled=spec.config.train.precision == "bf16"
    )
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), mixed:
            module = build_module(model, _image_shape(manifest), expected[1], spec.seed).to(device)
            images = torch.zeros(2, *_image_shape(manifest), device=device)
            logits = module.train()(images)
            if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != expected:
                found = (
                    list(logits.shape)
                    if isinstance(logits, torch.Tensor)
                    else type(logits).__name__
                )
                raise RunError(
                    f"the model gives {found} for two images; logits {list(expected)} are needed."
                )
            labels = torch.zeros(2, dtype=torch.int64, device=device)
            torch.autograd.backward(F.cross_entropy(logits.float(), labels))
            with torch.no_grad():
                module.eval()(images)
    except Exception as error:
        return error
    return None


def _try_loss(spec: RunSpec, classes: int, device: torch.device) -> None:
    if (name := spec.config.train.loss) != CROSS_ENTROPY:
        logits = torch.linspace(-1, 1, 2 * classes, device=device).view(2, classes).requires_grad_()
        labels = torch.tensor([0, classes - 1], device=device)
        loss = registered_loss(name, logits, labels, [spec.name])
        torch.autograd.backward(loss.sum())
        if not bool(loss.isfinite().all()):
            raise OwnCodeError(f"train.loss {name!r} gives {loss.tolist()}.", [spec.name])


def _try_augmentations(spec: RunSpec, manifest: Manifest, device: torch.device) -> None:
    if names := spec.config.augment.custom:
        count = 2 * manifest.num_features
        images = torch.linspace(0, 1, count, device=device).view(2, *_image_shape(manifest))
        broken: Broken = {}
        places = np.arange(2)
        augment_own(images, names, seed=spec.seed, epoch=0, step=0, rows=places, broken=broken)
        for (seed, name), flag in broken.items():
            if flag:
                raise AugmentationError(name, seed, "gives what is not finite.")


def _image_shape(manifest: Manifest) -> tuple[int, int, int]:
    return (manifest.channels, *manifest.image_size)
