"""What the user's own Python files register by name: models, losses, metrics, augmentations.

A function counts where a run's `plugins` name its file, so that its sha256 is part of the run. What
a program or notebook registers becomes such a file (see `config.source_plugin`)."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, TypeVar

from hpc_mlp.config.plugins import Plugin
from hpc_mlp.config.sections import Config
from hpc_mlp.errors import OwnCodeError, UserError, unknown_name

F = TypeVar("F", bound=Callable[..., Any])
Kind = Literal["model", "loss", "metric", "augmentation"]

CROSS_ENTROPY = "cross_entropy"
MONITORS = ("loss", "accuracy", "f1", "last")
# Names that are taken.
BUILT_IN: dict[Kind, tuple[str, ...]] = {
    "model": ("mlp", "residual_mlp", "cnn", "resnet18"),
    "loss": (CROSS_ENTROPY,),
    # train.monitor has them, and the columns `test_images`, `val_loss`, `test_accuracy`.
    "metric": (*MONITORS, "images"),
    "augmentation": (),
}
# Where a configuration names one.
KEYS: dict[Kind, str] = {
    "model": "model.kind",
    "loss": "train.loss",
    "metric": "metric",
    "augmentation": "augment.custom",
}


@dataclass(frozen=True)
class Registered:
    """`higher_is_better`: of metrics."""

    function: Callable[..., Any]
    higher_is_better: bool = True


Table = dict[tuple[Kind, str], Registered]

_registered: Table = {}
# What this program or notebook registers; plugins of equal names, as its own become, replace it
# among all.
_of_program: Table = {}
# sha256 of a plugin → what it registered.
_of_plugin: dict[str, Table] = {}
# What the plugin that is being run has registered so far.
_running: Table | None = None


def register_model(name: str) -> Callable[[F], F]:
    """Decorator: `model.kind = name` builds what the function returns. It takes `(ModelConfig,
    image_shape (C, H, W), num_classes)` and returns a module that maps float32 [B, C, H, W] to
    logits float32 [B, K]."""
    return _register("model", name)


def register_loss(name: str) -> Callable[[F], F]:
    """Decorator: `train.loss = name` trains with the function, of one run's logits float32 [n, K]
    and labels int64 [n]. It returns the loss of each image, float [n], and is a function of these
    two alone. Their mean is taken, `train.class_weights` and `train.mixup` as for the cross
    entropy."""
    return _register("loss", name)


def register_metric(name: str, *, higher_is_better: bool = True) -> Callable[[F], F]:
    """Decorator: the function is computed of validation after each epoch, and of the test split at
    the end, by every run whose `plugins` name its file, and by all that the program or notebook
    trains which registers it. It takes probabilities float32 [N, K] and labels int64 [N] of the
    whole split, on the host, and returns one finite number.
    `train.monitor = name` makes it decide which epoch is best."""
    return _register("metric", name, higher_is_better)


def register_augmentation(name: str) -> Callable[[F], F]:
    """Decorator: `augment.custom = [name]` applies the function to training images, after the
    built-in augmentations. It takes images float32 [n, C, H, W] in [0, 1] and `draws`, whose
    `uniform(*shape)` and `normal(*shape)` are random numbers float32 [n, *shape], and returns
    images of the same shape. All chance must come from `draws`, and what happens to an image must
    not depend on the others: processes may share a batch."""
    return _register("augmentation", name)


def _register(kind: Kind, name: str, higher_is_better: bool = True) -> Callable[[F], F]:
    def add(function: F) -> F:
        ours = function.__module__.startswith("hpc_mlp.models.")
        if name in BUILT_IN[kind] and not ours:
            raise UserError(
                f"{KEYS[kind]} {name!r} is built in: register yours under another name."
            )
        if kind != "model" and not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise UserError(f"{KEYS[kind]} {name!r}: a name is of letters, digits and _.")
        made = Registered(function, higher_is_better)
        (_registered if _running is None else _running)[kind, name] = made
        if _running is None and not ours:
            _of_program[kind, name] = made
        return function

    return add


def load_plugins(plugins: Iterable[Plugin]) -> None:
    """Run the user's Python files, so that they can register what they have; what a file registered
    counts until another call names another file with the same name. UserError where a file fails,
    or two register the same name."""
    global _running
    owners: dict[tuple[Kind, str], Plugin] = {}
    for plugin in {plugin.sha256: plugin for plugin in plugins}.values():
        if plugin.sha256 not in _of_plugin:
            _running = {}
            try:
                _run(plugin)
                _of_plugin[plugin.sha256] = _running
            finally:
                _running = None
        for kind, name in _of_plugin[plugin.sha256]:
            if owner := owners.get((kind, name)):
                raise UserError(
                    f"{owner.path} and {plugin.path} both register {KEYS[kind]} {name!r}."
                )
            owners[kind, name] = plugin
    for key, plugin in owners.items():
        _registered[key] = _of_plugin[plugin.sha256][key]


def _run(plugin: Plugin) -> None:
    module = ModuleType(f"hpc_mlp_plugin_{plugin.path.stem}_{plugin.sha256[:12]}")
    module.__file__ = str(plugin.path)
    # Data classes and pickle look their module up there.
    sys.modules[module.__name__] = module
    try:
        exec(compile(plugin.source, str(plugin.path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"plugin {plugin.path} failed: {why}") from error


def registered(kind: Kind) -> dict[str, Registered]:
    """By name, whoever registered it."""
    return _named(kind, _registered)


def of_program(kind: Kind) -> dict[str, Registered]:
    """By name, what this program or notebook has registered, and no file that `plugins` name."""
    return _named(kind, _of_program)


def own(kind: Kind, plugins: Iterable[Plugin]) -> dict[str, Registered]:
    """By name, what these files have registered, in their order; nothing before they are loaded."""
    tables = [_of_plugin.get(plugin.sha256, {}) for plugin in plugins]
    return {name: found for table in tables for name, found in _named(kind, table).items()}


def _named(kind: Kind, table: Table) -> dict[str, Registered]:
    return {name: found for (of, name), found in table.items() if of == kind}


def call(kind: Kind, name: str, arguments: Sequence[Any], runs: Sequence[str]) -> Any:
    """What the registered function gives; OwnCodeError of these `runs` where it raises."""
    try:
        return _registered[kind, name].function(*arguments)
    except (Exception, SystemExit) as error:
        why = " ".join(str(error).split())
        raise OwnCodeError(
            f"{KEYS[kind]} {name!r} failed: {type(error).__name__}: {why}", runs
        ) from error


def check_names(config: Config, where: str, plugins: Sequence[Plugin] | None = None) -> None:
    """UserError where the configuration names a function that is neither built in nor registered by
    the run's own `plugins`, which have been run; None: while it is planned, by this program, whose
    functions become plugins (see `config.source_plugin`)."""

    def known(kind: Kind) -> dict[str, Registered]:
        return of_program(kind) if plugins is None else own(kind, plugins)

    named: list[tuple[str, str, list[str]]] = [
        ("train.loss", config.train.loss, [CROSS_ENTROPY, *known("loss")]),
        *(("augment.custom", name, [*known("augmentation")]) for name in config.augment.custom),
        ("train.monitor", config.train.monitor, [*MONITORS, *known("metric")]),
    ]
    for key, name, right in named:
        if name not in right:
            error = unknown_name(key, name, right)
            raise UserError(
                f"{where}: {error} One of your own stands in a Python file that `plugins` names, "
                "in the variant's file or in one for --config; a notebook registers it before it "
                "trains."
            )
