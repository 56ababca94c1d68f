"""Keep what README and docs/ say of the code and the measurements what those say themselves.

    python tools/readme.py           rewrite the regions between <!-- NAME --> and <!-- /NAME -->
    python tools/readme.py --check   exit code 1 where they are not what they should be

Regions: commands (name and line of help), cli (the help of every command), variants (from
configs/variants), exit-codes, floors and rooms (of the house, from the test that holds them),
extend (where a new part goes), and figures-* (from tools/figures.json, which holds what was
measured, on what, with which command and how often).
Links to Python files that have moved follow them.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hpc_mlp.cli import COMMANDS  # noqa: E402
from hpc_mlp.cli import main as main_command  # noqa: E402
from hpc_mlp.config.loading import shipped  # noqa: E402
from hpc_mlp.config.plan import ALL, load_variant, plan_runs  # noqa: E402
from hpc_mlp.config.sections import ModelConfig  # noqa: E402
from hpc_mlp.errors import LeaseLostError, RunError, UserError  # noqa: E402

PACKAGE, FIGURES = ROOT / "hpc_mlp", ROOT / "tools" / "figures.json"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# What a new part needs, as names that the package defines; with "!" only the file is shown.
EXTEND = [
    ("optimizer", "{OptimConfig} names it and its keys, {BankOptimizer} does its step"),
    ("archive format", "{open_source} chooses the reader by what the file is"),
    ("column of the table", "a line of `COLUMNS` in {column_of!}, its number in {STATISTICS}"),
    (
        "scheduler of jobs",
        "a module with the functions of {Scheduler}, and a line in `SCHEDULERS` there",
    ),
    (
        "figure of the report",
        "a function like {loss_panels}, and its place in {write_report!}'s template",
    ),
    (
        "model",
        "a function with {register_model}, or a [plugin](recipes.md#a-model-of-your-own) outside "
        "the package",
    ),
    ("command", "a line of {COMMANDS}, and a file beside it"),
]


def commands() -> str:
    return table(
        ["command", "what it does"], [[f"`{name}`", line] for name, (_, line) in COMMANDS.items()]
    )


def cli() -> str:
    """The help of every command, as a manual page has it."""
    return "\n\n".join(part for name in COMMANDS for part in manual(name))


def manual(name: str) -> Iterator[str]:
    """Heading, usage, description with its examples, options."""
    command = main_command.get_command(click.Context(main_command), name)
    assert command is not None
    context = click.Context(command, info_name=f"hpc-mlp {name}", **command.context_settings)
    yield f"## {name}"
    yield f"    hpc-mlp {name} {' '.join(command.collect_usage_pieces(context))}"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        # \b: not to be wrapped, which are the examples.
        lines = paragraph.removeprefix("\b\n").splitlines()
        if paragraph.startswith("\b"):
            yield "\n".join(f"    {line}" for line in lines)
        else:
            yield wrapped(literal(" ".join(lines)))
    given = [option for option in command.params if isinstance(option, click.Option)]
    records = filter(None, (option.get_help_record(context) for option in given))
    options = [f"- `{names}`: {literal(text)}" for names, text in records]
    yield "\n".join(wrapped(re.sub(r"  +", " ", option), "  ") for option in options)


def literal(text: str) -> str:
    """A help text with its options and the names that have a `_` between backticks."""
    marks = re.compile(r"`[^`]*`|--[a-z][a-z-]*|\w*_\w*")
    return marks.sub(lambda found: found[0] if "`" in found[0] else f"`{found[0]}`", text)


def variants() -> str:
    """`all` first; what is not an MLP by its kind."""
    names = [*ALL, *(name for name in shipped("variants") if name not in ALL)]
    return table(["variant", "hidden layers"], [[f"`{name}`", layers(name)] for name in names])


def layers(name: str) -> str:
    config = plan_runs([load_variant(name)], [0])[0].config
    model: ModelConfig = config.model
    if model.kind != "mlp":
        return f"no plain MLP: `{model.kind}`, for comparison"
    parts = ["Linear", *(["BatchNorm"] if model.batchnorm else []), "ReLU"]
    parts += [f"Dropout {model.dropout:g}"] if model.dropout else []
    decay = config.optim.weight_decay
    return " → ".join(parts) + (f", weight decay {decay:g}" if decay else "")


def exit_codes() -> str:
    assert (UserError.exit_code, RunError.exit_code, LeaseLostError.exit_code) == (2, 1, 1)
    return table(
        ["exit code", "meaning"],
        [
            ["0", "done"],
            [str(RunError.exit_code), "the input was right, but a run failed"],
            [
                str(UserError.exit_code),
                "the input is wrong: one message says what, where and what to do",
            ],
            [
                "130, 143, 138",
                "stopped by Ctrl-C, SIGTERM, SIGUSR1: the same command goes on from there",
            ],
        ],
    )


def house() -> list[dict[str, str]]:
    """The rooms floor by floor from the top down, with what they are for, as the layer test has
    them."""
    (test,) = (ROOT / "tests").rglob("test_layers.py")
    (found,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(test.read_text()).body
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.target) == "FLOORS"
    )
    return list(reversed(found))


def shown(room: str) -> str:
    return f"{room}/" if (PACKAGE / room).is_dir() else room


def floors() -> str:
    return "\n".join(f"    {' · '.join(map(shown, sorted(floor)))}" for floor in house())


def rooms() -> str:
    rows = [[f"`{shown(room)}`", what] for floor in house() for room, what in floor.items()]
    return table(["room", "what it is for"], rows)


def extend() -> str:
    def named(found: re.Match[str]) -> str:
        path = defined_in(found[1])
        return f"{'' if found[2] else f'`{found[1]}` in '}[{path}](../hpc_mlp/{path})"

    rows = [[what, re.sub(r"\{(\w+)(!?)\}", named, where)] for what, where in EXTEND]
    return table(["a new …", "goes where"], rows)


def defined_in(name: str) -> str:
    """The one file of the package that defines a name at its top level, below `hpc_mlp`."""
    defines = re.compile(rf"^(?:class|def) {name}\b|^{name}\b[^=\n]* = ", re.M)
    found = [path for path in PACKAGE.rglob("*.py") if defines.search(path.read_text())]
    assert len(found) == 1, f"{name} is defined in {found}: correct EXTEND"
    return found[0].relative_to(PACKAGE).as_posix()


def linked(text: str, page: Path) -> str:
    """A link to a Python file that has moved, to where it lies now."""

    def follow(found: re.Match[str]) -> str:
        if (page.parent / found[1]).exists():
            return found[0]
        places = [
            path for part in ("tests", "tools", "hpc_mlp") for path in (ROOT / part).rglob(found[2])
        ]
        assert len(places) == 1, f"{page}: {found[1]} is {places}"
        return f"]({os.path.relpath(places[0], page.parent)})"

    return re.sub(r"\]\(([^)\s]*?([a-z_]+\.py))\)", follow, text)


def figures(name: str) -> str:
    """A table of figures.json, the line that says where its numbers are from, and what follows from
    them."""
    entry: dict[str, Any] = json.loads(FIGURES.read_text())[name]
    rows = [[str(cell) for cell in row] for row in entry.get("rows", [])]
    about = (
        f"{entry['hardware']}; {entry['versions']}; n = {entry['n']}; "
        f"`{entry['command']}`, {entry['date']}."
    )
    shown = [table(entry["columns"], rows, numbers=True)] if rows else []
    return "\n\n".join([*shown, *map(wrapped, [*entry.get("text", []), about])])


def wrapped(text: str, indent: str = "") -> str:
    """Lines of 100 characters, with what is between backticks on one line; `indent` from the second
    on."""
    whole = re.sub(r"`[^`]*`", lambda found: found[0].replace(" ", "\0"), text)
    filled = textwrap.fill(
        whole, 100, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
    return filled.replace("\0", " ")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    rule = [":---", *("---:" if numbers else ":---" for _ in head[1:])]
    return "\n".join(
        f"| {' | '.join(cells)} |" if cells is not rule else f"|{'|'.join(rule)}|"
        for cells in (head, rule, *rows)
    )


REGIONS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "cli": cli,
    "variants": variants,
    "exit-codes": exit_codes,
    "floors": floors,
    "rooms": rooms,
    "extend": extend,
}


def rendered(text: str) -> str:
    """A page with every region made anew. KeyError for a region that is not known."""

    def region(found: re.Match[str]) -> str:
        name = found[1]
        make = REGIONS[name] if name in REGIONS else lambda: figures(name.removeprefix("figures-"))
        return f"<!-- {name} -->\n\n{make()}\n\n<!-- /{name} -->"

    return re.sub(r"<!-- ([a-z0-9-]+) -->\n.*?<!-- /\1 -->", region, text, flags=re.S)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = False
    for page in PAGES:
        old = page.read_text()
        new = linked(rendered(old), page)
        if not options.check:
            page.write_text(new)
        elif old != new:
            name = page.relative_to(ROOT).as_posix()
            sys.stdout.writelines(
                difflib.unified_diff(
                    old.splitlines(True), new.splitlines(True), name, f"{name}, fresh"
                )
            )
            print(f"{name} is stale: run python tools/readme.py", file=sys.stderr)
            stale = True
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
