"""What several commands share."""

from __future__ import annotations

import argparse
import sys
from textwrap import dedent
from typing import Any


def say(text: str = "") -> None:
    """Writes a line for the user at once, also into pipes."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def add_command(commands: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """A sub-command whose help ends with examples."""
    return commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog="examples:\n" + dedent(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_class_map(parser: argparse.ArgumentParser) -> None:
    """The option that says which channel of a start belongs to a class of the data set."""
    parser.add_argument(
        "--map-class",
        nargs="+",
        metavar="NAME=CHANNEL",
        help="where the data set has other classes than the model it starts from: take the last convolution of label "
        "or region NAME from this channel of the model (1 is the tumour of a binary one); without it, none is taken",
    )
