"""Mutation testing of the modules of [tool.mutants] in pyproject.toml.

    python tools/mutants.py [MODULE…]
        change them, one place at a time, run the tests named there, and print what no test notices;
        exit code 1 where fewer than 95 % are noticed
    python tools/mutants.py --rows [MODULE…]
        run no test; print the rows of equivalent_mutants.toml that are no change of these modules
        any more; exit code 1 where there is one

Changes that make no difference stand in equivalent_mutants.toml, with the reason, and do not count.

mutmut forks after the imports, so that a mutant costs its tests and not the import of torch. What
is known is kept in `.mutants/`: a second call runs only what lived, or whose function has changed;
remove the folder to begin anew."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hypothesis import Phase, settings
from mutmut.__main__ import _run, create_mutants_for_file
from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

ROOT = Path(__file__).resolve().parents[1]
LINKED = (
    "hpc_mlp",
    "tests",
    "configs",
    "tools",
    "pyproject.toml",
    "README.md",
    "CONTRIBUTING.md",
    "docs",
)
NOTICED = ("killed", "timeout", "segfault", "suspicious")
SHARE = 0.95


def mutate(module: str, tests: list[str]) -> None:
    """In a process and a folder of its own: mutmut keeps settings and statistics in both."""
    # The same examples in every run, so that no mutant is killed by luck; the first failure will
    # do.
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutants", derandomize=True, database=None, phases=phases)
    settings.load_profile("mutants")
    config().only_mutate = [module]
    config().pytest_add_cli_args_test_selection = tests
    data = SourceFileMutationData(path=Path(module))
    data.load()
    for name, code in data.exit_code_by_key.items():
        if status_by_exit_code[code] not in NOTICED:
            data.exit_code_by_key[name] = None
    if data.exit_code_by_key:
        data.save()
    # Which test calls what may be another by now.
    Path("mutants/mutmut-stats.json").unlink(missing_ok=True)
    _run([], 1)


def change(name: str, module: str) -> str:
    """The changed line, with what was there and what is there now: `if a «< → <=» b:`."""
    lines = get_diff_for_mutant(name, path=module).splitlines()[2:]
    code = [line[0] + line[1:].partition("  # ")[0].strip() for line in lines]
    old, new = (
        re.findall(r"\w+|\W", " ".join(line[1:] for line in code if line[0] == sign))
        for sign in "-+"
    )
    before = 0
    while old[before:] and new[before:] and old[before] == new[before]:
        before += 1
    after = 0
    while len(old) - after > before and len(new) - after > before and old[~after] == new[~after]:
        after += 1
    was, now = ("".join(text[before : len(text) - after]) for text in (old, new))
    return f"{''.join(old[:before])}«{was} → {now}»{''.join(old[len(old) - after :])}"


def fits(row: str, what: str) -> bool:
    """Whether a row of equivalent_mutants.toml means this change."""
    return re.fullmatch(re.escape(row).replace("…", ".*"), what) is not None


def report(module: str, equivalent: dict[str, dict[str, str]]) -> bool:
    """Print what lived and the counts; whether enough was noticed."""
    data = SourceFileMutationData(path=Path(module))
    data.load()
    counts: Counter[str] = Counter()
    for name, code in data.exit_code_by_key.items():
        status = status_by_exit_code[code]
        if status not in NOTICED:
            what = change(name, module)
            known = any(
                fits(text, what) for text in (*equivalent["…"], *equivalent.get(module, {}))
            )
            status = "equivalent" if known else "survived"
            if not known:
                print(f"    {what}")
        counts[status] += 1
    rest, lived = counts.total() - counts["equivalent"], counts["survived"]
    others = rest - lived - counts["killed"]
    print(
        f"{module}: {counts.total()} mutants: {counts['killed']} killed, {others} timeouts or "
        "crashes, ",
        end="",
    )
    share = (rest - lived) / max(1, rest)
    print(f"{counts['equivalent']} equivalent, {lived} survived: {share:.1%}", flush=True)
    return share >= SHARE


def enter(module: str) -> Path:
    """Go to the module's own folder, which is made where it is not there."""
    folder = ROOT / ".mutants" / module.replace("/", ".")
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for name in LINKED:
        if not Path(name).is_symlink():
            Path(name).symlink_to(ROOT / name)
    return folder


def changes(module: str) -> list[str]:
    """Every change that could be made to it."""
    enter(module)
    output = Path("mutants", module)
    output.parent.mkdir(parents=True, exist_ok=True)
    create_mutants_for_file(Path(module), output)
    data = SourceFileMutationData(path=Path(module))
    data.load()
    return [change(name, module) for name in data.exit_code_by_key]


def check_rows(modules: Sequence[str], equivalent: dict[str, dict[str, str]], whole: bool) -> bool:
    """Print the rows that mean no change; whether there is one. `whole`: these are all modules."""
    every: list[str] = []
    stale = False

    def check(section: str, made: Sequence[str]) -> None:
        nonlocal stale
        for row in equivalent.get(section, {}):
            if not any(fits(row, what) for what in made):
                print(f"{section}: {row}", flush=True)
                stale = True

    for module in modules:
        made = changes(module)
        every += made
        check(module, made)
    if whole:
        check("…", every)
        for section in equivalent.keys() - {"…", *modules}:
            check(section, ())
    return stale


def main() -> int:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutants"]
    equivalent = tomllib.loads((ROOT / "tools/equivalent_mutants.toml").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="all where none is named")
    options = parser.parse_args()
    for module in options.modules:
        if module not in table:
            parser.error(f"{module} is none of [tool.mutants]: {', '.join(table)}")
    if options.rows:
        modules = options.modules or list(table)
        return int(check_rows(modules, equivalent, whole=not options.modules))
    failed = False
    for module in options.modules or table:
        folder = enter(module)
        with open("log", "w") as log:
            command = [
                sys.executable,
                ROOT / "tools/mutants.py",
                "--mutate",
                module,
                *table[module],
            ]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, stdout=log, stderr=log)
        if done.returncode:
            sys.exit(f"{module}: mutmut failed: see {folder / 'log'}")
        failed |= not report(module, equivalent)
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--mutate"]:
        mutate(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
