"""``nnUNetv2_sam3d experiment``"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from nnunetv2_sam3d.commands.common import add_command, choose_device, default_processes, say
from nnunetv2_sam3d.commands.plan import add_network_options, settings_from
from nnunetv2_sam3d.trainers.names import SHORT_NAMES


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "experiment",
        "Compare trainers on one fold of a raw data set: plan, preprocess, train, validate, predict imagesTs, all with "
        "stock nnU-Net commands, and report. Stopped and started again, it goes on where it was.",
        """\
        nnUNetv2_sam3d experiment -d 4 --variant vit_tiny --epochs 20 --iterations-per-epoch 40
        nnUNetv2_sam3d experiment -d 48 --trainers Original OriginalContinued DualPath OriginalEval --device cuda
        nnUNetv2_sam3d experiment -d 4 --variant vit_tiny --trainers Full DualPath OriginalEval TimeBudget
        """,
    )
    parser.add_argument("-d", "--dataset", type=int, required=True, help="data set number")
    parser.add_argument("-f", "--fold", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--trainers",
        nargs="+",
        default=["Full", "OriginalContinued", "DualPath", "OriginalEval"],
        metavar="NAME",
        help=f"{', '.join(SHORT_NAMES)} (stock nnU-Net for as long as the others took together), or the class of any "
        "nnU-Net trainer (default: Full OriginalContinued DualPath OriginalEval)",
    )
    parser.add_argument("-o", "--name", default="nnUNetSAM3DPlans", help="name of the derived plans")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: cuda if there is one, else cpu")
    add_network_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the comparison."""
    from nnunetv2_sam3d.experiment.comparison import Comparison
    from nnunetv2_sam3d.experiment.devices import Device
    from nnunetv2_sam3d.experiment.run_comparison import run as run_comparison
    from nnunetv2_sam3d.trainers.names import ordered

    run_comparison(
        Comparison(
            dataset=options.dataset,
            trainers=tuple(ordered(options.trainers)),
            fold=options.fold,
            settings=settings_from(options),
            patch_size=options.patch_size,
            batch_size=options.batch_size,
            spacing_mm=options.spacing,
            plans=options.name,
            processes=default_processes(),
        ),
        (Device(choose_device(options.device)),),
        ["nnUNetv2_sam3d", *sys.argv[1:]],
        say,
    )
    return 0
