"""SAM's published checkpoints -> the pretrained part of our image encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nnunetv2_sam3d.weights.errors import WeightsError

PREFIX = "image_encoder."
# The 2D neck, the prompt encoder and the mask decoder of SAM have no place in the 3D network.
TAKEN = (
    (re.compile(r"patch_embed\.proj\.(weight|bias)"), r"encoder.stem.patch_embed.proj.\1"),
    (re.compile(r"pos_embed"), r"encoder.pos_embed"),
    (re.compile(r"(blocks\.\d+\.(?:norm[12]|attn\.(?:qkv|proj)|mlp\.lin[12])\.(?:weight|bias))"), r"encoder.\1"),
    (re.compile(r"(blocks\.\d+\.attn\.rel_pos_[hw])"), r"encoder.\1"),
)


def is_sam_checkpoint(content: Any) -> bool:
    """Whether a file's content is a state dict with the key names of ``segment-anything``."""
    return isinstance(content, Mapping) and f"{PREFIX}blocks.0.attn.qkv.weight" in content


def convert_sam(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """A SAM state dict -> encoder weights under our names.

    ``rel_pos_d``, which SAM does not have, starts as the mean of ``rel_pos_h`` and ``rel_pos_w``.

    Raises:
        WeightsError: if the encoder is not SAM's ViT.
    """
    state: dict[str, Tensor] = {}
    for key, tensor in content.items():
        if not key.startswith(PREFIX) or key.startswith(f"{PREFIX}neck."):
            continue
        name = key.removeprefix(PREFIX)
        for pattern, ours in TAKEN:
            if pattern.fullmatch(name) and isinstance(tensor, Tensor):
                state[pattern.sub(ours, name)] = tensor
                break
        else:
            raise WeightsError(f"unknown weight {key!r}: this is not the ViT image encoder of SAM")
    for key in [key for key in state if key.endswith(".rel_pos_h")]:
        other = state.get(f"{key[:-1]}w")
        if other is None or other.shape != state[key].shape:
            raise WeightsError(f"{key!r} has no counterpart for the width: this is not the ViT image encoder of SAM")
        state[f"{key[:-1]}d"] = (state[key] + other) / 2
    return state
