"""Nothing outlives what started it: signals end a command with its children, and a killed command's children notice.

A command that is asked to end (Ctrl-C, ``kill``, a terminal that is closed) unwinds, and on its way ends what it has
started and deletes its temporary folders. A command that is killed (``kill -9``, out of memory) can end nothing itself,
and a training that goes on alone would write into the same folder as the next one. So a child runs in a process group
of its own under this module as a program. Its starter keeps one end of a pipe open; when that end is gone, so is the
group.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
ENDING = ("SIGTERM", "SIGHUP")  # SIGINT raises KeyboardInterrupt by itself; Windows has no SIGHUP


class AskedToEnd(KeyboardInterrupt):
    """A signal asked the command to end.

    Attributes:
        status: exit status that shells give such commands.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def unwind_on_signals() -> None:
    """Lets the signals that ask a command to end raise :class:`AskedToEnd`; ignored ones (``nohup``) stay ignored.

    In this process alone. A forked one, such as a worker of nnU-Net's pools, ends at them as it would without.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # Python allows handlers there alone
    for name in ENDING:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _raise)
            _end_forked_processes(number)


@functools.cache  # once a process: such functions cannot be taken back
def _end_forked_processes(number: int) -> None:
    """Gives the signal its default back in forked processes.

    Python forgets signals that reach a child before it runs. A pool that ends at once terminates its workers in that
    moment, and then waits for them forever. So the signal is held back until the child has the default.
    """
    before = threading.local()

    def hold() -> None:
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {number})

    def let_go() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def reset() -> None:
        signal.signal(number, signal.SIG_DFL)
        let_go()

    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(before=hold, after_in_parent=let_go, after_in_child=reset)


def _raise(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not break off the unwinding
    raise AskedToEnd(number)


@contextlib.contextmanager
def worker_processes(count: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A ``map`` whose calls are shared out among processes; with one, none is started.

    They end with this process, however that ends: their queue is closed then. Each has one thread for its matrix
    products: several would wait for those of the others.
    """
    if count <= 1:
        yield map
        return
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    try:
        pool = multiprocessing.get_context("spawn").Pool(count)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    with pool:
        yield pool.imap


class Child:
    """A command in a process group of its own, which ends when this object's process does.

    Args:
        command: program and arguments.
        options: of ``subprocess.Popen``.

    Attributes:
        process: of the program that watches over the command; its exit status is the command's, or 128 + N if signal N
            ended it.
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        ear, self._mouth = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(ear), *command], pass_fds=(ear,), start_new_session=True, **options
            )
        except BaseException:
            os.close(self._mouth)
            raise
        finally:
            os.close(ear)

    def send(self, number: int) -> None:
        """A signal for the command and its own children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        """Closes the pipe, which kills whatever still runs."""
        with contextlib.suppress(OSError):
            os.close(self._mouth)


def main(descriptor: int, command: list[str]) -> int:
    """Runs the command in this process group until it ends or the pipe is closed.

    Returns:
        the command's exit status, 128 + N if signal N ended it.
    """
    # handlers, unlike ignored signals, are not inherited: the command ends and this process reports it
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_end_with, args=(descriptor,), daemon=True).start()
    status = subprocess.Popen(command).wait()
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGTERM)  # workers that a crashed command has left
    return status if status >= 0 else 128 - status


def _end_with(descriptor: int) -> None:
    os.read(descriptor, 1)  # nothing is ever written: it returns when the other end is closed
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
