"""Memory of the training process."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Have glibc's malloc keep up to 512 MB that are free: the next step asks for the same again.
    By default it hands large pieces back, and the kernel must clear every page anew
    (configs/recipes/fashion_mlp.toml with 5 seeds on 2 cores: five times the page faults, 26.5 s an
    epoch instead of 24.4; n = 2). Other C libraries: no effect."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 512 << 20)
