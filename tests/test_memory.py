"""What the training process does with memory it has freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

LOOP = """
import resource
import torch
{first}
for step in range(40):
    if step == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    images, hidden = torch.ones(5_000_000), torch.ones(6_000_000)
    del images, hidden
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
KEEP = "from hpc_mlp.training.memory import keep_freed_memory; keep_freed_memory()"


def page_faults(first: str) -> int:
    """Of 20 steps that each ask for the same 44 MB."""
    done = subprocess.run([sys.executable, "-c", LOOP.format(first=first)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is set up here")
def test_steps_take_the_memory_that_the_last_one_freed() -> None:
    assert page_faults("") > 20 * 44_000_000 / 4096 / 2  # else there is nothing to be won
    assert page_faults(KEEP) < 1000
