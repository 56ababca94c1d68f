"""The surroundings of a job: package and interpreter of the submitting shell, nothing else."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from hpc_mlp.machine import ranks
from hpc_mlp.runs.lease import CLAIM

# Left-overs in the submitting shell would mislead a job.
_FOREIGN = ("SLURM_", "SUBMITIT_")
_FOREIGN_NAMES = (*ranks.NAMES, CLAIM)


def python_path() -> str:
    """PYTHONPATH for a job: absolute, since a job may start in another folder; this package's place
    first, unless it is installed."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    package = str(Path(__file__).resolve().parents[2])
    if package not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        paths.insert(0, package)
    return os.pathsep.join(dict.fromkeys(str(Path(path).resolve()) for path in paths))


def local_environment() -> dict[str, str]:
    """This shell's environment without the traces of a Slurm job or a launcher it may be in."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_FOREIGN) and name not in _FOREIGN_NAMES
    }
    if path := python_path():
        env["PYTHONPATH"] = path
    return env
