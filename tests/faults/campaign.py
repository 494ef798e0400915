"""Long commands are killed at random moments, get a full disk, and run twice at once; then they are compared.

    python -m pytest --run-slow -s tests/faults

Every command is first run undisturbed. A disturbed run is started again and ends by itself. It has to leave the same
files then: the same masks, the same tables, and nothing of a temporary name. The counts are printed.
"""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

BIN = Path(sys.executable).parent
TEMPORARY = re.compile(r"\.partial|\.being_made_|sam3d_benchmark_|\.tmp$")
# times, paths and durations, which differ between two undisturbed runs as well
UNEQUAL = ("report.html", "summary.json", "steps.json", "made_from.json", "debug.json", "progress.png", ".lock", ".log")


PREDICTIONS = "predict_sam3d.jsonl"


@dataclass
class Task:
    """A command with the folder that it writes.

    Attributes:
        name: in the counts.
        arguments: makes them, given the folder.
        variables: of the environment, given the folder.
        prepared: fills a folder with what has to be there before.
        compared: what an undisturbed run and a disturbed one share, given the folder.
    """

    name: str
    arguments: Callable[[Path], list[str]]
    variables: Callable[[Path], dict[str, str]]
    prepared: Callable[[Path], None] = lambda folder: None
    compared: Callable[[Path], dict[str, str]] = lambda folder: contents(folder)

    def start(self, folder: Path, **options: object) -> subprocess.Popen[str]:
        program, *arguments = self.arguments(folder)
        return subprocess.Popen(
            [str(BIN / program), *arguments], env=os.environ | self.variables(folder), cwd=folder.parent, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            **options,  # type: ignore[call-overload]
        )  # fmt: skip

    def finish(self, folder: Path) -> str:
        process = self.start(folder)
        output = process.communicate(timeout=900)[0]
        assert process.returncode == 0, output[-3000:]
        return output


def contents(folder: Path, unequal: tuple[str, ...] = UNEQUAL) -> dict[str, str]:
    """A hash for each file that two runs have to share."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith(unequal) and not path.name.startswith("training_log"):
            data = path.read_bytes()
            data = gzip.decompress(data) if path.name.endswith(".gz") else data
            if path.name == PREDICTIONS:  # a line for each time that a case was predicted; the last one counts
                lines = {json.loads(line)["case"]: line for line in data.splitlines()}
                data = b"\n".join(lines[case] for case in sorted(lines))
            found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def of_trainings(folder: Path) -> dict[str, str]:
    """Files of trainings: resumed ones have seen other patches, so their bytes differ; the checkpoints are whole."""
    for checkpoint in folder.rglob("checkpoint_final.pth"):
        torch.load(checkpoint, map_location="cpu", weights_only=False)
    return dict.fromkeys(contents(folder), "")


def measured_cases(folder: Path) -> dict[str, str]:
    """What a benchmark has measured; seconds differ from run to run."""
    records = json.loads((folder / "records.json").read_text())["records"]
    return {str(record["what"]): "measured" for record in records if record["seconds"] > 0}


def left_behind(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if TEMPORARY.search(path.name)]


def kills(task: Task, folder: Path, expected: dict[str, str], seconds: float, tries: int, seed: int) -> Counter[str]:
    """Kills the command at a random moment in each of ``tries`` folders, then starts it again and lets it finish."""
    counts, moments = Counter[str](), random.Random(seed)
    for number in range(tries):
        target = folder / f"{task.name}_{number}"
        task.prepared(target)
        blow = moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
        process = task.start(target)
        try:
            process.communicate(timeout=moments.uniform(0.2, 1.0) * seconds)
            counts["ended before the blow"] += 1
        except subprocess.TimeoutExpired:
            process.send_signal(blow)
            begun = time.monotonic()
            process.communicate(timeout=60)
            counts["killed"] += 1
            counts["took more than 10 s to end"] += time.monotonic() - begun > 10
        task.finish(target)
        counts["finished"] += 1
        counts["identical"] += task.compared(target) == expected
        counts["left behind"] += bool(left_behind(target))
    counts["tries"] = tries
    return counts


def twice_at_once(task: Task, folder: Path, expected: dict[str, str], tries: int) -> Counter[str]:
    """Two of the command on one folder: each ends well or says why, and the files are those of one."""
    counts = Counter[str](tries=tries)
    for number in range(tries):
        target = folder / f"{task.name}_twice_{number}"
        task.prepared(target)
        outputs = [
            (process, process.communicate(timeout=900)[0]) for process in [task.start(target), task.start(target)]
        ]
        counts["ended well"] += sum(process.returncode == 0 for process, _ in outputs)
        counts["tracebacks"] += sum("Traceback" in output for _, output in outputs)
        task.finish(target)
        counts["identical"] += task.compared(target) == expected
        counts["left behind"] += bool(left_behind(target))
    return counts


def bound_by_permissions() -> None:
    """Before a command: takes from the system's administrator what lets him write everywhere."""
    if os.geteuid() == 0:
        drop_from_bounding_set, dac_override = 24, 1  # prctl(2), capabilities(7)
        ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override)


def show(name: str, counts: Counter[str]) -> str:
    return f"{name}: {json.dumps(dict(sorted(counts.items())))}"
