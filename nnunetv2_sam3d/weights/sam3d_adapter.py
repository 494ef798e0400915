"""Checkpoints of 3DSAM-adapter and 3DMedSAM-FDA -> our names and axis order (pure functions on tensors).

The reference keeps tokens as (H, W, D); every 3D kernel is permuted to (D, H, W). The kernels of a DualPath adapter's
local path are not: they stay in the published plane, in which the adapter then works.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nnunetv2_sam3d.network_architecture.adapters import ADAPTERS, DualPathAdapter3d
from nnunetv2_sam3d.network_architecture.config import PUBLISHED, SAM3DConfig
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.state_dict import as_state, config_from_shapes

LOCAL_PATH = re.compile(r"encoder\.blocks\.\d+\.adapter\.local_")
# Stored by the reference, but recomputed from the grid or never used in its output.
ENCODER_UNUSED = re.compile(r"blocks\.\d+\.attn_mask")
PROMPT_UNUSED = re.compile(
    r"positional_encoding_gaussian_matrix|transformer\.layers\.\d+\.cross_attn_token_to_image\..+"
    r"|transformer\.(norm_final_attn|final_attn_token_to_image)\..+"
)

ENCODER_NAMES = (
    (re.compile(r"(patch_embed|slice_embed)\.(.+)"), r"encoder.stem.\1.\2"),
    (re.compile(r"(pos_embed|depth_embed|neck_3d\..+)"), r"encoder.\1"),
    (re.compile(r"(blocks\.\d+\.(?:norm1|norm2|attn|mlp|adapter)\..+)"), r"encoder.\1"),
)
PROMPT_NAMES = (
    (
        re.compile(r"transformer\.layers\.(\d+)\.cross_attn_image_to_token\.(.+)"),
        r"prompt_encoder.layers.\1.cross_attn.\2",
    ),
    (re.compile(r"transformer\.layers\.(\d+)\.(.+)"), r"prompt_encoder.layers.\1.\2"),
)
DECODER_NAMES = (
    *((re.compile(rf"mlahead\.head{tap + 2}\.([03]\.weight)"), rf"mask_decoder.heads.{tap}.\1") for tap in range(4)),
    (re.compile(r"cls\.0\.weight"), r"mask_decoder.fuse.0.weight"),
    (re.compile(r"cls\.3\.weight"), r"mask_decoder.seg_layers.0.weight"),
)


def is_reference_checkpoint(content: Any) -> bool:
    """Whether a file's content is a 3DSAM-adapter checkpoint."""
    return isinstance(content, Mapping) and {"encoder_dict", "decoder_dict"} <= set(content)


def convert_reference(content: Mapping[str, Any], *, automatic: bool = False) -> tuple[dict[str, Tensor], SAM3DConfig]:
    """A 3DSAM-adapter checkpoint -> our state dict and the sizes read from its shapes.

    Args:
        content: the loaded ``best.pth.tar``.
        automatic: leave the prompt encoder out although the file has one.

    Raises:
        WeightsError: for keys that are unknown or missing.
    """
    state = _rename(content["encoder_dict"], ENCODER_NAMES, ENCODER_UNUSED, "encoder_dict")
    state |= _rename(content["decoder_dict"], DECODER_NAMES, None, "decoder_dict")
    prompts = content.get("feature_dict")
    if prompts and not isinstance(prompts, list | tuple):
        raise WeightsError("'feature_dict' is not a list of prompt encoders, as a 3DSAM-adapter checkpoint has")
    if prompts and not automatic:
        # four prompt encoders are stored, only the last one takes part
        state |= _rename(prompts[-1], PROMPT_NAMES, PROMPT_UNUSED, "feature_dict[-1]")
    state = {key: tensor if LOCAL_PATH.match(key) else _to_dhw(tensor) for key, tensor in state.items()}
    config = config_from_shapes(state)
    if issubclass(ADAPTERS[config.adapter], DualPathAdapter3d):
        config = replace(config, adapter_plane=PUBLISHED)
        for index in range(config.depth):
            state[f"encoder.blocks.{index}.adapter.published_plane"] = torch.ones(())
    return state, config


def _rename(
    weights: Any, names: tuple[tuple[re.Pattern[str], str], ...], unused: re.Pattern[str] | None, part: str
) -> dict[str, Tensor]:
    if isinstance(weights, Mapping):
        named = {key.removeprefix("module.") if isinstance(key, str) else key: value for key, value in weights.items()}
        weights = {key: named[key] for key in named if not (unused and unused.fullmatch(str(key)))}
    renamed = {}
    for key, tensor in as_state(weights, f"{part!r} of the 3DSAM-adapter checkpoint").items():
        for pattern, name in names:
            if pattern.fullmatch(key):
                renamed[pattern.sub(name, key)] = tensor
                break
        else:
            raise WeightsError(f"unknown weight {key!r} in {part!r}; a 3DSAM-adapter checkpoint does not have it")
    return renamed


def _to_dhw(tensor: Tensor) -> Tensor:
    """Kernels (O, I, H, W, D) -> (O, I, D, H, W); everything else as it is."""
    return tensor.permute(0, 1, 4, 2, 3).contiguous() if tensor.ndim == 5 else tensor
