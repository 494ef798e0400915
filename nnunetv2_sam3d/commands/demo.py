"""``nnUNetv2_sam3d demo``"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.commands.common import add_command, choose_device, default_processes, say

PATHS = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
DATASET, FOLDER = 990, "Dataset990_KidneyPhantoms"
ARMS = ("Full", "OriginalContinued", "DualPath", "OriginalEval")  # of two that could begin, the longer one


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "demo",
        "The whole experiment on generated abdominal CTs, on any machine: "
        "Full on vit_tiny, DualPath, its control OriginalContinued and OriginalEval from it, prediction of unseen "
        "cases, report. Stopped and started again, it goes on where it was.",
        """\
        nnUNetv2_sam3d demo
        nnUNetv2_sam3d demo -o /data/sam3d_demo --seed 1
        nnUNetv2_sam3d demo --data-only
        """,
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("sam3d_demo"),
        help="folder for data, models and results (default: ./%(default)s)",
    )
    parser.add_argument("--data-only", action="store_true", help="only write the nnU-Net raw data set")
    parser.add_argument(
        "--cysts",
        action="store_true",
        help="annotate cysts, as KiTS does since 2021; without it they are kidney, as in KiTS19 (a training of minutes "
        "does not find them)",
    )
    parser.add_argument("--train-cases", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--test-cases", type=int, default=4, help="cases not seen in training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the phantoms (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="of Full (default: %(default)s)")
    parser.add_argument(
        "--continued-epochs", type=int, default=3, help="of the arms that start from Full (default: %(default)s)"
    )
    parser.add_argument("--iterations-per-epoch", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: cuda if there is one, else cpu")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Makes the data and runs the comparison."""
    from nnunetv2_sam3d.demo.raw_dataset import write_dataset
    from nnunetv2_sam3d.settings import Settings

    settings = Settings(
        variant="vit_tiny",
        epochs=options.epochs,
        continued_epochs=options.continued_epochs,
        iterations_per_epoch=options.iterations_per_epoch,
        val_iterations_per_epoch=2,
        initial_lr=2e-3,
        clicks="none",
        mirror_axes=(),  # eight passes instead of one in every validation, and phantoms have a right side
    )
    root = options.output.absolute()
    _check_own(root)
    for name, folder in PATHS.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(root / folder)  # before nnU-Net's modules and sub-processes look
    data = write_dataset(
        root / "raw",
        dataset_id=DATASET,
        train_cases=options.train_cases,
        test_cases=options.test_cases,
        seed=options.seed,
        cysts=options.cysts,
        processes=default_processes(),
    )
    say(f"raw data set: {data}")
    if options.data_only:
        return 0

    from nnunetv2_sam3d.experiment.comparison import Comparison
    from nnunetv2_sam3d.experiment.devices import Device
    from nnunetv2_sam3d.experiment.run_comparison import run as run_comparison
    from nnunetv2_sam3d.trainers.names import full_name

    device = choose_device(options.device)
    # The data are small: a further process takes longer to start than it saves.
    for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
        os.environ.setdefault(name, "1")
    run_comparison(
        Comparison(
            dataset=DATASET,
            trainers=tuple(map(full_name, ARMS)),
            fold=0,
            settings=settings,
            patch_size=(32, 64, 64),
            batch_size=1,
            spacing_mm=(4.0, 4.0, 4.0),
            processes=default_processes(),
            test_time_mirroring=False,
            verify=False,  # nobody else has written these cases
        ),
        (Device(device),) * (2 if device == "cpu" else 1),  # small steps keep one core busy, not two
        ["nnUNetv2_sam3d", *sys.argv[1:]],
        say,
    )
    exports = " ".join(f"{name}={shlex.quote(str(root / folder))}" for name, folder in PATHS.items())
    say(f"to go on with these models: export {exports}")
    return 0


def _check_own(root: Path) -> None:
    """Raises ValueError for a folder with files of others."""
    if (root / PATHS["nnUNet_raw"] / FOLDER).is_dir() or not root.exists():
        return
    if not root.is_dir() or any(path.is_file() for path in root.rglob("*")):
        raise ValueError(f"{root} holds files that this command did not make. Choose another folder with -o")
