"""Worker processes that work a list of tasks off in order, with a bounded number on the way.

Not `ProcessPoolExecutor`: this pool is gone at once on Ctrl-C or an error, and notices a killed
worker."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from multiprocessing import connection, parent_process
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from hpc_mlp.errors import RunError

Task = TypeVar("Task")
Result = TypeVar("Result")
T = TypeVar("T")

# Tasks a worker has in hand, so that it never waits for the next.
_AHEAD = 2
# Tasks a worker may be ahead of the slowest.
_WINDOW = 8


class Pool(Generic[T]):
    """`count` processes forked from this one, each with its copy of `worker`; 1: this very one."""

    def __init__(self, worker: T, count: int) -> None:
        self._worker, self._count = worker, count
        self._pipes: list[connection.Connection] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []

    def __enter__(self) -> Pool[T]:
        if self._count > 1:
            # Forked, so that the listing of a million entries is shared and not copied.
            context = multiprocessing.get_context("fork")
            for _ in range(self._count):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(self._worker, theirs, [*self._pipes, ours])
                )
                process.daemon = True
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
            process.join()
            # Its descriptors would stay open for as long as somebody keeps an error from here.
            process.close()

    def map(self, method: Callable[[T, Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """`method(worker, task)` for every task, in order. What it raises is raised here."""
        if not self._pipes:
            for task in tasks:
                yield method(self._worker, task)
            return
        todo = enumerate(tasks)
        ready: dict[int, Result] = {}
        in_hand = dict.fromkeys(self._pipes, 0)
        idle = deque([*self._pipes] * _AHEAD)
        wanted = sent = 0
        while True:
            room = wanted + _WINDOW * self._count
            while idle and sent < room and (job := next(todo, None)) is not None:
                pipe = idle.popleft()
                _send(pipe, (method.__name__, *job))
                in_hand[pipe] += 1
                sent += 1
            if wanted == sent:
                return
            while wanted not in ready:
                waiting: list[Any] = [pipe for pipe, number in in_hand.items() if number]
                for pipe in cast(list[connection.Connection], connection.wait(waiting)):
                    number, result = _receive(pipe)
                    ready[number] = result
                    in_hand[pipe] -= 1
                    idle.append(pipe)
            yield ready.pop(wanted)
            wanted += 1


def in_background(function: Callable[[], Result]) -> Future[Result]:
    """`function`, called in a daemon thread. An Executor's threads hold up the exit: after Ctrl-C a
    large archive would be hashed to its end."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _send(pipe: connection.Connection, message: object) -> None:
    try:
        pipe.send(message)
    except OSError:
        raise _lost() from None


def _receive(pipe: Any) -> tuple[int, Any]:
    try:
        number, result = pipe.recv()
    except (EOFError, OSError):
        raise _lost() from None
    if isinstance(result, BaseException):
        raise result
    return number, result


def _lost() -> RunError:
    return RunError(
        "a worker process was killed, most likely for lack of memory. Try again with fewer: "
        "--workers 1"
    )


def _serve(
    worker: object, pipe: connection.Connection, others: list[connection.Connection]
) -> None:
    # Forked along; held open they would hide the death of their owners.
    for other in others:
        other.close()
    # Ctrl-C is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    while True:
        try:
            name, number, task = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        try:
            result = getattr(worker, name)(task)
        except Exception as error:
            result = error
        try:
            pipe.send((number, result))
        except OSError:
            os._exit(0)


def _end_with(sentinel: int) -> None:
    """Without its parent there is nothing left for a worker to do."""
    connection.wait([sentinel])
    os._exit(1)
