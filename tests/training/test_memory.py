"""What the training process does with memory: what it has freed, and what its imports hold."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys

import pytest

from hpc_mlp.machine.command_line import importing

LOOP = """
import ctypes, resource
{first}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
for step in range(40):
    if step == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [libc.malloc(24_000_000) for _ in range(3)]
    for piece in pieces:
        libc.memset(piece, 1, 24_000_000)
    for piece in pieces:
        libc.free(piece)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
KEEP = "from hpc_mlp.machine.memory import keep_freed_memory; keep_freed_memory()"


def page_faults(first: str) -> int:
    """Of 20 steps that each ask for the same 72 MB: more than twice the largest piece, which glibc
    keeps by default."""
    done = subprocess.run(
        [sys.executable, "-c", LOOP.format(first=first)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is set up here"
)
def test_steps_take_the_memory_that_the_last_one_freed() -> None:
    # Else there is nothing to be won.
    assert page_faults("") > 20 * 72_000_000 / 4096 / 2
    assert page_faults(KEEP) < 1000


def test_what_imports_make_is_never_searched_for_garbage() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(ImportError), importing():
        assert not gc.isenabled()
        modules: list[list[list[int]]] = [[[]] for _ in range(1000)]
        raise ImportError
    try:
        assert gc.isenabled()
        assert gc.get_freeze_count() > before + len(modules)
    finally:
        gc.unfreeze()
