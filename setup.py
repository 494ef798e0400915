"""Builds the wheels and puts the start-up file ``nnunetv2_sam3d.pth`` into them. All metadata is in ``setup.cfg``.

nnU-Net finds trainers outside its own package only through the environment variable ``nnUNet_extTrainer``. The
start-up file makes every Python process of the environment add this package's folder to that variable, so that
installing the package is enough. It has to lie at the root of site-packages, where neither package data (which lives
inside the package) nor data files (which live below ``sys.prefix``) can go, and it has to be in the wheel's RECORD, so
that pip removes it again. Setuptools offers no setting for that which also covers editable installs, hence the two
commands below rewrite the finished wheel: they rely on nothing but its standardised format.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.editable_wheel import editable_wheel

PTH_NAME = "nnunetv2_sam3d.pth"
# Python executes a line of a .pth file if it starts with "import", and it must be one line; a try statement on one line
# needs exec. It keeps quiet if the package is gone, for example because the folder of an editable install was moved.
PTH_LINE = r'import os; exec("try:\n import nnunetv2_sam3d._discovery\nexcept ImportError:\n pass")' + "\n"


def add_start_up_file(wheel: Path) -> None:
    """Rewrites ``wheel`` with the start-up file and its line in RECORD; leaves it alone if it already has them."""
    data = PTH_LINE.encode()
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    rewritten = wheel.with_suffix(".tmp")
    with zipfile.ZipFile(wheel) as source:
        if PTH_NAME in source.namelist():
            return
        with zipfile.ZipFile(rewritten, "w", zipfile.ZIP_DEFLATED) as target:
            for entry in source.infolist():
                content = source.read(entry)
                if entry.filename.endswith(".dist-info/RECORD"):
                    # Written just before RECORD, which stays last in the archive as the wheel format recommends; it
                    # shares its time stamp and permissions, so that builds stay as reproducible as they were.
                    added = zipfile.ZipInfo(PTH_NAME, entry.date_time)
                    added.compress_type, added.external_attr = zipfile.ZIP_DEFLATED, entry.external_attr
                    target.writestr(added, data)
                    content = f"{PTH_NAME},sha256={digest},{len(data)}\n".encode() + content
                target.writestr(entry, content)
    rewritten.replace(wheel)


def add_to_built_wheel(command: bdist_wheel | editable_wheel) -> None:
    """Adds the start-up file to the wheel that ``command`` has just built."""
    pattern = f"{command.distribution.get_fullname()}-*.whl"
    wheels = list(Path(command.dist_dir).glob(pattern))
    if not wheels:  # without the file nnU-Net would not find the trainers: better no wheel than a silently broken one
        raise RuntimeError(f"no {pattern} in {command.dist_dir}")
    for wheel in wheels:
        add_start_up_file(wheel)


class WheelWithStartUpFile(bdist_wheel):
    """The regular wheel (``pip install .``) with the start-up file."""

    def run(self) -> None:
        super().run()
        add_to_built_wheel(self)


class EditableWheelWithStartUpFile(editable_wheel):
    """The editable wheel (``pip install -e .``) with the start-up file.

    Python processes .pth files by name: the one that makes the checkout importable (``__editable__...``) comes first.
    """

    def run(self) -> None:
        super().run()
        add_to_built_wheel(self)


setup(cmdclass={"bdist_wheel": WheelWithStartUpFile, "editable_wheel": EditableWheelWithStartUpFile})
