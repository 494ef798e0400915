"""``nnUNetv2_sam3d predict``"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.commands.common import (
    add_command,
    add_prediction_options,
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
        "predict",
        "Segment images with a trained model, with clicks that somebody made in them. Windows around the clicks are "
        "prompted with them; everything else, and images without clicks, are what nnUNetv2_predict gives. All clicks "
        "are checked against the images first.",
        """\
        nnUNetv2_sam3d predict -m nnUNetTrainer_SAM3DFull__nnUNetSAM3DPlans__3d_fullres -i imagesTs -o masks
        nnUNetv2_sam3d predict -d 220 -tr nnUNetTrainer_SAM3DFull -f 0 1 -i imagesTs -o masks
        nnUNetv2_sam3d predict -m MODEL -i case_007_0000.nii.gz -o masks --clicks case_007.mrk.json
        nnUNetv2_sam3d predict -m MODEL -i imagesTs -o tumours --clicks clicks_folder --only-clicked
        nnUNetv2_sam3d predict -m MODEL -i imagesTs -o masks --clicks clicks.csv --continue_prediction
        """,
    )
    parser.add_argument(
        "-i", "--input", type=Path, nargs="+", required=True,
        help="folder of images (CASE_0000.nii.gz, as nnUNetv2_predict takes it), or images; of several channels one "
        "file is enough",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the segmentations")
    add_prediction_options(parser)
    parser.add_argument(
        "--clicks", type=Path, metavar="FILE_OR_FOLDER",
        help="clicks of one image, a table of many, or a folder of files named after the images: 3D Slicer's .mrk.json"
        ", .fcsv, .csv, .tsv, or this package's JSON",
    )  # fmt: skip
    parser.add_argument(
        "--only-clicked",
        action="store_true",
        help="keep only the structures that were clicked on, in images with clicks",
    )
    parser.add_argument(
        "-step_size", "--step-size", type=float, default=0.5, metavar="S",
        help="distance of the automatic windows in patches (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--continue_prediction", action="store_true",
        help="keep the segmentations that this command made with the same clicks, model and settings, and "
        "predict the others (default: predict all again)",
    )  # fmt: skip
    parser.add_argument(
        "--save_probabilities", action="store_true", help="write CASE.npz and CASE.pkl too, for nnUNetv2_ensemble"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Checks all clicks, then predicts one image after the other."""
    from nnunetv2_sam3d.inference.click_predictor import ClickPredictor
    from nnunetv2_sam3d.inference.predict_files import plan_jobs, predict_jobs
    from nnunetv2_sam3d.messages import some
    from nnunetv2_sam3d.nnunet.images import find_cases
    from nnunetv2_sam3d.nnunet.trained_fold import TrainedFold, trained_folds

    if options.only_clicked and not options.clicks:
        raise ValueError("--only-clicked needs --clicks")
    if not 0 < options.step_size <= 1:
        raise ValueError(f"--step-size must be above 0 and at most 1, got {options.step_size}")
    check_output_folder(options.output)
    device = choose_device(options.device)
    model = find_model_of(options)
    folds = folds_of(options.folds) or trained_folds(model, options.checkpoint) or [0]
    first = [TrainedFold(model, fold, options.checkpoint) for fold in folds][0]
    cases = find_cases(options.input, first.dataset_json)
    reader = first.plans.image_reader_writer_class()
    jobs = plan_jobs(cases, options.clicks, reader, first.dataset_json["labels"], options.output)
    predictor = ClickPredictor(
        model,
        folds,
        options.checkpoint,
        device=device,
        mirroring=not options.disable_tta,
        tile_step_size=options.step_size,
        progress=True,
    )
    clicked = sum(bool(job.clicks) for job in jobs)
    say(f"{len(jobs)} images, {clicked} with clicks; model {model.name}, folds {', '.join(map(str, folds))}")
    if options.clicks and clicked < len(jobs):
        automatic = [job.case.name for job in jobs if not job.clicks]
        say(f"without clicks: {some(automatic, 5)}")
    predicted = predict_jobs(
        predictor,
        jobs,
        options.output,
        only=options.only_clicked,
        probabilities=options.save_probabilities,
        keep_existing=options.continue_prediction,
        say=say,
    )
    kept = f", {len(jobs) - predicted} were there" if predicted < len(jobs) else ""
    say(f"{predicted} segmentations written to {options.output}{kept}")
    return 0
