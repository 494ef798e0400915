"""SAM's published checkpoints: what they are, and where they are looked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_sam3d.weights.errors import WeightsError

ENVIRONMENT = "nnUNet_sam_checkpoint"
MIRROR = "nnUNet_sam_mirror"
ORIGIN = "https://dl.fbaipublicfiles.com/segment_anything/"


@dataclass(frozen=True)
class Published:
    """A file that SAM's authors published.

    Attributes:
        name: its name; the digits are the beginning of its MD5.
        size: in bytes.
        sha256: of its content.
    """

    name: str
    size: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} ({self.size:,} bytes, SHA-256 {self.sha256})"


# SAM's authors give only the names. Sizes and SHA-256 are those that projects which check their downloads agree on.
SAM_FILES = {
    "vit_b": Published(
        "sam_vit_b_01ec64.pth", 375_042_383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    "vit_l": Published(
        "sam_vit_l_0b3195.pth", 1_249_524_607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    "vit_h": Published(
        "sam_vit_h_4b8939.pth", 2_564_550_879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
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
    cached = cache_folder() / SAM_FILES[variant].name if variant in SAM_FILES else None
    return cached if cached is not None and cached.is_file() else None
