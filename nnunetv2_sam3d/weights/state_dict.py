"""State dicts from files: checked entry by entry, and the sizes of a network told from their shapes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nnunetv2_sam3d.messages import some
from nnunetv2_sam3d.network_architecture.adapters import ADAPTERS
from nnunetv2_sam3d.network_architecture.config import VARIANTS, SAM3DConfig
from nnunetv2_sam3d.network_architecture.image_encoder import SAM_WINDOW_ROWS
from nnunetv2_sam3d.weights.errors import WeightsError

# Four digits at most: a damaged name must not cost time.
BLOCK = re.compile(r"encoder\.blocks\.(\d{1,4})\.")
LONGEST_NAME = 500
# Bytes in single precision for each that is stored: half precision makes two of one, and a weight may have two names.
MOST_SHARED = 4
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def as_state(table: Any, what: str) -> dict[str, Tensor]:
    """A table from a file, which must be a state dict, in single precision.

    Raises:
        WeightsError: if it is not a table of plain tensors by name; ``what`` names it.
    """
    if not isinstance(table, Mapping) or not all(isinstance(key, str) for key in table):
        raise WeightsError(f"{what} is no table of weights; the file is damaged")
    if odd := [key for key, value in table.items() if not isinstance(value, Tensor)]:
        raise WeightsError(f"{what} is damaged: the weight {odd[0]!r} is no tensor")
    if long := [key for key in table if len(key) > LONGEST_NAME]:
        raise WeightsError(f"{what} is damaged: a weight has a name of {len(long[0])} letters")
    for key, value in table.items():
        _check_stored(key, value)
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in table.values()}
    if 4 * sum(tensor.numel() for tensor in table.values()) > MOST_SHARED * sum(stored.values()) + (1 << 20):
        raise WeightsError(f"{what} is refused: its weights share so few values that they would be many times the file")
    return {key: tensor.detach().float() for key, tensor in table.items()}


def _check_stored(key: str, tensor: Tensor) -> None:
    """Raises WeightsError for what is not stored value by value: it could be of any size."""
    if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.device.type == "meta":
        raise WeightsError(f"the weight {key!r} is no plain floating-point tensor ({tensor.dtype}, {tensor.layout})")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise WeightsError(f"the weight {key!r} of shape {tuple(tensor.shape)} is larger than what is stored of it")


def size(state: Mapping[str, Tensor], key: str, axis: int) -> int:
    """Length of a weight along an axis.

    Raises:
        WeightsError: if the weight is missing or has no such axis.
    """
    if key not in state:
        raise WeightsError(f"the weight {key!r} is missing, so the sizes of the network cannot be read")
    shape = state[key].shape
    if not -len(shape) <= axis < len(shape) or shape[axis] < 1:
        raise WeightsError(f"the weight {key!r} has the shape {tuple(shape)}, which the network cannot have")
    return shape[axis]


def depth_of(state: Mapping[str, Tensor]) -> int:
    """Number of transformer blocks, counted up to the last one."""
    return 1 + max((int(match[1]) for key in state if (match := BLOCK.match(key))), default=-1)


def encoder_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of SAM's part of the encoder by their names in ``SAM3DConfig``, from weights under our names.

    Raises:
        WeightsError: if a weight that tells a size is missing.
    """
    depth = depth_of(state)
    width = size(state, "encoder.pos_embed", -1)
    rows = [size(state, f"encoder.blocks.{index}.attn.rel_pos_h", 0) for index in range(depth)]
    return {
        "embed_dim": width,
        "depth": depth,
        "num_heads": width // size(state, "encoder.blocks.0.attn.rel_pos_h", 1),
        "global_attn_indexes": tuple(index for index, count in enumerate(rows) if count != SAM_WINDOW_ROWS),
        "position_grid": size(state, "encoder.pos_embed", 1) // 2,  # the table is made for twice the token grid
    }


def check_encoder(state: Mapping[str, Tensor]) -> None:
    """Raises WeightsError if SAM's part of the encoder, under our names, is not whole.

    The first file of several has the first blocks, and would pass as a smaller network.
    """
    sizes = encoder_sizes(state)
    blocks = [f"encoder.blocks.{index}.{name}" for index in range(sizes["depth"]) for name in _OF_A_BLOCK]
    if lacking := [name for name in (*_OF_THE_STEM, *blocks) if name not in state]:
        raise WeightsError(
            f"it lacks {len(lacking)} weights of SAM's image encoder ({in_short(lacking)}): {_INCOMPLETE}"
        )
    for name, published in VARIANTS.items():
        if sizes["embed_dim"] == published.embed_dim and sizes["depth"] < published.depth and name in PUBLISHED_DEPTHS:
            raise WeightsError(
                f"it has {sizes['depth']} of the {published.depth} blocks of SAM's image encoder {name}: {_INCOMPLETE}"
            )


PUBLISHED_DEPTHS = ("vit_b", "vit_l", "vit_h")
_INCOMPLETE = "it is incomplete. Copy or fetch all of it again; of a set of several files, all of them and their index"
_OF_THE_STEM = ("encoder.pos_embed", "encoder.stem.patch_embed.proj.weight", "encoder.stem.patch_embed.proj.bias")
_LAYERS = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")
_OF_A_BLOCK = (
    *(f"{layer}.{kind}" for layer in _LAYERS for kind in ("weight", "bias")),
    *(f"attn.rel_pos_{axis}" for axis in "hwd"),
)


def adapter_of(state: Mapping[str, Tensor]) -> str:
    """The published adapter whose weights a state has in its first block, told from their names.

    Raises:
        WeightsError: for names that no published adapter has.
    """
    prefix = "encoder.blocks.0.adapter."
    names = {key.removeprefix(prefix) for key in state if key.startswith(prefix)}
    for name, adapter in ADAPTERS.items():
        if names == {parameter for parameter, _ in adapter(1, 1).named_parameters()}:
            return name
    raise WeightsError(
        f"no known adapter has the weights of these ({', '.join(sorted(names)[:4]) or 'none'}). Known are those of "
        f"3DSAM-adapter, and unetlocal, convlocal and fftlocal of 3DMedSAM-FDA"
    )


def config_from_shapes(state: Mapping[str, Tensor]) -> SAM3DConfig:
    """Sizes of a whole network from the shapes of its weights, under our names.

    The token stride and the image channels leave no trace in the shapes; they get the reference's values.

    Raises:
        WeightsError: if a weight that tells a size is missing.
    """
    prompted = any(key.startswith("prompt_encoder.") for key in state)
    try:
        return SAM3DConfig(
            **encoder_sizes(state),
            out_channels=size(state, "encoder.neck_3d.0.0.weight", 0),
            decoder_channels=size(state, "mask_decoder.fuse.0.weight", 0),
            prompt_mlp_dim=size(state, "prompt_encoder.layers.0.mlp.lin1.weight", 0) if prompted else 2048,
            num_classes=size(state, "mask_decoder.seg_layers.0.weight", 0),
            adapter=adapter_of(state),
            adapter_dim=size(state, "encoder.blocks.0.adapter.linear1.weight", 0),
            prompt_encoder=prompted,
        )
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"the shapes of the weights do not fit together: {error}") from error


# The parts that may come from different files; the first pattern that fits a name decides.
PARTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("adapters", re.compile(r"encoder\.blocks\.\d+\.adapter\..+")),
    (
        "3D parts of the encoder",
        re.compile(
            r"encoder\.(depth_embed|stem\.slice_embed\..+|neck_3d\..+|blocks\.\d+\.(norm[12]\..+|attn\.rel_pos_d))"
        ),
    ),
    ("SAM encoder", re.compile(r"encoder\..+")),
    ("prompt encoder", re.compile(r"prompt_encoder\..+")),
    ("last convolution", re.compile(r"mask_decoder\.seg_layers\..+")),
    ("mask decoder", re.compile(r"mask_decoder\..+")),
)
SEG_LAYERS = "mask_decoder.seg_layers."
LAST_CONVOLUTION = f"{SEG_LAYERS}0.weight"


def part_of(name: str) -> str:
    """The part of the network that a weight belongs to."""
    return next(part for part, pattern in PARTS if pattern.fullmatch(name))


def misfits(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """Weights of ``state`` that ``target`` does not have, or has in another shape."""
    return [
        f"{key} {tuple(value.shape)} for {tuple(target[key].shape)}" if key in target else f"{key} (unknown)"
        for key, value in state.items()
        if key not in target or value.shape != target[key].shape
    ]


def in_short(problems: Sequence[str]) -> str:
    """The first three, and how many more."""
    return some(problems)


def state_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, whatever the order and the device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
