"""``nnUNetv2_sam3d report``"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.commands.common import add_command, check_output_folder, default_processes, fold_number, say
from nnunetv2_sam3d.trainers.names import SHORT_NAMES, STUDIES


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "report",
        "Measure and compare trainers on the validation cases of their folds: one HTML page that needs no network, "
        "with tables (also Markdown, LaTeX, CSV), figures (SVG, PNG), overlays and a 3D viewer. What was measured "
        "before is not measured again.",
        """\
        nnUNetv2_sam3d report -d 220 --study controls -o kits_report
        nnUNetv2_sam3d report -d 220 --trainers OriginalContinued DualPath -o kits_report
        nnUNetv2_sam3d report -d 220 --trainers nnUNetTrainer__nnUNetPlans DualPath --folds 0 1 -o two_folds
        nnUNetv2_sam3d report -d 4 --trainers Full DualPath --tolerance-mm 1 --focus Anterior -o hippocampus_report
        """,
    )
    parser.add_argument("-d", "--dataset", required=True, help="data set number or name")
    parser.add_argument("-p", "--plans", default="nnUNetSAM3DPlans", help="plans of the results (default: %(default)s)")
    parser.add_argument("-c", "--configuration", default="3d_fullres", help="default: %(default)s")
    parser.add_argument(
        "--study",
        nargs="+",
        default=[],
        choices=sorted(STUDIES),
        help="report the arms of a study that are finished, each against its declared control; what was not run stands "
        "under threats to validity",
    )
    parser.add_argument(
        "--trainers",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"{', '.join(SHORT_NAMES)}, or any trainer's class; beside those of --study. Without any declared control "
        "among them, differences are later minus earlier. A trainer without results of the plans is taken with those "
        "it has; TRAINER__PLANS says which. Repeats are found by themselves",
    )
    parser.add_argument("-f", "--folds", nargs="+", type=fold_number, help="default: all of splits_final.json")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the report")
    parser.add_argument(
        "--tolerance-mm",
        nargs="+",
        type=float,
        metavar="MM",
        help="of the surface Dice: one for all, or one for each structure (default: KiTS's three on KiTS's regions, "
        "else 2)",
    )
    parser.add_argument(
        "--kits", action="store_true", help="measure KiTS's regions where labels 1, 2, 3 are kidney, tumour, cyst"
    )
    parser.add_argument(
        "--lesions",
        nargs="*",
        metavar="NAME",
        help="labels or regions whose lesions are counted (default: those called tumour, cyst, mass and the like)",
    )
    parser.add_argument(
        "--focus", metavar="NAME", help="label or region of overlays and sub-groups (default: a tumour)"
    )
    parser.add_argument(
        "--volume-groups-ml",
        nargs="+",
        type=float,
        metavar="ML",
        help="borders of the sub-groups by volume (default: tertiles, or the median with few cases)",
    )
    parser.add_argument(
        "--view-cases", nargs="*", metavar="CASE", help="cases of the 3D viewer (default: those of the overlays)"
    )
    parser.add_argument("-np", "--processes", type=int, help="that measure (default: the cores, at most 8)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Writes the report."""
    from nnunetv2_sam3d.nnunet.folders import dataset_folder
    from nnunetv2_sam3d.nnunet.layout import check_paths
    from nnunetv2_sam3d.report.build import write_report
    from nnunetv2_sam3d.report.request import Request
    from nnunetv2_sam3d.report.study import controls

    if not options.study and not options.trainers:
        raise ValueError("nothing to report: name the arms with --study or --trainers")
    check_paths()
    check_output_folder(options.output)
    page = write_report(
        Request(
            dataset=dataset_folder(options.dataset),
            trainers=options.trainers,
            names=SHORT_NAMES,
            plans=options.plans,
            configuration=options.configuration,
            folds=options.folds,
            tolerances_mm=options.tolerance_mm,
            kits=options.kits,
            lesions=options.lesions,
            focus=options.focus,
            volume_groups_ml=options.volume_groups_ml,
            view_cases=options.view_cases,
            controls=controls(),
            study=options.study,
            processes=options.processes or default_processes(),
            command=command_line(options),
        ),
        options.output,
        say,
    )
    say(f"report: {page}")
    say(f"tables and figures: {page.parent}")
    return 0


def command_line(options: argparse.Namespace) -> list[str]:
    """The command that gives the same report, without what cannot change it (where it goes, how many processes)."""
    parts = ["nnUNetv2_sam3d", "report"]
    for action, value in sorted(vars(options).items()):
        if action in ("run", "command", "output", "processes") or value is None or value is False:
            continue
        if action in ("study", "trainers") and not value:
            continue
        parts.append(f"--{action.replace('_', '-')}")
        if value is not True:
            values = value if isinstance(value, list) else [value]
            parts += [str(entry) for entry in (sorted(set(values)) if action == "folds" else values)]
    return [*parts, "--output", "OUT"]
