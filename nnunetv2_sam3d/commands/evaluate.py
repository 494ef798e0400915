"""``nnUNetv2_sam3d evaluate``"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.commands.common import (
    add_command,
    add_model_options,
    check_output_folder,
    choose_device,
    find_model_of,
    folds_of,
    say,
)
from nnunetv2_sam3d.nnunet.layout import ModelName

CLICK_COUNTS = {"reference": (1, 3, 10), "whole-volume": (0, 1, 3, 5, 10)}


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "evaluate",
        "Test a trained model with clicks on its folds' validation cases, beside nnU-Net's automatic validation and "
        "never mixed with it. The protocol 'reference' is that of 3DSAM-adapter's authors: 1, 3 and 10 random clicks "
        "on the tumour, one crop around them, Dice and surface Dice (NSD) at 5 mm. The protocol 'whole-volume' says "
        "what a click is worth: the whole volume on its original grid, automatic (0 clicks, as nnU-Net's validation), "
        "then with clicks where a user would correct it. Stopped and started again, it goes on with the next case.",
        """\
        nnUNetv2_sam3d evaluate nnUNet_results/Dataset048_KiTS/nnUNetTrainer_SAM3DDualPath__nnUNetSAM3DPlans__3d_fullres
        nnUNetv2_sam3d evaluate -d 48 -tr nnUNetTrainer_SAM3DOriginalEval -f 0 --protocol reference --target tumour
        nnUNetv2_sam3d evaluate -d 48 -f 0 --target 2,3 --seed 1 -o masses_seed1
        nnUNetv2_sam3d evaluate -d 51 -tr nnUNetTrainer_SAM3DFull --clicks 0 1 3 5 10
        nnUNetv2_sam3d evaluate -d 51 -tr nnUNetTrainer_SAM3DFull --clicks 0 1 3 5 10 --only-clicked
        """,
    )
    parser.add_argument("model", type=Path, nargs="?", help="folder of a trained model (or name it by -d, -tr, -p, -c)")
    add_model_options(parser)
    parser.add_argument(
        "--protocol",
        choices=tuple(CLICK_COUNTS),
        help="default: reference, or whole-volume where --clicks holds 0 (automatic), which reference does not have",
    )
    parser.add_argument(
        "--target",
        help="label or region to click on, a name in dataset.json or numbers like 2 or 2,3 (default: what is called "
        "tumour, lesion or the like, else the whole foreground)",
    )
    parser.add_argument(
        "--clicks",
        type=int,
        nargs="+",
        metavar="N",
        help="numbers of clicks (default: 1 3 10 for reference, 0 1 3 5 10 for whole-volume)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the clicks (default: %(default)s)")
    parser.add_argument("--tolerance", type=float, default=5.0, metavar="MM", help="of the NSD (default: %(default)s)")
    parser.add_argument(
        "--crop-size",
        type=int,
        nargs=3,
        metavar=("D", "H", "W"),
        help="of the reference protocol, in voxels (default: the patch size of the plans)",
    )
    parser.add_argument(
        "--only-clicked",
        action="store_true",
        help="of whole-volume's predictions with clicks, count the structures alone that were clicked on, as predict "
        "--only-clicked gives them; the automatic ones stay as they are",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="folder for the results (default: reference_protocol_with_clicks, clicks or only_clicked, in the fold's "
        "folder)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results of other settings in that folder")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluates the folds one after the other."""
    from nnunetv2_sam3d.nnunet.trained_fold import TrainedFold, trained_folds

    if options.protocol is None:
        options.protocol = "whole-volume" if 0 in (options.clicks or ()) else "reference"
    if options.protocol == "whole-volume" and options.crop_size:
        raise ValueError("--crop-size belongs to --protocol reference; whole-volume predicts the whole volume")
    if options.protocol == "reference" and options.only_clicked:
        raise ValueError("--only-clicked belongs to --protocol whole-volume; reference predicts one crop")
    check_output_folder(options.output)
    options.device = choose_device(options.device)
    model = find_model_of(options)
    numbers = folds_of(options.folds) or trained_folds(model, options.checkpoint)
    if not numbers:
        raise ValueError(f"{model} has no fold with a {options.checkpoint}. Train the model first: nnUNetv2_train")
    if options.output and len(numbers) > 1:
        raise ValueError("-o takes the results of one fold; choose it with -f")
    for fold in [TrainedFold(model, number, options.checkpoint) for number in numbers]:
        evaluate_fold(fold, options)
    return 0


def evaluate_fold(fold: Any, options: argparse.Namespace) -> None:
    """Runs the protocol on one fold and prints its table."""
    import torch

    from nnunetv2_sam3d.evaluation.click_test import TABLE, as_text, run_protocol
    from nnunetv2_sam3d.evaluation.clicked import results_of
    from nnunetv2_sam3d.evaluation.protocol import ClickProtocol
    from nnunetv2_sam3d.evaluation.reference_protocol import ReferenceProtocol
    from nnunetv2_sam3d.evaluation.whole_volume import WholeVolumeProtocol
    from nnunetv2_sam3d.nnunet.labels import find_target
    from nnunetv2_sam3d.report.click_sections import write_curves
    from nnunetv2_sam3d.settings import Settings
    from nnunetv2_sam3d.weights.reading import network_from, read_weights

    target = find_target(fold.dataset_json["labels"], options.target)
    counts = tuple(options.clicks or CLICK_COUNTS[options.protocol])
    device = torch.device(options.device)
    weights = read_weights(fold.checkpoint)
    protocol: ClickProtocol
    kind = ReferenceProtocol if options.protocol == "reference" else WholeVolumeProtocol
    folder = WholeVolumeProtocol.only_clicked_folder if options.only_clicked else kind.folder
    output = options.output or fold.folder / folder
    if options.protocol == "reference":
        crop_size = tuple(options.crop_size or fold.configuration.patch_size)
        protocol = ReferenceProtocol(target, fold.labels, crop_size, counts, options.tolerance, options.seed)
        network = network_from(weights)  # float32 on every machine
    else:
        # as nnU-Net validates and predicts
        precision = Settings.from_plans(fold.configuration.configuration, fold.plans_file).precision
        network = network_from(weights, precision).prepare(fold.configuration.patch_size)
        protocol = WholeVolumeProtocol(
            target,
            fold,
            network.config.signed_clicks,
            counts,
            options.tolerance,
            options.seed,
            weights.mirror_axes,
            options.only_clicked,
            output,
        )
    network.to(device).eval()
    summary = run_protocol(fold, protocol, network, device, output=output, overwrite=options.overwrite)
    if options.protocol == "whole-volume":
        name = ModelName.of(fold.model).trainer
        write_curves(results_of(summary, name, fold.fold), name, output)
    say(as_text(summary))
    say(f"per case: {output / TABLE}\n")
