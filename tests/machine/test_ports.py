"""A kept port is nobody else's, and still torch's."""

from __future__ import annotations

import socket

import pytest

from hpc_mlp.errors import RunError
from hpc_mlp.machine.ports import keep_port


def test_a_kept_port_is_nobody_elses() -> None:
    with keep_port("127.0.0.1") as kept, socket.socket() as other:
        address = kept.getsockname()
        with pytest.raises(OSError, match="in use"):
            other.bind(address)
        # Two who look in the same place keep two.
        numbers = range(address[1], address[1] + 50)
        with keep_port("", numbers) as second, keep_port("", numbers) as third:
            ports = {address[1], second.getsockname()[1], third.getsockname()[1]}
        assert len(ports) == 3
        with pytest.raises(RunError, match="no port is free"):
            keep_port("127.0.0.1", [address[1]])


@pytest.mark.parametrize("address", ["127.0.0.1", ""])
def test_processes_meet_at_a_kept_port(address: str) -> None:
    import torch.distributed

    with keep_port(address) as kept:
        place = f"tcp://127.0.0.1:{kept.getsockname()[1]}"
        torch.distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
        torch.distributed.destroy_process_group()
