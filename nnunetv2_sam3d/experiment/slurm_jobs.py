"""The Slurm jobs of a cross-validation."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_sam3d.experiment.slurm_scripts import SlurmJob, options_in, parse_options, script, script_name, submission
from nnunetv2_sam3d.own_files import made_anew

if TYPE_CHECKING:  # scripts are made without what trains
    from nnunetv2_sam3d.experiment.crossval import CrossValidation
    from nnunetv2_sam3d.experiment.models import Model
KEPT = (
    "nnUNet_raw",
    "nnUNet_preprocessed",
    "nnUNet_results",
    "nnUNet_extTrainer",
    "nnUNet_sam_checkpoint",
    "nnUNet_n_proc_DA",
    "nnUNet_def_n_proc",
    "nnUNet_compile",
    "XDG_CACHE_HOME",
)
GPU_OPTIONS = {"gres", "gpus", "gpus-per-node", "gpus-per-task"}


def plan_slurm_jobs(
    crossval: CrossValidation,
    names: Sequence[str],
    command: tuple[str, ...],
    *,
    device: str = "cuda",
    num_gpus: int = 1,
    sbatch: Sequence[str] = (),
    template: str = "",
    max_tasks: int = 0,
    environment: Mapping[str, str],
) -> list[SlurmJob]:
    """One array for each model with missing folds, in dependency order, and a last job that accumulates.

    Args:
        crossval: what is to be finished.
        names: of its models, as ``--trainers`` takes them, without those of the repeats, which come last.
        command: ``nnUNetv2_sam3d crossval`` with what all jobs share.
        device: ``cuda``, ``cpu`` or ``mps``, as the jobs find it.
        num_gpus: of each task.
        sbatch: ``option=value`` for the arrays; the last job takes what does not ask for GPUs.
        template: text of the user's template.
        max_tasks: of an array at the same time; 0 for any number.
        environment: from which nnU-Net's variables are kept.
    """
    options = parse_options(sbatch)
    of_template = options_in(template)
    if device == "cuda" and not GPU_OPTIONS & {*options, *of_template}:
        options = {"gres": f"gpu:{num_gpus}", **options}
    if "cpus-per-task" not in {*options, *of_template}:
        options = {"cpus-per-task": "8", **options}
    logs = str(crossval.folder(crossval.models[0], "all_folds") / "slurm" / "logs")
    kept = {name: environment[name] for name in KEPT if environment.get(name)}
    make_job = partial(SlurmJob, logs=logs, environment=kept)
    names_of = {model: f"{model.trainer}__{model.plans}" for model in crossval.models}
    names_of |= dict(zip(crossval.models, names, strict=False))
    missing = {
        model: {fold for fold in crossval.folds if not crossval.training(model, fold).finished}
        for model in crossval.models
    }
    before = {
        model: {other for fold in folds if (other := crossval.depends_on(model, fold)) is not None and missing[other]}
        for model, folds in missing.items()
    }
    for model, folds in missing.items():
        for other in before[model]:
            missing[other] |= folds  # aftercorr wants the same tasks on both sides; those finished before end at once
    jobs = []
    done: set[Model] = set()
    while waiting := [model for model in crossval.models if missing[model] and model not in done]:
        for model in [model for model in waiting if before[model] <= done]:
            done.add(model)
            fold = min(missing[model])
            start = ("--pretrained-weights", str(crossval.pretrained)) if crossval.takes_pretrained(model, fold) else ()
            jobs.append(
                make_job(
                    name=f"{model.dataset}__{model}",
                    command=(
                        *command,
                        *("--trainers", names_of[model]),
                        *start,
                        *("--devices", device, "--num-gpus", str(num_gpus), "--no-accumulate"),
                    ),
                    folds=tuple(sorted(missing[model])),
                    after=tuple(f"{other.dataset}__{other}" for other in before[model]),
                    options=options,
                    template=template,
                    max_tasks=max_tasks,
                )
            )
    if crossval.accumulate and (jobs or not all(step.finished for step in crossval.steps())):
        jobs.append(
            make_job(
                name=f"{crossval.dataset}__accumulate",
                command=(
                    *command,
                    *("--trainers", *names_of.values()),
                    *("--devices", "cpu", "--folds", *map(str, crossval.folds)),
                ),
                after=tuple(job.name for job in jobs),
                options={name: value for name, value in options.items() if name not in GPU_OPTIONS},
                template="\n".join(line for line in template.splitlines() if not GPU_OPTIONS & options_in(line)),
            )
        )
    return jobs


def write_scripts(jobs: Sequence[SlurmJob], folder: Path) -> Path:
    """Writes the scripts of jobs, and the one that submits them.

    Returns:
        the latter, ``submit.sh``.
    """
    for job in jobs:
        Path(job.logs).mkdir(parents=True, exist_ok=True)
    with made_anew(folder, "crossval") as made:
        for job in jobs:
            (made / script_name(job)).write_text(script(job))
        (made / "submit.sh").write_text(submission(jobs, str(folder)))
    return folder / "submit.sh"


def submit(jobs: Sequence[SlurmJob], file: Path) -> str:
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
