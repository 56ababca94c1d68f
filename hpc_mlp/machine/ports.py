"""A port at which processes find each other, kept for them until one of them listens there."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from hpc_mlp.errors import RunError


def keep_port(address: str, numbers: Iterable[int] = (0,)) -> socket.socket:
    """A socket bound to the first of `numbers` that is free at `address` (0: any; "": on every
    interface). While it is open no other program is given that port, but one that allows reuse of
    addresses, as torch's store does, can listen there.

    A port that is only looked up and given back can be another's when torch listens there, seconds
    later: a second launcher's, or the near end of any connection.

    Raises RunError where none is free."""
    for number in numbers:
        kept = socket.socket()
        try:
            kept.bind((address, number))
        except OSError:
            kept.close()
            continue
        # Only now: a socket that allowed it before would also be bound to a port kept by another.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return kept
    raise RunError("no port is free for the processes to find each other")
