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
