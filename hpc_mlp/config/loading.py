"""From TOML files and `--set` to a `Config`: tables laid over one another, then validated."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpc_mlp.config.sections import Config, flatten, known_keys
from hpc_mlp.errors import UserError, unknown_name

Tree = dict[str, Any]

# Ours need four; what comes after them walks through the values by recursion.
_MOST_LEVELS = 32


def get_key(tree: Mapping[str, Any], dotted: str) -> Any:
    section, _, key = dotted.partition(".")
    return tree.get(section, {}).get(key)


def set_key(tree: Tree, dotted: str, value: Any) -> None:
    """Set `section.key` (`section.table.key` for free tables) in a nested dict, in place."""
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
        return _parsed(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise UserError(f"no configuration file at {path}.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: give a .toml file.") from None
    except UserError:
        raise
    # ValueError: no TOML, no UTF-8, a number of thousands of digits.
    except (ValueError, OSError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _parsed(text: str, where: str) -> Tree:
    """TOML; TOMLDecodeError where it is none, UserError where it is nested too deeply."""
    try:
        tree = tomllib.loads(text)
    except RecursionError:
        raise _too_deep(where) from None
    level: list[Any] = [tree]
    for _ in range(_MOST_LEVELS):
        level = [item for value in level for item in _items(value)]
    if level:
        raise _too_deep(where)
    return tree


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _too_deep(where: str) -> UserError:
    return UserError(f"cannot read {where}: nested more than {_MOST_LEVELS} levels deep.")


def check_key(dotted: str, where: str) -> None:
    """Raise UserError naming the right keys unless `dotted` is a key of the configuration."""
    keys = known_keys()
    free = dotted.startswith(("model.options.", "launch.sbatch."))
    if dotted not in keys and not free:
        section = dotted.partition(".")[0]
        end = dotted.rpartition(".")[2]
        own = [key for key in keys if key.startswith(section + ".") or key.endswith(f".{end}")]
        error = unknown_name("configuration key", dotted, own or keys)
        raise UserError(f"{where}: {error}")


def parse_value(text: str) -> Any:
    """The value of a `--set`: TOML where it parses (`1e-3`, `true`, `[512, 256]`), else a
    string."""
    text = text.strip()
    try:
        return _parsed(f"value = {text}", "a value of --set")["value"]
    except UserError:
        raise
    except ValueError:
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
        # About a whole section.
        if len(location) < 2:
            raise UserError(f"{where}: {first['msg'].removeprefix('Value error, ')}.") from None
        given = get_key(tree, key)
        why = (
            _list_text(key)
            if first["type"] == "tuple_type"
            else first["msg"].removeprefix("Value error, ")
        )
        raise UserError(f"{where}: {key} = {given!r}: {why}.") from None


def _list_text(key: str) -> str:
    """How to write the list that a key takes: with its default as the example."""
    default = flatten(Config())[key]
    example = json.dumps(default, separators=(",", ":")) if default else '["…"]'
    return (
        f"this is a list, in brackets such as {key} = {example}; on a command line in quotes, "
        f"--set '{key}={example}' (commas outside brackets make a sweep)"
    )


def read_layers(files: Iterable[Path]) -> Tree:
    """TOML files laid over one another in order, each checked by itself; without their
    `plugins` and their `[search]` (see `config.search`)."""
    tree: Tree = {}
    for path in files:
        layer = read_toml(path)
        layer.pop("plugins", None)
        layer.pop("search", None)
        build_config(layer, str(path))
        tree = merge(tree, layer)
    return tree


def shipped(kind: str) -> dict[str, Path]:
    """The `variants` or `clusters` that come with the package, by name."""
    return {path.stem: path for path in sorted((configs_dir() / kind).glob("*.toml"))}


def chosen_file(kind: str, what: str, name: str, *others: str) -> Path:
    """A shipped file by name, or the user's own by path. UserError for a name of neither, with the
    right ones, and `others`."""
    files = shipped(kind)
    if name not in files and not name.endswith(".toml"):
        error = unknown_name(what, name, [*others, *files])
        raise UserError(f"{error} A file of your own ends in .toml.")
    return files.get(name, Path(name))


def configs_dir() -> Path:
    """The shipped `configs/`: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    shipped = package / "_configs"
    return shipped if shipped.is_dir() else package.parent / "configs"
