"""Published weights: their names on the Hugging Face Hub, and where they are looked for. Imports no PyTorch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_sam3d.weights.errors import WeightsError

ENVIRONMENT = "nnUNet_sam_checkpoint"
HUB = "HF_ENDPOINT"  # the hub's own variable for its mirrors
FILES = ("model.safetensors", "pytorch_model.bin")  # in a repository of the hub, the first that is there


@dataclass(frozen=True)
class Published:
    """Weights that can be fetched by name.

    Attributes:
        repository: on the hub, as ``SamModel.from_pretrained`` takes it.
        variant: size of their encoder.
        official: name of SAM's own file, whose digits are the beginning of its MD5; empty for others.
        sha256: of that file. SAM's authors give only the name; projects that check their downloads agree on this.
    """

    repository: str
    variant: str
    official: str = ""
    sha256: str = ""


SAM_FILES = {
    "vit_b": Published(
        "facebook/sam-vit-base",
        "vit_b",
        "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "vit_l": Published(
        "facebook/sam-vit-large",
        "vit_l",
        "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "vit_h": Published(
        "facebook/sam-vit-huge",
        "vit_h",
        "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
}
NAMED = SAM_FILES | {"medsam": Published("wanglab/medsam-vit-base", "vit_b")}


def cache_folder() -> Path:
    """Folder in which published weights are kept: ``$XDG_CACHE_HOME/nnunetv2_sam3d``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nnunetv2_sam3d"


def cached(name: str) -> Path | None:
    """The fetched file of a name in :data:`NAMED`, if there is one; also SAM's own where version 0.1 put it."""
    places = [*(cache_folder() / name / file for file in (*FILES, "weights.pth"))]
    if NAMED[name].official:
        places.append(cache_folder() / NAMED[name].official)
    return next((place for place in places if place.is_file()), None)


def find_sam_checkpoint(variant: str, setting: str | None) -> Path | None:
    """SAM's weights for a variant: the plans' setting, the variable ``nnUNet_sam_checkpoint``, the cache.

    Args:
        variant: of the network.
        setting: a file, or a name in :data:`NAMED`; likewise the variable's value.

    Returns:
        the file, or ``None`` if none is given and none is in the cache.

    Raises:
        WeightsError: if the setting or the variable names a file that does not exist, or weights not yet fetched.
    """
    for origin, value in (
        ("the plans (sam_checkpoint)", setting),
        (f"the variable {ENVIRONMENT}", os.environ.get(ENVIRONMENT)),
    ):
        if value:
            path = cached(value) if value in NAMED else Path(value).expanduser()
            if path is None:
                raise WeightsError(f"{origin} names {value}, which is not fetched yet: {command(value)}")
            if not path.is_file():
                raise WeightsError(
                    f"{origin} names {path} as SAM's weights, but there is no such file. Correct it, or "
                    f"put the published file there."
                )
            return path
    return cached(variant) if variant in SAM_FILES else None


def command(name: str) -> str:
    """The command that fetches published weights."""
    return f"nnUNetv2_sam3d weights fetch {name}"
