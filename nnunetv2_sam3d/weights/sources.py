"""Where SAM's published checkpoints are looked for."""

from __future__ import annotations

import os
from pathlib import Path

from nnunetv2_sam3d.weights.errors import WeightsError

ENVIRONMENT = "nnUNet_sam_checkpoint"
# The published names; the digits are the beginning of each file's MD5.
SAM_FILES = {
    "vit_b": "sam_vit_b_01ec64.pth",
    "vit_l": "sam_vit_l_0b3195.pth",
    "vit_h": "sam_vit_h_4b8939.pth",
}


def cache_folder() -> Path:
    """Folder in which published weights are kept: ``$XDG_CACHE_HOME/nnunetv2_sam3d``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nnunetv2_sam3d"


def find_sam_checkpoint(variant: str, setting: str | None) -> Path | None:
    """SAM's weights for a variant: the plans' setting, the variable ``nnUNet_sam_checkpoint``, the cache.

    Returns:
        the file, or ``None`` if none is given and none is in the cache.

    Raises:
        WeightsError: if the setting or the variable names a file that does not exist.
    """
    for origin, value in (
        ("the plans (sam_checkpoint)", setting),
        (f"the variable {ENVIRONMENT}", os.environ.get(ENVIRONMENT)),
    ):
        if value:
            path = Path(value).expanduser()
            if not path.is_file():
                raise WeightsError(
                    f"{origin} names {path} as SAM's weights, but there is no such file. Correct it, or "
                    f"put the published file there."
                )
            return path
    cached = cache_folder() / SAM_FILES.get(variant, "none")
    return cached if cached.is_file() else None
