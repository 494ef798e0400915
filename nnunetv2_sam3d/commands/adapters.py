"""``nnUNetv2_sam3d adapters``"""

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


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "adapters",
        "Show what the two paths of trained DualPath adapters do: gate and share of the local path of each block, in "
        "the first and last epoch and on validation cases; the labels that change without each path; maps of the gate "
        "on slices through the lesion. Validation cases are predicted three times by nnU-Net's sliding window without "
        "mirroring, on the grid of the preprocessed data.",
        """\
        nnUNetv2_sam3d adapters nnUNet_results/Dataset048_KiTS/nnUNetTrainer_SAM3DDualPath__nnUNetSAM3DPlans__3d_fullres
        nnUNetv2_sam3d adapters -d 48 -tr nnUNetTrainer_SAM3DDualPathFFT -f 0 --target tumour
        nnUNetv2_sam3d adapters -d 48 -f 0 1 2 --max-cases 20 -o gates
        nnUNetv2_sam3d adapters -d 48 --cases case_00003 case_00017 --device cpu
        """,
    )
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        help="folder of a trained model, or of one of its folds (or name it by -d, -tr, -p, -c)",
    )
    add_model_options(parser)
    parser.add_argument(
        "--target",
        help="label or region that the gate is looked at around, a name in dataset.json or numbers like 2 or 2,3 "
        "(default: what is called tumour, lesion or the like, else the whole foreground)",
    )
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="validation cases (default: the first --max-cases)")
    parser.add_argument(
        "--max-cases", type=int, default=4, metavar="N", help="of each fold, without --cases (default: %(default)s)"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="folder for fold_N/adapters.json and fold_N/adapters/CASE.png (default: that of the model)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Looks at the folds one after the other."""
    from nnunetv2_sam3d.evaluation.two_paths import choose_cases
    from nnunetv2_sam3d.nnunet.trained_fold import TrainedFold, trained_folds

    if options.max_cases < 1:
        raise ValueError(f"--max-cases must be at least 1, got {options.max_cases}")
    check_output_folder(options.output)
    options.device = choose_device(options.device)
    model = find_model_of(options)
    numbers = folds_of(options.folds)
    if model.name.startswith("fold_") and (model.parent / "plans.json").is_file():
        if numbers:
            raise ValueError(f"{model} is a fold, and -f names others; give the folder of the model with -f")
        model, numbers = model.parent, folds_of([model.name.removeprefix("fold_")])
    numbers = numbers or list(trained_folds(model, options.checkpoint))
    if not numbers:
        raise ValueError(f"{model} has no fold with a {options.checkpoint}. Train the model first: nnUNetv2_train")
    folds = [TrainedFold(model, number, options.checkpoint) for number in numbers]
    cases = [choose_cases(fold, options.cases, options.max_cases) for fold in folds]
    if unknown := set(options.cases or ()) - {case for chosen in cases for case in chosen}:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no validation case of fold {', '.join(str(fold.fold) for fold in folds)}. "
            f"Choose among: {', '.join(case for fold in folds for case in fold.validation_cases()[:10])} ..."
        )
    for fold, chosen in zip(folds, cases, strict=True):
        if chosen:
            study_fold(fold, chosen, options)
    return 0


def study_fold(fold: Any, cases: list[str], options: argparse.Namespace) -> None:
    """Measures one fold, writes its files and prints its tables."""
    import torch

    from nnunetv2_sam3d.evaluation.two_paths import FILE, FOLDER, AdapterStudy, as_text
    from nnunetv2_sam3d.files import write_json
    from nnunetv2_sam3d.nnunet.labels import find_target
    from nnunetv2_sam3d.report.gate_pictures import write_gate_maps
    from nnunetv2_sam3d.settings import Settings
    from nnunetv2_sam3d.weights.reading import network_from, read_weights

    target = find_target(fold.dataset_json["labels"], options.target)
    device = torch.device(options.device)
    # as nnU-Net validates and predicts
    precision = Settings.from_plans(fold.configuration.configuration, fold.plans_file).precision
    network = network_from(read_weights(fold.checkpoint), precision).prepare(fold.configuration.patch_size)
    study = AdapterStudy(fold, network.to(device).eval(), device, target)
    result = study.run(cases)
    output = (options.output or fold.model) / fold.folder.name
    write_gate_maps(study.views, target.name, output / FOLDER)
    write_json(output / FILE, result)
    say(as_text(result))
    say(f"numbers: {output / FILE}, maps of the gate: {output / FOLDER}\n")
