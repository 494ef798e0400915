"""``nnUNetv2_sam3d doctor``"""

from __future__ import annotations

import argparse
from typing import Any

from nnunetv2_sam3d.commands.common import add_command, say


def add_parser(commands: Any) -> None:
    """Adds the command."""
    add_command(
        commands,
        "doctor",
        "Check the installation; exits with 1 if something would fail.",
        """\
        nnUNetv2_sam3d doctor
        """,
    ).set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the findings."""
    from nnunetv2_sam3d.doctor import examine

    findings = examine()
    for finding in findings:
        mark = {True: "ok  ", False: "FAIL", None: "-   "}[finding.ok]
        say(f"{mark} {finding.name:<20} {finding.text}")
    failures = sum(finding.ok is False for finding in findings)
    say(f"{failures} problem{'s' if failures != 1 else ''} found" if failures else "everything needed is there")
    return 1 if failures else 0
