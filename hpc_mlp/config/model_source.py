"""A model that is defined in a notebook or program, as a plugin: the source of the function that
builds it, with all that it uses of its own module, in a file that stands for itself.

What is trained is what this file builds, so that a run can be loaded wherever its folder is."""

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from hpc_mlp.config.plugins import Plugin
from hpc_mlp.errors import UserError

_HEAD = '''"""The model {kind}, as it was written in a notebook or program."""

from __future__ import annotations
'''
_CALLED = "(config, image_shape, num_classes)"


def model_plugin(kind: str, builder: Callable[..., Any]) -> Plugin:
    """A plugin that registers `builder`, a function or a class, as `model.kind = kind`. UserError
    where it is not called as models are (see `config.registry`), or where its source, or what it
    uses, cannot be stored."""
    builder = inspect.unwrap(builder)
    if not isinstance(builder, FunctionType | type):
        raise _refusal(kind, f"{builder!r} is no function and no class")
    try:
        inspect.signature(builder).bind(None, None, None)
    except (TypeError, ValueError):
        raise UserError(
            f"model {kind!r}: it is called as {builder.__name__}{_CALLED}, with the model's "
            "settings, (channels, height, width) and the number of classes, and takes other "
            "arguments."
        ) from None
    source = _ModelSource(kind, builder.__module__)
    source.add(builder.__name__, builder)
    registered = f"hpc_mlp.register_model({kind!r})({builder.__name__})"
    imports = "\n".join(dict.fromkeys(["import hpc_mlp", *source.imports]))
    text = "\n\n".join([_HEAD.format(kind=kind) + f"\n{imports}", *source.parts, registered, ""])
    return Plugin(Path(f"{kind}.py"), text.encode())


class _ModelSource:
    """`parts`: definitions, each after those that it uses."""

    def __init__(self, kind: str, module: str) -> None:
        self.kind, self.module = kind, module
        self.imports: list[str] = []
        self.parts: list[str] = []
        self._seen: dict[str, object] = {}

    def add(self, name: str, value: object) -> None:
        """What the global `name` stands for."""
        if name in self._seen:
            if self._seen[name] is not value:
                raise _refusal(self.kind, f"`{name}` means two things in it")
            return
        self._seen[name] = value
        if isinstance(value, ModuleType) and value.__name__ != "__main__":
            self.imports.append(f"import {value.__name__} as {name}")
        elif isinstance(value, FunctionType | type) and value.__module__ == self.module:
            self._define(name, value)
        elif (home := _home(value)) is not None:
            self.imports.append(f"from {home[0]} import {home[1]} as {name}")
        elif _is_plain(value):
            self.parts.append(f"{name} = {value!r}")
        else:
            raise _refusal(self.kind, f"`{name}` is a {type(value).__name__}")

    def _define(self, name: str, value: FunctionType | type) -> None:
        found = _definition(value)
        if found is None:
            raise _refusal(self.kind, f"the source of `{name}` is not a `def` or `class`")
        names = _names(value)
        for used in _global_names(found):
            if used in names and used != value.__name__:
                self.add(used, names[used])
            elif used not in names and not hasattr(builtins, used):
                raise _refusal(self.kind, f"`{used}` is not defined")
        self.parts.append(found)
        if name != value.__name__:
            self.parts.append(f"{name} = {value.__name__}")


def _names(value: FunctionType | type) -> Mapping[str, object]:
    """What the names in its source stand for."""
    if isinstance(value, type):
        return vars(sys.modules[value.__module__])
    return {**value.__globals__, **inspect.getclosurevars(value).nonlocals}


def _global_names(source: str) -> Iterator[str]:
    """Those that it uses and does not define, in order."""

    def walk(table: symtable.SymbolTable) -> Iterator[str]:
        whole = table.get_type() == "module"
        for symbol in table.get_symbols():
            if symbol.is_referenced() if whole else symbol.is_global():
                yield symbol.get_name()
        for child in table.get_children():
            yield from walk(child)

    found = dict.fromkeys(walk(symtable.symtable(source, "model", "exec")))
    return (name for name in found if not name.startswith("__"))


def _definition(value: FunctionType | type) -> str | None:
    """Its `def` or `class`, with decorators. `inspect.getsource` has no classes of a notebook,
    whose module has no file; their methods' code knows its cell."""
    methods = [value] if isinstance(value, FunctionType) else vars(value).values()
    for method in methods:
        if not isinstance(method, FunctionType):
            continue
        code = inspect.unwrap(method).__code__
        lines = linecache.getlines(code.co_filename)
        try:
            nodes = ast.walk(ast.parse("".join(lines)))
        # A cell with `await` outside of functions.
        except SyntaxError:
            continue
        for node in nodes:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name != value.__name__:
                continue
            first = min(part.lineno for part in (node, *node.decorator_list))
            if node.end_lineno and first <= code.co_firstlineno <= node.end_lineno:
                return textwrap.dedent("".join(lines[first - 1 : node.end_lineno])).rstrip()
    return None


def _home(value: object) -> tuple[str, str] | None:
    """The module and the name under which it can be imported."""
    module, name = (getattr(value, key, None) for key in ("__module__", "__name__"))
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    return (module, name) if getattr(sys.modules.get(module), name, None) is value else None


def _is_plain(value: object) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, RecursionError):
        return False


def _refusal(kind: str, why: str) -> UserError:
    return UserError(
        f"model {kind!r} cannot be stored with its runs, to be loaded elsewhere: {why}. It may use "
        "modules, functions, classes and plain values (numbers, strings, lists of them) of its "
        "notebook or program. Else write it into a file of its own, and name that in a variant's "
        ".toml file: plugins = ['my_model.py']."
    )
