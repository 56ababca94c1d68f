"""A real Jupyter kernel that runs cells."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.manager import start_new_kernel

Message = dict[str, Any]


class Kernel:
    """`manager` and `client`: jupyter_client's; `folder`: where it works."""

    def __init__(self, manager: Any, client: Any, folder: Path) -> None:
        self.manager, self.client, self.folder = manager, client, folder

    def start(self, code: str) -> Iterator[Message]:
        """Run the cell `code`; → what it sends, as it comes: {"type", "content"}."""
        request = self.client.execute(code)
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except queue.Empty:
                continue
            kind = message["msg_type"]
            if message["parent_header"].get("msg_id") != request:
                continue
            if kind == "status" and message["content"]["execution_state"] == "idle":
                return
            if kind not in ("status", "execute_input"):
                yield {"type": kind, "content": message["content"]}
        raise TimeoutError(code)

    def run(self, code: str) -> list[Message]:
        return list(self.start(code))

    def interrupt(self) -> None:
        """As the stop button does."""
        self.manager.interrupt_kernel()


@contextmanager
def kernel(folder: Path) -> Iterator[Kernel]:
    """Its working directory is `folder`."""
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(folder))
    try:
        yield Kernel(manager, client, folder)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
