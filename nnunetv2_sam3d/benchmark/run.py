"""The benchmark: a fresh process for every case, results kept after each, a failed case recorded and passed over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_sam3d.benchmark.case import BenchmarkCase
from nnunetv2_sam3d.children import Child
from nnunetv2_sam3d.files import write_json
from nnunetv2_sam3d.json_files import is_number, is_table, list_of, read_table
from nnunetv2_sam3d.memory.model import available_bytes
from nnunetv2_sam3d.messages import shown

PARITY = 1e-4  # of float32 logits of our form and the plain one
RESERVE = 0.95  # part of the available memory that a case may take
DECIDING = ("device", "gpu", "processor", "threads", "torch", "nnunetv2_sam3d", "code")


def run(
    cases: Sequence[BenchmarkCase],
    *,
    json_file: Path | None = None,
    repeats: int = 5,
    time_limit_s: float = 300.0,
    timeout_s: float = 3600.0,
    threads: int | None = None,
    again: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measures all cases.

    Args:
        cases: what to measure.
        json_file: where the results go, after every case; what it already holds of the same machine and code is kept.
        repeats: timed runs of each case, after one that warms up.
        time_limit_s: no further run of a case begins after this time.
        timeout_s: a process that takes longer is ended and its case recorded as failed.
        threads: of torch; its own choice by default.
        again: measure everything anew, whatever the file holds.
        say: takes a line for the user.

    Returns:
        ``{"environment": ..., "records": [...]}``; failed records have ``failed``, the reason, and no ``seconds``.

    Raises:
        ValueError: if the file holds measurements of another machine or other code.
        RuntimeError: if no process can be started on the device.
    """
    earlier = {} if again or json_file is None or not json_file.is_file() else _earlier(json_file)
    scratch = Path(tempfile.mkdtemp(prefix="sam3d_benchmark_"))
    logits = Path(f"{json_file}.logits") if json_file else scratch  # beside the results, so that a later run compares
    try:
        device = cases[0].device
        environment = _process({"device": device}, scratch, threads, timeout_s)
        if "failed" in environment:
            raise RuntimeError(f"nothing can be measured on {device}: {environment['failed']}")
        say(", ".join([environment.get("gpu", environment["processor"]), f"{environment['threads']} threads"]))
        records = _kept(json_file, earlier, environment) if earlier else {}
        if records:
            say(f"{len(records)} records of {json_file} are kept; --again measures them anew")
        logits.mkdir(parents=True, exist_ok=True)
        for number, case in enumerate(cases, 1):
            if case in records:
                continue
            job = {"case": case.to_dict(), "repeats": repeats, "time_limit_s": time_limit_s, "logits_file": None}
            if case.what == "forward":
                job["logits_file"] = str(_logits_of(case, logits))
            measured = _process(job, scratch, threads, timeout_s)
            records[case] = case.to_dict() | measured
            say(f"[{number}/{len(cases)}] {case.label()}: {_summary(records[case])}")
            result = {"environment": environment, "records": list(records.values())}
            _compare(records, logits)
            if json_file is not None:
                write_json(json_file, result)
        shutil.rmtree(logits, ignore_errors=True)
        return {"environment": environment, "records": list(records.values())}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def parity_failures(records: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences about float32 logits of ours that differ from the plain form's."""
    return [
        f"{BenchmarkCase.from_dict(record).label()}: logits differ by {record['max_difference']:.1e} from "
        f"{record['compared_with']}, more than {PARITY:.0e}"
        for record in records
        if record["precision"] == "float32" and record.get("max_difference", 0.0) > PARITY
    ]


def _earlier(file: Path) -> dict[str, Any]:
    """What an earlier run wrote; ValueError for anything else."""
    remedy = "It is no result of this benchmark: give another --json, or delete it"
    content = read_table(file, remedy, {"records": list_of(is_table), "environment": is_table})
    for record in content["records"]:
        figures = ("seconds", "seconds_spread", "peak_rss_bytes")
        try:
            BenchmarkCase.from_dict(record).label()
            sound = "failed" in record or all(is_number(record[name]) for name in figures)
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            raise ValueError(f"{file} holds a record that this benchmark did not write: {shown(record)}. {remedy}")
    return content


def _kept(
    file: Path | None, earlier: dict[str, Any], environment: dict[str, Any]
) -> dict[BenchmarkCase, dict[str, Any]]:
    """Finished records of an earlier run on the same machine."""
    found = {BenchmarkCase.from_dict(record): record for record in earlier["records"] if "failed" not in record}
    before = earlier["environment"]
    differs = [key for key in DECIDING if before.get(key) != environment.get(key)]
    if differs:
        changes = ", ".join(f"{key} {before.get(key)} -> {environment.get(key)}" for key in differs)
        raise ValueError(
            f"{file} holds measurements that cannot be compared with new ones ({changes}). Give another --json, or "
            f"replace them with --again."
        )
    return found


def _process(job: dict[str, Any], scratch: Path, threads: int | None, timeout_s: float) -> dict[str, Any]:
    """Runs one job in a fresh process; whatever happens to it becomes a record."""
    job_file, result_file = scratch / "job.json", scratch / "result.json"
    result_file.unlink(missing_ok=True)
    on_cpu = job.get("device", job.get("case", {}).get("device")) == "cpu"
    available = available_bytes() if on_cpu else None  # CUDA maps more than it takes
    limit = int(available * RESERVE) if available else None
    job_file.write_text(json.dumps(job | {"threads": threads, "memory_limit": limit, "result_file": str(result_file)}))
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    command = [sys.executable, "-m", "nnunetv2_sam3d.benchmark.worker", str(job_file)]
    child = Child(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        _, errors = child.process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished after {timeout_s:.0f} s"}
    finally:
        child.close()
        child.process.wait()
    status = child.process.returncode
    if result_file.is_file() and status == 0:
        return json.loads(result_file.read_text())
    if status == 128 + signal.SIGKILL:
        return {"failed": "killed by the system, most probably out of memory"}
    last = (errors.strip().splitlines() or ["no message"])[-1]
    return {"failed": f"the process ended with status {status}: {last}"}


def _logits_of(case: BenchmarkCase, folder: Path) -> Path:
    """Where the logits of a forward pass are kept until all are measured."""
    return folder / f"{case.label().replace(' ', '_')}.npy"


def _compare(records: dict[BenchmarkCase, dict[str, Any]], folder: Path) -> None:
    """Adds to every forward record how far its logits are from the plain form's in float32, or else from ours."""
    for case, record in records.items():
        if case.what != "forward" or "failed" in record or record.get("compared_with") == "plain float32":
            continue
        for form in ("plain", "ours"):
            values = case.to_dict() | {"form": form, "precision": "float32"}
            reference = BenchmarkCase.from_dict(values)
            files = _logits_of(case, folder), _logits_of(reference, folder)
            if reference != case and reference in records and all(file.is_file() for file in files):
                logits, expected = (np.load(file) for file in files)
                difference = logits - expected
                record["compared_with"] = f"{form} float32"
                record["max_difference"] = float(np.abs(difference).max())
                record["relative_error"] = float(np.linalg.norm(difference) / np.linalg.norm(expected))
                break


def _summary(record: dict[str, Any]) -> str:
    if "failed" in record:
        return f"failed: {record['failed']}"
    return (
        f"{record['seconds']:.3g} s (spread {record['seconds_spread']:.2g}), "
        f"{record['seconds'] / record['floor_seconds']:.2f} x floor at "
        f"{record['products_per_second'] / 1e9:.0f} GFLOP/s, {record['peak_rss_bytes'] / 1e9:.2f} GB"
    )
