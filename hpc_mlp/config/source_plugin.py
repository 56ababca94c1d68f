"""A function of the user's own that stands in a notebook or program, as a plugin: its source, with
all that it uses of its own module, in a file that stands for itself.

What is trained is what this file registers, so that a run can be loaded wherever its folder is."""

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
import symtable
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType

from hpc_mlp.config.plugins import Plugin
from hpc_mlp.config.registry import Kind, Registered
from hpc_mlp.errors import UserError

_HEAD = '''"""The {kind} {name}, as it was written in a notebook or program."""

from __future__ import annotations
'''
# How each is called, and with what.
_CALLS: dict[Kind, tuple[str, str]] = {
    "model": (
        "(config, image_shape, num_classes)",
        "the model's settings, (channels, height, width) and the number of classes",
    ),
    "loss": ("(logits, labels)", "logits [n, classes] and labels [n]"),
    "metric": ("(probabilities, labels)", "probabilities [n, classes] and labels [n]"),
    "augmentation": ("(images, draws)", "images [n, C, H, W] and random numbers"),
}


def source_plugin(kind: Kind, name: str, registered: Registered) -> Plugin:
    """A plugin that registers the function (of a model: or the class) under `name`. UserError where
    it is not called as its kind is (see `config.registry`), or where its source, or what it uses,
    cannot be stored."""
    function = inspect.unwrap(registered.function)
    if not isinstance(function, FunctionType | type):
        raise _refusal(kind, name, f"{function!r} is no function and no class")
    called, arguments = _CALLS[kind]
    try:
        inspect.signature(function).bind(*[None] * len(called.split(",")))
    except (TypeError, ValueError):
        raise UserError(
            f"{kind} {name!r}: it is called as {function.__name__}{called}, with {arguments}, and "
            "takes other arguments."
        ) from None
    source = _FunctionSource(kind, name, function.__module__)
    source.add(function.__name__, function)
    better = "" if registered.higher_is_better else ", higher_is_better=False"
    call = f"hpc_mlp.register_{kind}({name!r}{better})({function.__name__})"
    imports = "\n".join(dict.fromkeys(["import hpc_mlp", *source.imports]))
    head = _HEAD.format(kind=kind, name=name)
    text = "\n\n".join([f"{head}\n{imports}", *source.parts, call, ""])
    return Plugin(Path(f"{name}.py"), text.encode())


class _FunctionSource:
    """`parts`: definitions, each after those that it uses."""

    def __init__(self, kind: Kind, name: str, module: str) -> None:
        self.kind, self.name, self.module = kind, name, module
        self.imports: list[str] = []
        self.parts: list[str] = []
        self._seen: dict[str, object] = {}

    def add(self, name: str, value: object) -> None:
        """What the global `name` stands for."""
        if name in self._seen:
            if self._seen[name] is not value:
                raise self._refusal(f"`{name}` means two things in it")
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
            raise self._refusal(f"`{name}` is a {type(value).__name__}")

    def _define(self, name: str, value: FunctionType | type) -> None:
        found = _definition(value)
        if found is None:
            raise self._refusal(f"the source of `{name}` is not a `def` or `class`")
        names = _names(value)
        for used in _global_names(found):
            if used in names and used != value.__name__:
                self.add(used, names[used])
            elif used not in names and not hasattr(builtins, used):
                raise self._refusal(f"`{used}` is not defined")
        self.parts.append(found)
        if name != value.__name__:
            self.parts.append(f"{name} = {value.__name__}")

    def _refusal(self, why: str) -> UserError:
        return _refusal(self.kind, self.name, why)


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

    found = dict.fromkeys(walk(symtable.symtable(source, "source", "exec")))
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


def _refusal(kind: Kind, name: str, why: str) -> UserError:
    return UserError(
        f"{kind} {name!r} cannot be stored with its runs, to be loaded elsewhere: {why}. It may "
        "use modules, functions, classes and plain values (numbers, strings, lists of them) of its "
        "notebook or program. Else write it into a file of its own, and name that in a variant's "
        f".toml file: plugins = ['my_{kind}.py']."
    )
