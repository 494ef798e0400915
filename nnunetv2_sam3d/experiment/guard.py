"""Runs a command that must not outlive the process that started it; a program of its own.

A run that is killed (``kill -9``, out of memory) can end nothing itself, and a training that goes on alone would
write into the same folder as the next one. The starter keeps one end of a pipe open; when that end is gone, so is
this process group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading


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
