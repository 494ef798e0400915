"""Sizes of the network, as data. Imports no PyTorch, for the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import ceil
from typing import Any

TOKEN_STRIDES = (1, 2, 4, 8, 16)
TAPS = 4
SLICE, PUBLISHED = "slice", "published"
PLANES = (SLICE, PUBLISHED)  # of the DualPath adapters' local path
PRECISIONS = ("auto", "float32", "bfloat16")  # of the matrix products on CPUs


@dataclass(frozen=True)
class SAM3DConfig:
    """Everything that is needed to build the network; no file, no environment.

    Args:
        embed_dim: token width C of the image encoder.
        depth: number of transformer blocks, a multiple of 4 (a tap after each quarter).
        num_heads: attention heads; ``embed_dim / num_heads`` is the head width.
        global_attn_indexes: blocks whose relative position tables have SAM's global size (127 rows instead of 27).
            All blocks attend within windows; only the tables differ.
        out_channels: width of the taps after the neck (SAM: 256).
        decoder_channels: width of the mask decoder (reference: 128).
        decoder_scale: how much finer than the tokens the mask decoder works (reference: 2). With a token stride of 4, a
            scale of 4 lets it see the image at full resolution.
        prompt_mlp_dim: hidden width of the prompt encoder's MLP (reference: 2048).
        position_grid: edge of the token grid that the position tables are made for (reference: 32).
        num_classes: channels of the logits.
        in_channels: channels of the image, see :class:`~nnunetv2_sam3d.network_architecture.stem.FoldedStem3d`.
        token_stride: voxels per token and axis ``(D, H, W)``; each 1, 2, 4, 8 or 16. The reference's 128^3 crop has 4.
        adapter: name of an adapter, see :data:`~nnunetv2_sam3d.network_architecture.adapters.ADAPTERS`.
        adapter_plane: plane of the DualPath adapters' local path, ``"slice"`` (H and W) or ``"published"`` (W and D, as
            in files of the public implementation).
        adapter_dim: bottleneck width of the adapters; ``None`` means ``embed_dim // 2``.
        prompt_encoder: ``False`` gives the reference's ``train_auto`` network, which refuses points.
        signed_clicks: whether the prompt encoder tells background clicks from foreground clicks, which goes beyond the
            reference.
        click_maps: whether every tap is told where the clicks are, see
            :class:`~nnunetv2_sam3d.network_architecture.prompt_encoder.ClickMaps3d`; goes beyond the reference.
        checkpointing: recompute each block's activations in the backward pass (less memory, more time).

    Raises:
        ValueError: if sizes do not fit together. The adapter's name is checked when the network is built.
    """

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)
    out_channels: int = 256
    decoder_channels: int = 128
    decoder_scale: int = 2
    prompt_mlp_dim: int = 2048
    position_grid: int = 32
    num_classes: int = 2
    in_channels: int = 1
    token_stride: tuple[int, int, int] = (4, 4, 4)
    adapter: str = "original"
    adapter_plane: str = SLICE
    adapter_dim: int | None = None
    prompt_encoder: bool = True
    signed_clicks: bool = False
    click_maps: bool = False
    checkpointing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "global_attn_indexes", tuple(self.global_attn_indexes))
        object.__setattr__(self, "token_stride", as_token_stride(self.token_stride))
        for name in (
            "embed_dim",
            "depth",
            "num_heads",
            "out_channels",
            "decoder_channels",
            "decoder_scale",
            "prompt_mlp_dim",
            "position_grid",
            "num_classes",
            "in_channels",
        ):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {getattr(self, name)!r}")
        if self.depth % TAPS:
            raise ValueError(f"depth must be a multiple of {TAPS} (one tap after each quarter), got {self.depth}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if self.adapter_plane not in PLANES:
            raise ValueError(f"adapter_plane must be one of {PLANES}, got {self.adapter_plane!r}")
        if self.adapter_dim is not None and (type(self.adapter_dim) is not int or self.adapter_dim < 1):
            raise ValueError(f"adapter_dim must be a whole number of at least 1, got {self.adapter_dim!r}")
        for name in ("signed_clicks", "click_maps"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
            if getattr(self, name) and not self.prompt_encoder:
                raise ValueError(f"{name} needs a prompt encoder")
        if self.prompt_encoder and self.out_channels % 16:
            raise ValueError(
                "out_channels must be a multiple of 16 for the prompt encoder (8 heads of half width), "
                f"got {self.out_channels}"
            )

    @property
    def bottleneck(self) -> int:
        """Hidden width of the adapters."""
        return self.embed_dim // 2 if self.adapter_dim is None else self.adapter_dim

    def token_grid(self, patch_size: Sequence[int]) -> tuple[int, int, int]:
        """Tokens along D, H, W for a patch in voxels; the patch is padded up to it."""
        grid = tuple(ceil(size / stride) for size, stride in zip(patch_size, self.token_stride, strict=True))
        return grid  # type: ignore[return-value]

    def check_patch_size(self, patch_size: Sequence[int]) -> None:
        """Raises ValueError if the network cannot work on patches of this size (voxels, D H W)."""
        if len(patch_size) != 3 or any(int(size) != size or size < 1 for size in patch_size):
            raise ValueError(
                f"the network is three-dimensional; expected a patch size of three positive voxel counts, "
                f"got {list(patch_size)}"
            )
        if self.token_grid(patch_size) == (1, 1, 1):
            raise ValueError(
                f"a patch of {list(patch_size)} voxels at token stride {list(self.token_stride)} is a single token, "
                f"too few to normalise over. Choose a larger patch or a smaller stride: nnUNetv2_sam3d plan "
                f"--patch-size D H W --token-stride S"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON and checkpoints."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SAM3DConfig:
        """Inverse of :meth:`to_dict`; unknown names are a ValueError."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown network settings {unknown}; known: {[field.name for field in fields(cls)]}")
        return cls(**values)


def as_token_stride(value: int | Sequence[int]) -> tuple[int, int, int]:
    """One stride for all axes or one for each of D, H, W -> a checked triple."""
    strides = (value,) * 3 if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(strides) != 3 or any(type(stride) is not int or stride not in TOKEN_STRIDES for stride in strides):
        raise ValueError(f"token_stride must be one or three of {TOKEN_STRIDES} voxels per token, got {value}")
    return strides  # type: ignore[return-value]


# SAM's published sizes, and a small one for CPUs and small data, for which no published weights exist.
VARIANTS: dict[str, SAM3DConfig] = {
    "vit_b": SAM3DConfig(),
    "vit_l": SAM3DConfig(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23)),
    "vit_h": SAM3DConfig(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31)),
    "vit_tiny": SAM3DConfig(
        embed_dim=64,
        depth=4,
        num_heads=2,
        global_attn_indexes=(1, 3),
        out_channels=32,
        decoder_channels=16,
        decoder_scale=4,
        prompt_mlp_dim=128,
        position_grid=16,
    ),
}


def variant_of(sizes: SAM3DConfig | Mapping[str, Any]) -> str | None:
    """The variant whose encoder blocks a network, or a table of some of its sizes, has; ``None`` for none of them."""
    if isinstance(sizes, SAM3DConfig):
        blocks = ("embed_dim", "depth", "num_heads", "global_attn_indexes")
        sizes = {name: getattr(sizes, name) for name in blocks}
    for name, published in VARIANTS.items():
        if all(getattr(published, size) == value for size, value in sizes.items()):
            return name
    return None
