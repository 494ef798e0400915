"""``nnUNetv2_sam3d doctor``"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_sam3d import __version__
from nnunetv2_sam3d.commands.common import add_command, say
from nnunetv2_sam3d.nnunet.layout import PATHS
from nnunetv2_sam3d.nnunet.version import check_nnunet_version
from nnunetv2_sam3d.trainers.names import SHORT_NAMES
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.sources import ENVIRONMENT, NAMED, cache_folder, cached, find_sam_checkpoint

FETCH = "none; nnUNetv2_sam3d weights fetch vit_b puts SAM's encoder there"
MIN_FREE_GB = 5.0


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        name: what was looked at.
        ok: ``False`` if something would fail; ``None`` for what is optional and absent.
        text: what was found, and for a failure the remedy.
    """

    name: str
    ok: bool | None
    text: str


def examine() -> list[Finding]:
    """Runs all checks; none of them raises."""
    checks: list[Callable[[], list[Finding]]] = [_versions, _trainers, _paths, _devices, _weights]
    findings = []
    for check in checks:
        try:
            findings += check()
        except Exception as error:  # a broken installation can fail anywhere; the report must still be made
            findings.append(Finding(check.__name__.strip("_"), False, f"{type(error).__name__}: {error}"))
    return findings


def _versions() -> list[Finding]:
    from importlib.metadata import version

    found = [
        Finding("nnunetv2_sam3d", True, __version__),
        Finding("Python", sys.version_info >= (3, 10), sys.version.split()[0]),
    ]
    try:
        found.append(Finding("nnunetv2", True, check_nnunet_version()))
    except RuntimeError as error:
        found.append(Finding("nnunetv2", False, str(error)))
    bad = "2.9."
    torch_version = version("torch")
    found.append(
        Finding(
            "torch",
            not torch_version.startswith(bad),
            torch_version
            + ("; nnU-Net does not work with 2.9: pip install 'torch!=2.9.*'" if torch_version.startswith(bad) else ""),
        )
    )
    return found


def _trainers() -> list[Finding]:
    """Asks nnU-Net's own resolver, in a process that starts as the user's next one will."""
    code = (
        "import sys; from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "for name in sys.argv[1:]: assert find(name).__name__ == name"
    )
    names = list(SHORT_NAMES.values())
    result = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return [Finding("trainers", True, f"nnU-Net finds {', '.join(names)}")]
    last = (result.stderr.strip().splitlines() or ["no message"])[-1]
    return [
        Finding(
            "trainers",
            False,
            f"nnU-Net does not find them ({last}). Install the package with pip into this "
            f"environment, in its folder: pip install --force-reinstall --no-deps .",
        )
    ]


def _paths() -> list[Finding]:
    findings = []
    for name in PATHS:
        value = os.environ.get(name)
        if not value:
            findings.append(Finding(name, False, f"is not set. export {name}=/path/to/{name.lower()}"))
            continue
        folder = Path(value)
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        free_gb = shutil.disk_usage(folder).free / 1e9
        writable = os.access(folder, os.W_OK) or name == "nnUNet_raw"
        note = "" if Path(value).exists() else ", will be made"
        if not writable:
            findings.append(Finding(name, False, f"{value}: no permission to write; choose another folder"))
        elif free_gb < MIN_FREE_GB and name != "nnUNet_raw":
            findings.append(
                Finding(
                    name,
                    False,
                    f"{value}: only {free_gb:.1f} GB free, {MIN_FREE_GB:.0f} GB are the "
                    f"least for checkpoints and preprocessed data; free some space",
                )
            )
        else:
            findings.append(Finding(name, True, f"{value} ({free_gb:.0f} GB free{note})"))
    return findings


def _devices() -> list[Finding]:
    import torch

    from nnunetv2_sam3d.network_architecture.cpu import bfloat16_is_faster

    findings = [
        Finding(
            "CPU",
            True,
            f"{os.cpu_count()} cores, bfloat16 products faster than float32: {'yes' if bfloat16_is_faster() else 'no'}",
        )
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            findings.append(
                Finding(
                    f"cuda:{index}",
                    True,
                    f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, "
                    f"bfloat16: {'yes' if torch.cuda.is_bf16_supported() else 'no'}",
                )
            )
    else:
        findings.append(Finding("CUDA", None, "no device; give nnU-Net's commands -device cpu"))
    return findings


def _weights() -> list[Finding]:
    findings = []
    if value := os.environ.get(ENVIRONMENT):
        try:
            findings.append(Finding(ENVIRONMENT, True, f"{value}: {find_sam_checkpoint('', None)}"))
        except WeightsError as error:
            findings.append(Finding(ENVIRONMENT, False, str(error)))
    fetched = [name for name in NAMED if cached(name)]
    findings.append(
        Finding("SAM weights", True if fetched else None, f"in {cache_folder()}: {', '.join(fetched) or FETCH}")
    )
    return findings


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

    findings = examine()
    for finding in findings:
        mark = {True: "ok  ", False: "FAIL", None: "-   "}[finding.ok]
        say(f"{mark} {finding.name:<20} {finding.text}")
    failures = sum(finding.ok is False for finding in findings)
    say(f"{failures} problem{'s' if failures != 1 else ''} found" if failures else "everything needed is there")
    return 1 if failures else 0
