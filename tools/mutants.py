"""Mutation testing: `python tools/mutants.py [MODULE…]` changes the modules of `[tool.mutants]` in
pyproject.toml, one place at a time, runs the tests named there, and prints what no test notices.
Changes that make no difference stand in equivalent_mutants.toml, with the reason. Ends with 1 where
fewer than 95 % of the others are noticed.

mutmut forks after the imports, so that a mutant costs its tests and not the import of torch. What
is known is kept in `.mutants/`: a second call runs only what lived, or whose function has changed;
remove the folder to begin anew."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

from hypothesis import Phase, settings
from mutmut.__main__ import _run
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
                re.fullmatch(re.escape(text).replace("…", ".*"), what)
                for text in (*equivalent["…"], *equivalent.get(module, {}))
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


def main(chosen: list[str]) -> int:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutants"]
    equivalent = tomllib.loads((ROOT / "tools/equivalent_mutants.toml").read_text(encoding="utf-8"))
    failed = False
    for module in chosen or table:
        folder = ROOT / ".mutants" / module.replace("/", ".")
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        for name in LINKED:
            if not Path(name).is_symlink():
                Path(name).symlink_to(ROOT / name)
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
        sys.exit(main(sys.argv[1:]))
