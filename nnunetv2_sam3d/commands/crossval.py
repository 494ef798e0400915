"""``nnUNetv2_sam3d crossval``"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.commands.common import add_command, choose_device, default_processes, fold_number, say
from nnunetv2_sam3d.trainers.names import SHORT_NAMES, STUDIES, full_name


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "crossval",
        "Train and validate several trainers on the folds of a planned and preprocessed data set with stock nnU-Net "
        "commands: what is missing, in the order in which trainers start from each other, on one GPU, on several, or "
        "on a Slurm cluster. Stopped in any way and started again, it goes on where it was.",
        """\
        nnUNetv2_sam3d crossval -d 220 --study controls --repeats 3
        nnUNetv2_sam3d crossval -d 220 --study controls --repeats 3 --dry-run
        nnUNetv2_sam3d crossval -d 220 --study controls --trainers nnUNetTrainer
        nnUNetv2_sam3d crossval -d 220 --trainers Original OriginalContinued DualPath OriginalEval nnUNetTrainer
        nnUNetv2_sam3d crossval -d 220 --trainers Original DualPath --folds 0 --devices cuda:0 cuda:1
        nnUNetv2_sam3d crossval -d 220 --trainers OriginalContinued DualPath --pretrained-weights original.pth
        nnUNetv2_sam3d crossval -d 220 --study controls --slurm --sbatch partition=gpu time=24:00:00 mem=64G
        """,
    )
    parser.add_argument("-d", "--dataset", required=True, help="data set number or name")
    parser.add_argument(
        "-p", "--plans", default="nnUNetSAM3DPlans", help="plans of the SAM3D trainers (default: %(default)s)"
    )
    parser.add_argument("-c", "--configuration", default="3d_fullres", help="default: %(default)s")
    parser.add_argument(
        "--trainers",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"{', '.join(SHORT_NAMES)}, or any trainer's class, which gets nnUNetPlans; TRAINER__PLANS gives it "
        "others; beside those of --study",
    )
    parser.add_argument(
        "--study",
        nargs="+",
        default=[],
        choices=tuple(STUDIES),
        help="the trainers of a study, from Original or, where SAM's encoder does not exist, from Full; "
        + "; ".join(f"{study}: {', '.join(arms)}" for study, arms in STUDIES.items())
        + ". Prints first what it costs",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=1,
        metavar="N",
        help="train every SAM3D trainer so often, with other random numbers; repeat K has the plans PLANS_repeatK "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "-f",
        "--folds",
        nargs="+",
        type=fold_number,
        metavar="FOLD",
        help="default: all of splits_final.json (nnU-Net's five)",
    )
    parser.add_argument(
        "--pretrained-weights",
        type=Path,
        metavar="FILE",
        help="start of the SAM3D trainings that start from no other one of this run",
    )
    parser.add_argument("--npz", action="store_true", help="keep the validations' probabilities, for ensembles")
    parser.add_argument(
        "--devices",
        nargs="+",
        metavar="DEVICE",
        help="cuda:0 cuda:1 ... run as many trainings at a time; cuda, cpu, mps run one; cpu cpu two that share the "
        "cores, which is faster for small networks (default: cuda or cpu)",
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="GPUs that share a training's batch (default: %(default)s)"
    )
    parser.add_argument(
        "--no-accumulate",
        action="store_true",
        help="do not run nnUNetv2_accumulate_crossval_results when all folds are there",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only print the commands, or write Slurm's scripts (and the plans of repeats, which the commands name)",
    )
    slurm = parser.add_argument_group("Slurm", "job arrays with the folds as tasks, one for each trainer")
    slurm.add_argument("--slurm", action="store_true", help="write sbatch scripts and submit them")
    slurm.add_argument(
        "--sbatch",
        nargs="+",
        default=[],
        metavar="OPTION=VALUE",
        help="options of sbatch, without dashes: partition=gpu time=24:00:00 mem=64G gres=gpu:a100:1 cpus-per-task=12",
    )
    slurm.add_argument(
        "--template", type=Path, metavar="FILE", help="#SBATCH lines and commands (module load ...) for every script"
    )
    slurm.add_argument(
        "--max-tasks",
        type=int,
        default=0,
        metavar="N",
        help="folds of a trainer that run at the same time (default: any)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs, prints or submits what is missing."""
    from nnunetv2_sam3d.experiment.costs import costs_of
    from nnunetv2_sam3d.experiment.crossval import CrossValidation, parse_models, with_repeats
    from nnunetv2_sam3d.experiment.devices import child_environment, parse_devices
    from nnunetv2_sam3d.experiment.execute import run_steps
    from nnunetv2_sam3d.experiment.preconditions import check, check_devices, check_plans, splits_of
    from nnunetv2_sam3d.experiment.repeat_plans import write_repeat_plans
    from nnunetv2_sam3d.experiment.studies import arms_of
    from nnunetv2_sam3d.nnunet.folders import dataset_folder
    from nnunetv2_sam3d.nnunet.layout import check_paths

    if not options.study and not options.trainers:
        raise ValueError("nothing to train: name the arms with --study or --trainers")
    check_paths()
    devices = parse_devices(options.devices or [choose_device()], options.num_gpus)
    folder = dataset_folder(options.dataset)
    arms = arms_of(options.study, folder / f"{options.plans}.json", options.configuration) if options.study else []
    named = {full_name(name) for name in options.trainers}
    names = [*(arm for arm in arms if full_name(arm) not in named), *options.trainers]
    once = parse_models(folder.name, names, options.plans, options.configuration)
    check_plans(once)
    models = with_repeats(once, options.repeats)
    write_repeat_plans(models)
    splits = splits_of(models[0])
    pretrained = options.pretrained_weights
    crossval = CrossValidation(
        models,
        folds=tuple(dict.fromkeys(range(len(splits)) if options.folds is None else options.folds)),
        all_folds=len(splits),
        pretrained=None if pretrained is None else pretrained.absolute(),
        npz=options.npz,
        accumulate=not options.no_accumulate,
    )
    checkpoint_bytes = check(crossval, splits, devices, lambda line: say(f"# {line}" if options.dry_run else line))
    if options.study or options.repeats > 1:
        costs = costs_of(crossval, checkpoint_bytes).lines(None if options.slurm else len(devices))
        for line in (*_extent(names, once, options), *costs):
            say(f"# {line}" if options.dry_run else line)
    if options.slurm:
        return _slurm(crossval, names, options)
    steps = crossval.steps()
    if options.dry_run:
        for step in steps:
            device = devices[0].arguments if step.on_device else ()
            line = shlex.join([Path(step.command[0]).name, *step.arguments()[1:], *device])
            say(f"# finished: {line}" if step.finished else line)
        return 0
    check_devices(devices)
    environment = child_environment(max(1, default_processes() // len(devices)))
    if (sharing := sum(device.kind == "cpu" for device in devices)) > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // sharing)))
    run_steps(steps, environment, devices)
    say(f"models: {models[0].folder.parent}")
    what = [
        *("-d", str(options.dataset), "-p", options.plans),
        *(["-c", options.configuration] if options.configuration != "3d_fullres" else []),
        *(["-f", *map(str, crossval.folds)] if len(crossval.folds) < len(splits) else []),
        *(["--study", *options.study] if options.study else []),
        *(["--trainers", *options.trainers] if options.trainers else []),
    ]
    say(f"compare them: nnUNetv2_sam3d report {shlex.join(what)} -o OUT")
    return 0


def _extent(names: Sequence[str], models: Sequence[Any], options: argparse.Namespace) -> list[str]:
    """What a study comes down to, and what has no repeats."""
    from nnunetv2_sam3d.experiment.crossval import is_sam3d

    lines = [f"study {' and '.join(options.study)}: {', '.join(names)}"] if options.study else []
    if options.repeats > 1 and (stock := [model.trainer for model in models if not is_sam3d(model)]):
        lines.append(f"trained once, since nothing seeds nnU-Net's own trainers: {', '.join(stock)}")
    return lines


def _template(file: Path) -> str:
    from nnunetv2_sam3d.experiment.slurm_scripts import check_template

    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--template {file} is no text in UTF-8; give #SBATCH lines and commands") from error
    try:
        check_template(text)
    except ValueError as error:
        raise ValueError(f"--template {file}: {error}") from error
    return text


def _slurm(crossval: Any, names: list[str], options: argparse.Namespace) -> int:
    """Writes the scripts, and submits them."""
    from nnunetv2_sam3d.experiment.slurm_jobs import plan_slurm_jobs, submit, write_scripts
    from nnunetv2_sam3d.experiment.steps import program

    shared = ["-d", crossval.dataset, "-p", options.plans, "-c", options.configuration]
    jobs = plan_slurm_jobs(
        crossval,
        names,
        (program("nnUNetv2_sam3d"), "crossval", *shared, *(["--npz"] if options.npz else [])),
        device=(options.devices or ["cuda"])[0].partition(":")[0],
        num_gpus=options.num_gpus,
        sbatch=options.sbatch,
        template=_template(options.template) if options.template else "",
        max_tasks=options.max_tasks,
        environment=os.environ,
    )
    if not jobs:
        say("everything is finished, there is nothing to submit")
        return 0
    file = write_scripts(jobs, Path(jobs[0].logs).parent)
    say(f"scripts: {file.parent}")
    if options.dry_run:
        say(f"submit them with: bash {shlex.quote(str(file))}")
    else:
        say(submit(jobs, file).strip())
        say("squeue --me shows them; when they have ended, the same command submits what is still missing")
    return 0
