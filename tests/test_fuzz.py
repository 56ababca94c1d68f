"""Every kind of file that is read, damaged and hostile: see fuzz.py."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzz
import pytest

from hpc_mlp.errors import HpcMlpError

QUICK, MANY = 15, 1000

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watches itself through /proc")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> fuzz.Material:
    return fuzz.Material(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """Those of the process, as they were, when the fuzzer has had its own."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_a_few(material: fuzz.Material, kind: str, tmp_path: Path) -> None:
    assert not fuzz.fuzz(material, kind, 0, range(QUICK), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_a_thousand(material: fuzz.Material, kind: str, tmp_path: Path) -> None:
    assert not fuzz.fuzz(material, kind, 0, range(QUICK, MANY), tmp_path)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("raise KeyError('x')", "KeyError"),
        ("return '\\x1b[2J'", "prints what acts"),
        ("raise HpcMlpError('\\x9b')", ""),
        ("kept.append(open('/dev/null'))\nreturn ''", "descriptors"),
        ("bytearray(600 << 20)\nreturn ''", "MB"),
        (
            "began = time.process_time()\nwhile time.process_time() < began + 1.1: pass\nreturn ''",
            "processor time",
        ),
        ("raise HpcMlpError('ours')", ""),
        ("return 'fine'", ""),
    ],
)
def test_the_watch_sees(body: str, what: str) -> None:
    """Each thing that no reader may do; and nothing else."""
    space: dict[str, Any] = {"HpcMlpError": HpcMlpError, "kept": [], "time": time}
    exec("def read():\n" + "\n".join(f"    {line}" for line in body.splitlines()), space)
    reader = fuzz.Reader("reader", space["read"])
    if not what:
        fuzz.watched(reader)
        return
    with pytest.raises(fuzz.FuzzError, match=what):
        fuzz.watched(reader)
