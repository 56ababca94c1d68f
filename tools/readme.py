"""Keep the README's tables what the code and the measurements say.

    python tools/readme.py           rewrite the regions between <!-- NAME --> and <!-- /NAME -->
    python tools/readme.py --check   exit code 1 where they are not what they should be (tests, make check)

Regions: commands (name and line of help), variants (from configs/variants), exit-codes, floors (of the house, from the
test that holds them), and figures-* (tables and
sentences rendered from tools/figures.json, which holds what was measured, on what, with which command and how often).
"""

from __future__ import annotations

import ast
import difflib
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hpc_mlp.cli import COMMANDS  # noqa: E402
from hpc_mlp.config.plan import ALL, load_variant, plan_runs, shipped_variants  # noqa: E402
from hpc_mlp.config.sections import ModelConfig  # noqa: E402
from hpc_mlp.errors import LeaseLostError, RunError, UserError  # noqa: E402

README, FIGURES = ROOT / "README.md", ROOT / "tools" / "figures.json"


def commands() -> str:
    return table(["command", "what it does"], [[f"`{name}`", line] for name, (_, line) in COMMANDS.items()])


def variants() -> str:
    """`all` first; what is not an MLP by its kind."""
    names = [*ALL, *(name for name in shipped_variants() if name not in ALL)]
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
    return table(["exit code", "meaning"], [
        ["0", "done"],
        [str(RunError.exit_code), "the input was right, but a run failed"],
        [str(UserError.exit_code), "the input is wrong: one message says what, where and what to do"],
        ["130, 143, 138", "stopped by Ctrl-C, SIGTERM, SIGUSR1: the same command goes on from there"],
    ])  # fmt: skip


def floors() -> str:
    """From the top down, as tests/test_layers.py has them."""
    tree = ast.parse((ROOT / "tests" / "test_layers.py").read_text())
    (found,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.target) == "FLOORS"
    )
    rooms = [
        " · ".join(f"{name}/" if (ROOT / "hpc_mlp" / name).is_dir() else name for name in sorted(floor))
        for floor in reversed(found)
    ]
    return "\n".join(f"    {line}" for line in rooms)


def figures(name: str) -> str:
    """A table of figures.json, the line that says where its numbers are from, and what follows from them."""
    entry: dict[str, Any] = json.loads(FIGURES.read_text())[name]
    rows = [[str(cell) for cell in row] for row in entry.get("rows", [])]
    about = (
        f"{entry['hardware']}; {entry['versions']}; n = {entry['n']}; `{entry['command']}`, {entry['date']}."
    )
    shown = [table(entry["columns"], rows, numbers=True)] if rows else []
    return "\n\n".join([*shown, *entry.get("text", []), about])


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    rule = [":---", *("---:" if numbers else ":---" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" if cells is not rule else f"|{'|'.join(rule)}|"
                     for cells in (head, rule, *rows))  # fmt: skip


REGIONS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "variants": variants,
    "exit-codes": exit_codes,
    "floors": floors,
}


def rendered(text: str) -> str:
    """The README with every region made anew. KeyError for a region that is not known."""

    def region(found: re.Match[str]) -> str:
        name = found[1]
        make = REGIONS[name] if name in REGIONS else lambda: figures(name.removeprefix("figures-"))
        return f"<!-- {name} -->\n\n{make()}\n\n<!-- /{name} -->"

    return re.sub(r"<!-- ([a-z0-9-]+) -->\n.*?<!-- /\1 -->", region, text, flags=re.S)


def main() -> int:
    old = README.read_text()
    new = rendered(old)
    if "--check" not in sys.argv[1:]:
        README.write_text(new)
        return 0
    sys.stdout.writelines(difflib.unified_diff(
        old.splitlines(True), new.splitlines(True), "README.md", "README.md as it should be"))  # fmt: skip
    if old != new:
        print("README.md is stale: run python tools/readme.py", file=sys.stderr)
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
