"""A GPU rehearsed on a machine without one.

`runtime.c` is a CUDA runtime under torch's CUDA build in which device memory is host memory and
kernels only leave a note; `emulator.py` adds the numbers. It shows every check, allocation, copy
and launch of torch's CUDA code, what a graph captures, and, emulated, that the results are a CPU's.
It cannot show a GPU's arithmetic and time, which kernels cuBLAS and cuDNN choose, NCCL, and races.

    python tests/rehearsal/device.py SCRIPT.py …   run a program on the pretended device
    python tests/rehearsal/device.py -m pytest tests/rehearsal/check_step.py
    python tests/rehearsal/device.py --check       exit code 1, and why, where there can be none

An entry that the runtime lacks fails at load or at its first call: add it to runtime.c, or, where
an operator needs the device's answer, to `CPU_ONLY` in emulator.py. `REHEARSAL_DEVICES` is the
number of devices (default 1)."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
SOURCES = [HERE / "runtime.c", HERE / "stubs.c"]


def missing() -> str | None:
    """Why there can be no pretended device here; None where there can."""
    if sys.platform != "linux":
        return "the pretended CUDA runtime is preloaded, which is for Linux"
    if shutil.which("cc") is None:
        return "no C compiler (cc) for the pretended CUDA runtime"
    if not includes():
        return "torch is not a CUDA build: its wheels bring no CUDA headers"
    return None


def includes() -> list[Path]:
    """The header folders of the wheels that a CUDA build of torch brings along: its CUDA's, and
    Triton's for `crt/`."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    packages = Path(spec.origin).parents[1]
    found = [path for path in packages.glob("nvidia/*/include") if (path / "cublasLt.h").exists()]
    return found and [*found, packages / "triton" / "backends" / "nvidia" / "include"]


def build() -> Path:
    """The folder of the two libraries, made where they are not there yet (a second)."""
    digest = hashlib.sha256(
        b"".join(path.read_bytes() for path in SOURCES) + str(includes()).encode()
    )
    folder = (
        Path(tempfile.gettempdir()) / f"hpc-mlp-rehearsal-{os.getuid()}-{digest.hexdigest()[:12]}"
    )
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            # A header that those of CUDA 13 include and the wheels do not bring.
            (Path(made) / "nv").mkdir()
            (Path(made) / "nv" / "target").touch()
            libraries = Path(made) / "libraries"
            libraries.mkdir(mode=0o700)
            headers = [f"-I{made}", *(f"-I{path}" for path in includes())]
            compiler = ["cc", "-O1", "-w", "-shared", "-fPIC"]
            library = ["-o", f"{libraries}/libcudart-pretended.so", "-lpthread"]
            subprocess.run([*compiler, *headers, *map(str, SOURCES), *library], check=True)
            driver = [
                "-DDRIVER",
                str(SOURCES[1]),
                "-Wl,-soname,libcuda.so.1",
                "-o",
                f"{libraries}/libcuda.so.1",
            ]
            subprocess.run([*compiler, *driver], check=True)
            # As a whole: another process may be at it.
            try:
                libraries.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
    return folder


def environment() -> dict[str, str]:
    """For a process that shall see the pretended device."""
    folder = build()
    paths = [
        str(REPOSITORY),
        str(REPOSITORY / "tests"),
        str(HERE),
        os.environ.get("PYTHONPATH", ""),
    ]
    return os.environ | {
        "LD_PRELOAD": str(folder / "libcudart-pretended.so"),
        "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def noted(*, finish: bool = True) -> Iterator[list[str]]:
    """The runtime's notes on what happens in the block; the list is filled at its end. `finish`:
    wait for the device before, which is a note more."""
    import ctypes

    import torch

    runtime = ctypes.CDLL(None)
    lines: list[str] = []
    with tempfile.NamedTemporaryFile() as file:
        runtime.rehearsal_note_to(file.name.encode())
        try:
            yield lines
            if finish:
                torch.cuda.synchronize()
        finally:
            runtime.rehearsal_note_to(None)
            lines += Path(file.name).read_text().splitlines()


def count(lines: list[str], *words: str) -> int:
    """How many notes hold one of the words."""
    found = Counter(word for line in lines for word in set(line.split()))
    return sum(found[word] for word in words)


if __name__ == "__main__":
    if why := missing():
        sys.exit(why)
    if sys.argv[1:] == ["--check"]:
        sys.exit()
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], environment())
