"""Variants and settings as Python values, as `hpc_mlp.train` and `hpc_mlp.submit` take them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

from hpc_mlp.config.assignments import parse_set
from hpc_mlp.config.loading import build_config, check_key, merge, set_key, shipped
from hpc_mlp.config.plan import (
    RunSpec,
    Variant,
    check_distinct,
    load_variant,
    parse_seeds,
    parse_variants,
)
from hpc_mlp.config.plugins import Plugin
from hpc_mlp.config.registry import Kind, Registered, of_program
from hpc_mlp.config.search import SettingsSearch, plan_search
from hpc_mlp.config.sections import Config, flatten
from hpc_mlp.config.source_plugin import source_plugin
from hpc_mlp.errors import UserError, unknown_name

# Words as for --set, or {"optim.lr": 1e-2}, or {"optim": {"lr": 1e-2}}.
Settings = Iterable[str] | Mapping[str, Any]
# Settings, or what builds a module (see `config.registry.register_model`).
VariantValue = Mapping[str, Any] | Callable[..., Any]
Variants = str | Iterable[str | Mapping[str, VariantValue]] | Mapping[str, VariantValue]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def plan_sets(
    variants: Variants,
    seeds: str | Iterable[int],
    config_files: Sequence[Path],
    sets: dict[str, list[Any]],
    search: SettingsSearch | None = None,
) -> list[RunSpec]:
    """As `plan.make_specs` from words; `sets` as of `make_sets`."""
    chosen = parse_seeds(seed_words(seeds))
    specs = plan_search(search, make_variants(variants), chosen, config_files, sets)
    # Many runs share a function. Not for longer: what it uses may change between calls.
    stored = cache(source_plugin)
    return [_with_source(spec, stored) for spec in specs]


def seed_words(seeds: str | Iterable[int]) -> str:
    if isinstance(seeds, int):
        raise UserError(f"seeds={seeds}: write seeds=range({seeds}), or [{seeds}] for that one.")
    return seeds if isinstance(seeds, str) else ",".join(map(str, seeds))


def _with_source(spec: RunSpec, stored: Callable[[Kind, str, Registered], Plugin]) -> RunSpec:
    """With a plugin for each function that it uses and that this program or notebook has
    registered; it uses every metric. UserError where one cannot be stored."""
    config = spec.config
    used: dict[Kind, Sequence[str]] = {
        "model": [config.model.kind],
        "loss": [config.train.loss],
        "augmentation": config.augment.custom,
        "metric": list(of_program("metric")),
    }
    plugins = [
        stored(kind, name, found)
        for kind, names in used.items()
        for name in names
        if (found := of_program(kind).get(name)) and not _is_of(found, name, spec.plugins)
    ]
    return replace(spec, plugins=(*spec.plugins, *plugins)) if plugins else spec


def _is_of(found: Registered, name: str, plugins: Iterable[Plugin]) -> bool:
    """Whether it stands in one of these files, which the program has imported as well."""
    code = getattr(inspect.unwrap(found.function), "__code__", None)
    file = Path(code.co_filename).absolute() if code else None
    return any(plugin.path.stem == name or plugin.path.absolute() == file for plugin in plugins)


def make_sets(
    settings: Settings, sections: Mapping[str, Any], folds: int | None = None
) -> dict[str, list[Any]]:
    """Key → its values, of which several make a sweep. A list is several values, but for a key that
    takes a list (`model.hidden`), where a list of lists is. `sections`: `{"train": {"epochs": 1}}`;
    they count more than `settings`."""
    for name in sections:
        if name not in Config.model_fields:
            keys = [key for key in _defaults() if key.rpartition(".")[2] == name]
            raise UserError(
                f"{unknown_name('argument', name, keys or Config.model_fields)} Settings are "
                "written settings={'train.epochs': 20} or train={'epochs': 20}."
            )
    if isinstance(settings, str):
        settings = [settings]
    if isinstance(settings, Mapping):
        sets = _values(settings, "settings")
    else:
        sets = parse_set(settings)
    sets |= _values(sections, "settings")
    return sets if folds is None else sets | {"data.folds": [folds]}


def make_variants(variants: Variants) -> list[Variant]:
    """Names as of --variants; or a mapping name → settings or → what builds a model; or a list of
    both. A name of a shipped variant begins with its settings, any other with the defaults."""
    parts = [variants] if isinstance(variants, str | Mapping) else list(variants)
    words = [part for part in parts if isinstance(part, str)]
    own = [part for part in parts if isinstance(part, Mapping)]
    for part in parts:
        if not isinstance(part, str | Mapping):
            raise UserError(
                f"variants: {_short(part)} is no name. Give it one: variants={{'mine': …}}, with "
                "settings or with the function that builds the model."
            )
    made = parse_variants(",".join(words)) if words or not own else []
    made += [_variant(name, value) for mapping in own for name, value in mapping.items()]
    return check_distinct(made)


def _variant(name: str, value: VariantValue) -> Variant:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"variant {name!r}: a name of letters, digits and _ . + - is wanted, as it names "
            "folders."
        )
    if isinstance(value, FunctionType | type):
        value = {"model.kind": value}
    if not isinstance(value, Mapping):
        raise UserError(
            f"variant {name!r}: give settings, such as {{'model.dropout': 0.2}}, or the function "
            f"or class that builds the model anew for each seed, not {_short(value)}."
        )
    base = load_variant(name) if name in shipped("variants") else Variant(name, {})
    tree, plugins = merge(base.tree), list(base.plugins)
    values = _values(value, f"variant {name!r}")
    for key, alternatives in values.items():
        if len(alternatives) > 1:
            raise UserError(
                f"variant {name!r}: {key} has {len(alternatives)} values; a sweep is made by "
                "settings, and several variants by several names."
            )
        if key in base.fixed:
            raise UserError(
                f"variant {name!r}: {key} is what makes {name}; give yours another name."
            )
        [chosen] = alternatives
        if key == "model.kind" and isinstance(chosen, FunctionType | type):
            if name in shipped("variants"):
                raise UserError(f"variant {name!r} is a shipped one; give your model another name.")
            plugins.append(source_plugin("model", name, Registered(chosen)))
            chosen = name
        set_key(tree, key, chosen)
    build_config(tree, f"variant {name!r}")
    return Variant(name, tree, (*base.fixed, *values), tuple(plugins))


def _short(value: object) -> str:
    return f"an object of {type(value).__name__}"


def _values(tree: Mapping[str, Any], where: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for key, value in _leaves(tree):
        check_key(key, where)
        plain = _plain(value)
        takes_list = isinstance(_defaults().get(key), list)
        several = isinstance(plain, list) and (
            not takes_list or (bool(plain) and all(isinstance(item, list) for item in plain))
        )
        found[key] = plain if several else [plain]
        if not found[key]:
            raise UserError(f"{where}: {key} has no value.")
    return found


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _plain(value: Any) -> Any:
    """As TOML has it: numpy's numbers and arrays, ranges and tuples too."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple | range) else value


@cache
def _defaults() -> dict[str, Any]:
    return flatten(Config())
