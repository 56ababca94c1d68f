"""A Slurm of small scripts on PATH, for the tests of what is asked of Slurm and how its answers are
read."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from hpc_mlp.config.plan import parse_seeds, parse_variants, plan_runs
from hpc_mlp.config.sections import LaunchConfig
from hpc_mlp.launch.records import Submission
from hpc_mlp.launch.status import read_status
from hpc_mlp.launch.submit import JobOptions, submit
from hpc_mlp.live.rows import RunStatus

SBATCH = """
import os, re, sys
from pathlib import Path
home = Path(os.environ["FAKE_SLURM"])
script = Path(sys.argv[-1]).read_text()
if "--partition=nowhere" in script:
    sys.exit("sbatch: error: invalid partition specified: nowhere")
(home / "scripts").mkdir(exist_ok=True)
number = 100 + len(list((home / "scripts").iterdir()))
(home / "scripts" / str(number)).write_text(script)
name = re.search(r"--job-name=(\\S+)", script)[1]
array = re.search(r"--array=0-(\\d+)", script)
ids = [f"{number}_{i}" for i in range(int(array[1]) + 1)] if array else [str(number)]
with (home / "queue").open("a") as queue:
    queue.writelines(f"{i}|PENDING|Priority||1:00:00|{name}\\n" for i in ids)
print(f"Submitted batch job {number}")
"""
# Prints the columns that the format asks for, of the jobs asked for, as squeue does.
SQUEUE = """
import os, sys
from pathlib import Path
home = Path(os.environ["FAKE_SLURM"])
options = dict(a.split("=", 1) for a in sys.argv[1:] if "=" in a)
wanted = options["--jobs"].split(",")
columns = dict(zip(["%i", "%T", "%r", "%N", "%L", "%j"], range(6)))
lines = [line.split("|") for line in (home / "queue").read_text().splitlines()]
lines = [line for line in lines if line[0].split("_")[0] in wanted]
if not lines and len(wanted) == 1:
    sys.exit("slurm_load_jobs error: Invalid job id specified")
for line in lines:
    print("|".join(line[columns[c]] for c in options["--format"].split("|")))
"""
SACCT = 'cat "$FAKE_SLURM/history" 2>/dev/null || exit 1'
SCANCEL = """
import os, sys
from pathlib import Path
home = Path(os.environ["FAKE_SLURM"])
lines = (home / "queue").read_text().splitlines()
names = [a.removeprefix("--name=") for a in sys.argv[1:] if a.startswith("--name=")]
rows = [line.split("|") for line in lines]
kept = [row for row in rows if row[0] not in sys.argv and row[5] not in names]
(home / "queue").write_text("".join("|".join(row) + "\\n" for row in kept))
with (home / "cancelled").open("a") as file:
    file.writelines(f"{a}\\n" for a in sys.argv[1:])
"""
SCONTROL = 'test "$2" = config && cat "$FAKE_SLURM/config" || cat "$FAKE_SLURM/partitions"'


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the scripts on PATH; the folder that holds them, and what they know and were told."""
    home = tmp_path / "slurm"
    home.mkdir()
    for name, text in {
        "sbatch": SBATCH,
        "squeue": SQUEUE,
        "sacct": SACCT,
        "scancel": SCANCEL,
        "scontrol": SCONTROL,
        "srun": "exit 0",
    }.items():
        shebang = f"#!{sys.executable}" if "import os" in text else "#!/bin/bash"
        (home / name).write_text(f"{shebang}\n{text}\n")
        (home / name).chmod(0o755)
    (home / "queue").write_text("")
    (home / "config").write_text("MaxArraySize = 1001\nClusterName = fake\n")
    monkeypatch.setenv("FAKE_SLURM", str(home))
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    return home


def send(
    runs: Path,
    variants: str = "all",
    seeds: str = "0",
    launch: LaunchConfig | None = None,
    **options: Any,
) -> Submission | None:
    specs = plan_runs(parse_variants(variants), parse_seeds(seeds))
    wanted = JobOptions("slurm", launch or LaunchConfig(), **options)
    return submit(specs, Path("/"), "d1", runs, wanted)[0]


def sent(fake: Path) -> list[str]:
    return [path.read_text() for path in sorted((fake / "scripts").iterdir())]


def by_variant(runs: Path) -> dict[str, RunStatus]:
    return {run.variant: run for run in read_status(runs)}
