"""The one tree of errors.

    HpcMlpError            everything this package raises on purpose
     ├─ UserError          the input is wrong: exit code 2, one message: what, where, what to do
     └─ RunError           the input was right, but the work failed: exit code 1
         ├─ DamagedError   a file that was read does not hold what it should
         ├─ OwnCodeError   a function of the user's own failed: so do the runs that it is of
         └─ LeaseLostError another process took over the run folder: stop writing

Our own bugs are `assert`s and other built-in exceptions; they keep their traceback."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

# So many names are read at a glance.
_FEW = 24
_MOST_HINTS = 4


# Characters that act rather than be read: control characters (C0, DEL, C1), those that turn the
# direction of what follows (a name could show another ending than it has), separators of lines and
# paragraphs, lone surrogates.
ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object, keep: str = "") -> str:
    """`text` for a terminal, a log or a page, however foreign it is: characters that act are shown
    as `\\x1b` or `\\u202e`. `keep`: what stays as it is, e.g. the line breaks of a message of our
    own."""
    return ACTING.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), str(text))


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class _Shown:
    """Shows its text so that nothing of it acts, whatever names are in it."""

    def __str__(self) -> str:
        return printable(super().__str__(), keep="\n")


class HpcMlpError(_Shown, Exception):
    exit_code = 1


class UserError(HpcMlpError, ValueError):
    exit_code = 2


class RunError(HpcMlpError):
    exit_code = 1


class DamagedError(RunError):
    """`where` (mostly a path) is damaged for the reason `why`, without a full stop."""

    def __init__(self, where: object, why: str, remedy: str) -> None:
        super().__init__(f"{where} is damaged ({why}). {remedy}")
        self.where, self.why = where, why


class OwnCodeError(RunError):
    """A function of the user's own raised, or gave what cannot be used. `runs`: by name, those that
    it fails with it; others go on."""

    def __init__(self, message: str, runs: Sequence[str]) -> None:
        super().__init__(message)
        self.runs = tuple(runs)


class LeaseLostError(RunError):
    pass


class RejectError(Exception):
    """One entry cannot be taken, for this reason; the others can."""


class HpcMlpWarning(_Shown, UserWarning):
    """Something a user should know that does not stop the work."""


@contextmanager
def naming(path: object) -> Iterator[None]:
    """An OSError within that names no file (writing to a full disk) is one of `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def unknown_name(what: str, name: str, right: Iterable[str]) -> UserError:
    """A wrong name, answered with the right ones: those whose last part it is, or the nearest;
    where there are none, or few in all, every one."""
    names = list(dict.fromkeys(right))
    near = nearest(name, names)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    told = near and (len(names) > _FEW or len(near) == len(names))
    known = "" if told else f" Known: {', '.join(names)}."
    return UserError(f"unknown {what} {name!r}.{hint}{known}")


def nearest(name: str, names: Sequence[str]) -> list[str]:
    """`lr` → `optim.lr`; `accuracy` → `val_accuracy`, `test_accuracy`; `trian` → `train`."""
    # Late: every command imports this module, few are given a wrong name.
    import difflib

    end = name.rpartition(".")[2]
    for sign in "._" if end else "":
        if ends := [right for right in names if right.endswith(f"{sign}{end}")]:
            return ends[:_MOST_HINTS]
    last = {right.rpartition(".")[2]: right for right in reversed(names)}
    close = difflib.get_close_matches(name, names, n=1) or [
        last[found] for found in difflib.get_close_matches(end, last, n=1, cutoff=0.75)
    ]
    return close
