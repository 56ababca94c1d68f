"""From TOML files and `--set` to a `Config`: nested tables laid over one another, then validated."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpc_mlp.config import Config, known_keys
from hpc_mlp.errors import UserError, unknown_name

Tree = dict[str, Any]


def get_key(tree: Mapping[str, Any], dotted: str) -> Any:
    section, _, key = dotted.partition(".")
    return tree.get(section, {}).get(key)


def set_key(tree: Tree, dotted: str, value: Any) -> None:
    """Set `section.key` (or `section.table.key`, for the free tables) in a nested dict, in place."""
    *parents, last = dotted.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def merge(*trees: Mapping[str, Any]) -> Tree:
    """Nested dictionaries laid over one another; later ones win."""
    merged: Tree = {}
    for tree in trees:
        for key, value in tree.items():
            old = merged.get(key)
            both = isinstance(old, dict) and isinstance(value, Mapping)
            merged[key] = merge(old, value) if both and old is not None else _copied(value)
    return merged


def _copied(value: Any) -> Any:
    return merge(value) if isinstance(value, Mapping) else value


def read_toml(path: Path) -> Tree:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no configuration file at {path}.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: give a .toml file.") from None
    # ValueError: no TOML, no UTF-8, a number of thousands of digits.
    except (ValueError, OSError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except RecursionError:
        raise UserError(f"cannot read {path}: its brackets are nested too deeply.") from None


def check_key(dotted: str, where: str) -> None:
    """Raise UserError naming the right keys unless `dotted` is a key of the configuration."""
    keys = known_keys()
    free = dotted.startswith(("model.options.", "launch.sbatch."))
    if dotted not in keys and not free:
        section = dotted.partition(".")[0]
        own = [key for key in keys if key.startswith(section + ".")]
        error = unknown_name("configuration key", dotted, own or keys)
        raise UserError(f"{where}: {error}")


def parse_value(text: str) -> Any:
    """The value of a `--set`: TOML where it parses (`1e-3`, `true`, `[512, 256]`), else a plain string."""
    text = text.strip()
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def build_config(tree: Mapping[str, Any], where: str = "configuration") -> Config:
    """Validate a nested dict. Errors name the key, what was wrong with it, and the right keys."""
    for section, keys in tree.items():
        if section not in Config.model_fields:
            raise UserError(f"{where}: {unknown_name('section', section, Config.model_fields)}")
        if not isinstance(keys, Mapping):
            raise UserError(f"{where}: [{section}] must be a table of keys.")
        for key in keys:
            check_key(f"{section}.{key}", where)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        location = [str(part) for part in first["loc"]]
        key = ".".join(location[:2])
        if len(location) < 2:  # about a whole section
            raise UserError(f"{where}: {first['msg'].removeprefix('Value error, ')}.") from None
        given = get_key(tree, key)
        raise UserError(
            f"{where}: {key} = {given!r}: {first['msg'].removeprefix('Value error, ')}."
        ) from None


def read_layers(files: Iterable[Path]) -> Tree:
    """TOML files laid over one another in order, each checked by itself."""
    tree: Tree = {}
    for path in files:
        layer = read_toml(path)
        build_config(layer, str(path))
        tree = merge(tree, layer)
    return tree


def configs_dir() -> Path:
    """The shipped `configs/`: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    shipped = package / "_configs"
    return shipped if shipped.is_dir() else package.parent / "configs"
