"""The text of Slurm scripts: pure functions of what they are told."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MINUTES_TO_STOP = 2  # before the time limit: a training is ended and queued again
OPTION = re.compile(r"([a-zA-Z][a-zA-Z0-9-]*)(?:=(.*))?")
OURS = {"array", "job-name", "output", "open-mode", "requeue", "signal", "dependency"}
SHORT = {
    "a": "array", "J": "job-name", "o": "output", "d": "dependency", "c": "cpus-per-task", "G": "gpus",
}  # fmt: skip


@dataclass(frozen=True)
class SlurmJob:
    """An array of folds, or one job that follows the arrays.

    Attributes:
        name: of the job; its script and logs are called after it.
        command: program and arguments; an array's tasks add ``--folds`` and their fold.
        logs: folder of the output.
        folds: tasks of the array; none for a single job.
        after: the job whose same fold each task waits for, or for a single job the jobs that it waits for.
        options: of sbatch, by their long names; an empty value for one without.
        template: lines of the user: ``#SBATCH`` ones, and commands to run before.
        environment: variables that the job needs, whatever the cluster passes on.
        max_tasks: that run at the same time; 0 for any number.
    """

    name: str
    command: tuple[str, ...]
    logs: str
    folds: tuple[int, ...] = ()
    after: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    template: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    max_tasks: int = 0


def parse_options(options: Sequence[str]) -> dict[str, str]:
    """``["partition=gpu", "exclusive"]`` -> ``{"partition": "gpu", "exclusive": ""}``.

    Raises:
        ValueError: for what is no long option of sbatch, or one that the scripts set themselves.
    """
    parsed = {}
    for option in options:
        match = OPTION.fullmatch(option.removeprefix("--"))
        if match is None or not option.isprintable():
            raise ValueError(f"{option!r} is no option of sbatch; give its long name and value: time=24:00:00")
        if match[1] in OURS:
            raise ValueError(f"the scripts set sbatch's --{match[1]} themselves; leave {option!r} out")
        parsed[match[1]] = match[2] or ""
    return parsed


def check_template(text: str) -> None:
    """Raises ValueError for ``#SBATCH`` lines that would silently replace what the scripts set.

    Args:
        text: of the user's template.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if "\0" in line:
            raise ValueError(f"line {number} holds a zero byte; give #SBATCH lines and commands")
        for name in sorted(options_in(line) & OURS):
            raise ValueError(f"line {number}, {line.strip()!r:.99}: the scripts set --{name} themselves; delete it")


def options_in(text: str) -> set[str]:
    """Long names of the options in the ``#SBATCH`` lines of a text, as far as the scripts care for them."""
    lines = [line.partition(" #")[0] for line in text.splitlines() if line.startswith("#SBATCH")]
    found = [pair for line in lines for pair in re.findall(r"(?<=\s)(?:--([a-z][a-z-]*)|-([a-zA-Z]))", line)]
    return {long or SHORT.get(short, "") for long, short in found} - {""}


def script(job: SlurmJob) -> str:
    """The sbatch script of a job."""
    template = job.template.splitlines()
    of_the_user = [line for line in template if line.startswith("#SBATCH")]
    commands = [line for line in template if not line.startswith(("#SBATCH", "#!"))]
    log, task = (
        ("%x.%A_%a.log", "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID") if job.folds else ("%x.%j.log", "$SLURM_JOB_ID")
    )
    lines = ["#!/bin/bash", f"#SBATCH --job-name={_quoted(job.name)}"]
    if job.folds:
        limit = f"%{job.max_tasks}" if job.max_tasks else ""
        lines.append(f"#SBATCH --array={','.join(map(str, job.folds))}{limit}")
    lines += [
        f"#SBATCH --output={_quoted(job.logs.replace('%', '%%') + f'/{log}')}",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        f"#SBATCH --signal=B:USR1@{60 * MINUTES_TO_STOP}",
        *of_the_user,
        *(
            f"#SBATCH --{name}={_quoted(value)}" if value else f"#SBATCH --{name}"
            for name, value in job.options.items()
        ),
        "",
        *(f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()),
        'export nnUNet_n_proc_DA="${nnUNet_n_proc_DA:-${SLURM_CPUS_PER_TASK:-1}}"',
        'export nnUNet_def_n_proc="${nnUNet_def_n_proc:-${SLURM_CPUS_PER_TASK:-1}}"',
        *(["", *commands] if commands else []),
        "",
        "# The time limit is near: end the training, which keeps its last checkpoint, and queue this task again.",
        "again() {",
        '    kill -TERM "$work" 2>/dev/null; wait "$work"',
        f'    scontrol requeue "{task}" && sleep 60  # in which Slurm ends this script',
        "    exit 1",
        "}",
        "trap again USR1",
        "",
        f"{shlex.join(job.command)}" + (' --folds "$SLURM_ARRAY_TASK_ID" &' if job.folds else " &"),
        "work=$!",
        'wait "$work"',
    ]
    return "\n".join(lines) + "\n"


def submission(jobs: Sequence[SlurmJob], folder: str) -> str:
    """A script that submits the jobs, each after those that it waits for; all of them or none.

    A fold's task begins when the same fold of the array before has succeeded (``aftercorr``), a single job when all
    arrays have (``afterok``). What can never begin, since something before it failed, leaves the queue.
    """
    numbers = {job.name: f"job{number}" for number, job in enumerate(jobs)}
    lines = [
        "#!/bin/bash",
        "set -euo pipefail",
        f"cd {shlex.quote(folder)}",
        "submitted=()",
        "trap '[ $? -eq 0 ] || [ ${#submitted[@]} -eq 0 ] || scancel \"${submitted[@]}\"' EXIT",
        'submit() { number=$(sbatch --parsable "$@"); number=${number%%;*}; submitted+=("$number"); }',
        "",
    ]
    for job in jobs:
        waits = ":".join(f"${numbers[name]}" for name in job.after)
        kind = "aftercorr" if job.folds else "afterok"
        dependency = f"--kill-on-invalid-dep=yes --dependency={kind}:{waits} " if waits else ""
        lines += [
            f"submit {dependency}{shlex.quote(script_name(job))}",
            f"{numbers[job.name]}=$number",
            f'echo "${numbers[job.name]}" {shlex.quote(job.name)}',
        ]
    return "\n".join(lines) + "\n"


def script_name(job: SlurmJob) -> str:
    """File name of a job's script."""
    return f"{job.name}.sbatch"


def _quoted(value: str) -> str:
    """A value in a ``#SBATCH`` line, which sbatch splits at spaces outside quotes.

    Raises:
        ValueError: for line ends and other control characters: what follows them would be a command of the script.
    """
    if re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029]", value):
        raise ValueError(f"{value!r:.100} has a line end or a control character in it, which no Slurm script can hold")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if re.search(r"[\s#\"'\\]", value) else value
