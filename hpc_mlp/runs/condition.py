"""Conditions on runs, as `--where` has them: fields and dotted configuration keys compared with
values.

    optim.lr < 1e-2 and variant != dropout
    seed in (0, 1) and not (model.hidden == [512, 256] or 1e-4 < val_loss < 0.1)

The grammar is Python's, parsed by `ast` and never executed: comparisons, `in`, and, or, not,
parentheses; a word that is no field is a text. Of a run that lacks a value, only `!=` and `not in`
are true."""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hpc_mlp.errors import UserError, printable, unknown_name

# A run's value of a field.
Lookup = Callable[[str], Any]
Test = Callable[[Lookup], bool]

# So much is parsed without running out of stack.
_MOST_CHARACTERS = 1000
_WORDS = {"true": True, "false": False, "none": None, "null": None}
_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
# What other languages write, and how it is written here.
_FOREIGN = {
    r"&&": "and",
    r"\|\|": "or",
    r"<>": "!=",
    r"!(?!=)": "not",
    r"\bAND\b": "and",
    r"\bOR\b": "or",
    r"\bNOT\b": "not",
    r"\bIN\b": "in",
    r"(?<![<>=!])=(?!=)": "==",
}
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


@dataclass(frozen=True)
class Condition:
    """`fields`: those that it asks for, in order."""

    text: str
    fields: tuple[str, ...]
    test: Test


@dataclass(frozen=True)
class _Operand:
    """A field, or a value; `word`: written without quotes, so that it may be a mistyped field."""

    field: str = ""
    value: Any = None
    word: bool = False

    def of(self, look: Lookup) -> Any:
        return look(self.field) if self.field else self.value


def parse_condition(text: str, known: Iterable[str]) -> Condition:
    """UserError where it is no condition, or asks for a field that is not among `known`."""
    if len(text) > _MOST_CHARACTERS:
        raise UserError(f"--where: more than {_MOST_CHARACTERS} characters.")
    parser = _Parser(text, list(known))
    try:
        # Python warns of what it takes for a mistake in a program.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode="eval")
        test = parser.test(tree.body)
    except SyntaxError as error:
        raise parser.error(_hint(text, error)) from None
    # A number of thousands of digits, a zero byte; nested too deeply.
    except (RecursionError, MemoryError):
        raise parser.error("it is nested too deeply") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise parser.error(str(error)) from None
    return Condition(text, tuple(dict.fromkeys(parser.fields)), test)


def _hint(text: str, error: SyntaxError) -> str:
    bare = _QUOTED.sub("", text)
    for pattern, here in _FOREIGN.items():
        if found := re.search(pattern, bare):
            return f"for {found[0]!r} write {here!r}"
    at = text.strip()[max(0, (error.offset or 1) - 1) :]
    return f"it breaks off at {at!r}" if at else "it ends too early"


class _Parser:
    """Of one text; `fields` grows."""

    def __init__(self, text: str, known: list[str]) -> None:
        self.text, self.known = text, known
        self.fields: list[str] = []

    def error(self, why: str) -> UserError:
        example = "optim.lr<1e-2 and variant!=dropout"
        return UserError(
            f"--where {self.text!r} cannot be read: {printable(why)}. Write it as in '{example}'."
        )

    def test(self, node: ast.expr) -> Test:
        if isinstance(node, ast.BoolOp):
            parts = [self.test(value) for value in node.values]
            every = all if isinstance(node.op, ast.And) else any
            return lambda look: every(part(look) for part in parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            part = self.test(node.operand)
            return lambda look: not part(look)
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        field = self._operand(node)
        if not field.field:
            # `variant` meant, `varaint` written; a value alone is no condition.
            raise self._no_field(field)
        return lambda look: look(field.field) is True

    def _comparison(self, node: ast.Compare) -> Test:
        operands = [self._operand(part) for part in (node.left, *node.comparators)]
        links = list(zip(operands, node.ops, operands[1:], strict=False))
        for left, op, right in links:
            if not (left.field or right.field):
                raise self._no_field(left if left.word or not right.word else right)
            if isinstance(op, ast.Is | ast.IsNot):
                raise self.error("for 'is' write '=='")
            for side in (left, right):
                if type(op) in _ORDER and not side.field and not _is_number(side.value):
                    raise self.error(f"{side.value!r} is no number, and has no more or less")
        return lambda look: all(_holds(a.of(look), op, b.of(look)) for a, op, b in links)

    def _no_field(self, operand: _Operand) -> UserError:
        if operand.word:
            return UserError(f"--where: {unknown_name('field', operand.value, self.known)}")
        return self.error("a field is compared with a value, and there is no field")

    def _operand(self, node: ast.expr) -> _Operand:
        name = _dotted(node)
        if name in self.known:
            self.fields.append(name)
            return _Operand(field=name)
        if name.lower() in _WORDS:
            return _Operand(value=_WORDS[name.lower()])
        if "." in name:
            raise UserError(
                f"--where: {unknown_name('field', name, self.known)} A text with a dot stands in "
                "quotes."
            )
        return _Operand(value=name, word=True) if name else _Operand(value=self._value(node))

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            return [self._item(item) for item in node.elts]
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            number = self._value(node.operand)
            if _is_number(number):
                return -number if isinstance(node.op, ast.USub) else number
        part = ast.get_source_segment(self.text.strip(), node) or self.text
        raise self.error(
            f"{part!r} is no value; a text like name == 'baseline-s0' stands in quotes"
        )

    def _item(self, node: ast.expr) -> Any:
        word = _dotted(node)
        return _WORDS.get(word.lower(), word) if word else self._value(node)


def _dotted(node: ast.expr) -> str:
    """`optim.lr`; empty where it is no name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _holds(a: Any, op: ast.cmpop, b: Any) -> bool:
    if isinstance(op, ast.Eq | ast.NotEq):
        return bool(a == b) is isinstance(op, ast.Eq)
    if isinstance(op, ast.In | ast.NotIn):
        inside = a in b if isinstance(b, list) else isinstance(a, str) and a in str(b or "")
        return inside is isinstance(op, ast.In)
    return _is_number(a) and _is_number(b) and _ORDER[type(op)](a, b)
