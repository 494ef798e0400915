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
        nnUNetv2_sam3d splits import split.pkl -d 48 --by-number --partial
        """
    parser = add_command(commands, "splits", "Splits of a data set into training and validation cases.", examples)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    importer = add_command(
        verbs,
        "import",
        "Make nnU-Net's splits_final.json from the split.pkl of 3DSAM-adapter's authors: fold 0 validates on their "
        "validation set, fold 1 on their test set, both train on their training set. The file is read without running "
        "anything in it.",
        examples,
    )
    importer.add_argument("file", type=Path, help="split.pkl")
    importer.add_argument("-d", "--dataset", required=True, help="data set name or number")
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


def run_import(options: argparse.Namespace) -> int:
    """Writes the splits and says what the folds are."""
    from nnunetv2_sam3d.nnunet.splits import FOLDS_NOTE, import_split

    file, folds, written = import_split(
        options.file, options.dataset, by_number=options.by_number, partial=options.partial, force=options.force
    )
    say(f"wrote {file}" if written else f"{file} holds this split already, nothing was changed")
    for number, fold in enumerate(folds):
        say(f"  fold {number}: {len(fold['train'])} training cases, {len(fold['val'])} validation cases")
    say(f"Of a split with all three sets, {FOLDS_NOTE}")
    return 0
