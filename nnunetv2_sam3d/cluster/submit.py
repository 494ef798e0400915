"""Writes Slurm's scripts and submits them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_sam3d.experiment.slurm_scripts import Job, script, script_name, submission


def write_scripts(jobs: Sequence[Job], folder: Path) -> Path:
    """Writes the scripts of jobs, and the one that submits them.

    Returns:
        the latter, ``submit.sh``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.sbatch"):
        old.unlink()
    for job in jobs:
        Path(job.logs).mkdir(parents=True, exist_ok=True)
        (folder / script_name(job)).write_text(script(job))
    file = folder / "submit.sh"
    file.write_text(submission(jobs, str(folder)))
    return file


def submit(jobs: Sequence[Job], file: Path) -> str:
    """Submits written scripts; returns the jobs' numbers and names.

    Raises:
        RuntimeError: if Slurm is not there or refuses, or jobs of these names are in the queue.
    """
    names = ",".join(job.name for job in jobs)
    queued = _run("squeue", "--me", "--noheader", "--format=%i %j", f"--name={names}")
    if queued.strip():
        raise RuntimeError(
            f"jobs of these trainings are in the queue already:\n{queued}Wait for them, or cancel them (scancel)."
        )
    return _run("bash", str(file))


def _run(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError(
            f"{command[0]} is not installed here; run this on a machine from which Slurm takes jobs, or write the "
            f"scripts only (--dry-run)."
        ) from error
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout
