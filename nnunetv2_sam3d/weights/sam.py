"""Weights of SAM's ViT -> the pretrained part of our image encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nnunetv2_sam3d.network_architecture.config import VARIANTS
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.state_dict import as_state

PREFIX = "image_encoder."  # of segment-anything and MedSAM
HUGGING_FACE_PREFIX = "vision_encoder."  # of transformers, SamModel and SamVisionModel alike
# Names of transformers -> names of segment-anything; the first that fits decides.
HUGGING_FACE = (
    (re.compile(r"patch_embed\.projection\.(.+)"), r"patch_embed.proj.\1"),
    (re.compile(r"layers\.(\d+)\.layer_norm([12])\.(.+)"), r"blocks.\1.norm\2.\3"),
    (re.compile(r"layers\.(.+)"), r"blocks.\1"),
)
# Names of segment-anything -> ours. SAM's 2D neck, prompt encoder and mask decoder have no place in 3D.
TAKEN = (
    (re.compile(r"patch_embed\.proj\.(weight|bias)"), r"encoder.stem.patch_embed.proj.\1"),
    (re.compile(r"pos_embed"), r"encoder.pos_embed"),
    (re.compile(r"(blocks\.\d+\.(?:norm[12]|attn\.(?:qkv|proj)|mlp\.lin[12])\.(?:weight|bias))"), r"encoder.\1"),
    (re.compile(r"(blocks\.\d+\.attn\.rel_pos_[hw])"), r"encoder.\1"),
)
# What every SAM checkpoint gives (rel_pos_d is made from it); its norms are trained here, but start from it.
IN_SAM = re.compile(
    r"encoder\.(pos_embed|stem\.patch_embed\..+|blocks\.\d+\.(norm[12]\..+|mlp\..+|attn\.(qkv|proj|rel_pos).*))"
)
# Where trainings put the state dict; MedSAM's uses "model".
WRAPPERS = ("model", "state_dict", "model_state_dict")
# Relatives of SAM with another encoder, by a weight that only they have.
OTHER_MODELS = {
    "image_encoder.patch_embed.seq.0.c.weight": "LiteMedSAM or MobileSAM, whose image encoder is a TinyViT",
    "image_encoder.trunk.patch_embed.proj.weight": "SAM 2, whose image encoder is a Hiera",
    "image_encoder.blocks.0.attn.rel_pos_d": "SAM-Med3D, whose image encoder has three-dimensional patches",
    "image_encoder.blocks.0.Adapter.channel.0.weight": "SAM-Med2D, whose image encoder has adapters of its own",
}
MARKS = {f"{PREFIX}blocks.0.attn.qkv.weight", f"{HUGGING_FACE_PREFIX}layers.0.attn.qkv.weight", *OTHER_MODELS}


def find_sam(content: Any) -> dict[str, Any] | None:
    """The state dict of SAM or of a relative in a file's content, without the prefix of parallel training.

    Returns:
        ``None`` if there is none.
    """
    if not isinstance(content, Mapping):
        return None
    for table in (content, *(content.get(name) for name in WRAPPERS)):
        if isinstance(table, Mapping):
            named = {key.removeprefix("module."): value for key, value in table.items() if isinstance(key, str)}
            if MARKS & set(named):
                return named
    return None


def convert_sam(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict of SAM, named as in segment-anything or transformers -> encoder weights under our names.

    ``rel_pos_d``, which SAM does not have, starts as the mean of ``rel_pos_h`` and ``rel_pos_w``.

    Raises:
        WeightsError: if the encoder is not SAM's ViT.
    """
    for mark, model in OTHER_MODELS.items():
        if mark in content:
            raise WeightsError(
                f"this is {model}; its weights do not fit. Expected the ViT image encoder of SAM or MedSAM "
                f"({', '.join(name for name in VARIANTS if name != 'vit_tiny')}), for instance sam_vit_b_01ec64.pth "
                f"or medsam_vit_b.pth"
            )
    state: dict[str, Tensor] = {}
    encoder = {key: value for key, value in content.items() if key.startswith((PREFIX, HUGGING_FACE_PREFIX))}
    for key, tensor in as_state(encoder, "the image encoder").items():
        name = _official(key)
        if name.startswith("neck."):
            continue
        for pattern, ours in TAKEN:
            if pattern.fullmatch(name):
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


def _official(key: str) -> str:
    """Name of an encoder weight in segment-anything, without the prefix."""
    if key.startswith(PREFIX):
        return key.removeprefix(PREFIX)
    name = key.removeprefix(HUGGING_FACE_PREFIX)
    return next((pattern.sub(new, name) for pattern, new in HUGGING_FACE if pattern.fullmatch(name)), name)
