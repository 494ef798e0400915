"""Runs a piece of Python in a process of its own with limits, for files that may cost gigabytes or hours."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# The process prints what it needed beyond its imports as its last line.
_FRAME = """
import resource, sys, time
{imports}
before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
{body}
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(time.process_time() - begin, used / 1024)
"""


def run_limited(
    imports: str, body: str, arguments: Sequence[str | Path] = (), *, seconds: float = 10.0, megabytes: float = 300.0
) -> None:
    """Runs ``body`` after ``imports``; ``sys.argv[1:]`` are the arguments.

    Fails if the process ends with an error, needs more CPU time than ``seconds``, or more memory than ``megabytes``
    beyond what its imports take. The limits hold from the outside as well: nothing can eat the machine.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 60, int(seconds) + 60))
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))

    code = _FRAME.format(imports=imports, body=body)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    took, used = map(float, done.stdout.splitlines()[-1].split())
    assert took < seconds, f"{took:.1f} s"
    assert used < megabytes, f"{used:.0f} MB"
