"""A pytest plugin for processes started by device.py: every test runs on the emulated device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from emulator import emulated


@pytest.fixture(autouse=True)
def _emulated() -> Iterator[None]:
    with emulated():
        yield
