"""``nnUNetv2_sam3d splits``"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.commands.common import add_command, say


def add_parser(commands: Any) -> None:
    """Adds the command and its sub-command."""
    examples = """\
        nnUNetv2_sam3d splits import split.pkl -d 48
        nnUNetv2_sam3d splits import split.pkl -d 48 --fold all
        nnUNetv2_sam3d splits import split.pkl -d 48 --by-number --partial
        """
    parser = add_command(commands, "splits", "Splits of a data set into training and validation cases.", examples)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    importer = add_command(
        verbs,
        "import",
        "Make nnU-Net's splits_final.json from the split.pkl of 3DSAM-adapter's authors (five folds, of which their "
        "loader takes the first) or of 3DMedSAM-FDA: fold 0 validates on their validation set, fold 1 on their test "
        "set, both train on their training set. The file is read without running anything in it.",
        examples,
    )
    importer.add_argument("file", type=Path, help="split.pkl")
    importer.add_argument("-d", "--dataset", required=True, help="data set name or number")
    importer.add_argument(
        "--fold",
        type=_fold,
        default=0,
        metavar="N",
        help="which fold of the file (default: 0, as the authors' loader); all: one fold of nnU-Net's for each of "
        "theirs, validated on the sets that no two of them share",
    )
    importer.add_argument(
        "--by-number", action="store_true", help="match files and cases by the last number in their names"
    )
    importer.add_argument(
        "--partial", action="store_true", help="allow cases that the split does not name; they are in no fold"
    )
    importer.add_argument(
        "--force", action="store_true", help="replace another splits_final.json (kept as splits_final.json.bak)"
    )
    importer.set_defaults(run=run_import)


def _fold(text: str) -> int | str:
    if text != "all" and not (text.isdecimal() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"expected the number of a fold or all, got {text!r}")
    return text if text == "all" else int(text)


def run_import(options: argparse.Namespace) -> int:
    """Writes the splits and says what the folds are."""
    from nnunetv2_sam3d.nnunet.splits import ALL_FOLDS, FOLDS_NOTE, import_split

    made = import_split(
        options.file,
        options.dataset,
        fold=options.fold,
        by_number=options.by_number,
        partial=options.partial,
        force=options.force,
    )
    say(f"wrote {made.file}" if made.written else f"{made.file} holds this split already, nothing was changed")
    for number, fold in enumerate(made.folds):
        say(f"  fold {number}: {len(fold['train'])} training cases, {len(fold['val'])} validation cases")
    if options.fold == ALL_FOLDS:
        say("Each fold trains on the authors' training set of that fold.")
        return 0
    say(f"Of a split with all three sets, {FOLDS_NOTE}")
    if made.offered > 1:
        say(
            f"The file has {made.offered} folds of its own, and this is fold {options.fold}. The others: --fold 0 to "
            f"--fold {made.offered - 1}, or --fold all."
        )
    return 0
