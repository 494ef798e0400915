"""The prompt encoder: the deepest tap cross-attends to learned queries and the clicked points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_sam3d.network_architecture.axes import channels_first, channels_last
from nnunetv2_sam3d.network_architecture.config import TAPS
from nnunetv2_sam3d.network_architecture.layers import MLP

NUM_QUERIES = 10
NUM_HEADS = 8
NUM_LAYERS = 2
ADDITIONS = ("background", "click_maps.")
SIGMAS = (1.0, 2.0, 4.0)  # tokens
SIGNS = (1, -1)
GAIN = 8.0  # AdamW moves all weights at one pace; these begin at zero and have far to go


class PromptEncoder3d(nn.Module):
    """Brings clicks into the deepest tap; without clicks the learned queries work alone.

    Source: Gong et al., arXiv:2306.13465, section 3.3. Signs go beyond it: a background click's token gets a learned
    vector, zero at first, so that it is a click of the reference until training tells the two apart. Click maps, which
    the network lets follow on all taps, go beyond it as well. State dicts without either load as zero.

    Args:
        width: channels of the tap.
        mlp_dim: hidden width of the MLPs.
        signed: whether background clicks can be told from foreground clicks.
        maps: whether there is a :class:`ClickMaps3d`.

    Shape:
        features: (B, C, D, H, W), points: (B, N, 3) in (z, y, x) voxels of an image of ``image_size``,
        signs: (B, N), 1 for foreground, -1 for background, 0 for no click (filling up a batch), ``None`` for foreground
        alone -> like features
    """

    def __init__(self, width: int, mlp_dim: int, signed: bool = False, maps: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PromptLayer(width, mlp_dim) for _ in range(NUM_LAYERS))
        self.background = nn.Parameter(torch.zeros(width)) if signed else None
        self.click_maps = ClickMaps3d(width) if maps else None
        self.register_load_state_dict_pre_hook(_additions_are_zero)

    def prompted(
        self, taps: Sequence[Tensor], points: Tensor, image_size: Sequence[int], signs: Tensor | None = None
    ) -> list[Tensor]:
        """All four taps, (B, C, d, h, w): the deepest through :meth:`forward`, all through the click maps if any."""
        taps = [*taps[:-1], self(taps[-1], points, image_size, signs)]
        if self.click_maps is None or not points.shape[1]:
            return taps
        return self.click_maps(taps, points, image_size, signs)

    def forward(
        self, features: Tensor, points: Tensor, image_size: Sequence[int], signs: Tensor | None = None
    ) -> Tensor:
        tokens = sample_features(features, points, image_size)
        seen = None
        if signs is not None:
            if self.background is not None:
                tokens = tokens + (signs < 0).unsqueeze(-1) * self.background.to(tokens.dtype)
            seen = F.pad(signs != 0, (NUM_QUERIES, 0), value=True)[:, None, None]
        image = channels_last(features).flatten(1, 3)
        for layer in self.layers:
            image, tokens = layer(image, tokens, seen)
        return channels_first(image.unflatten(1, features.shape[2:]))


def _additions_are_zero(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """What goes beyond the reference, where a state dict has the reference's part alone."""
    if any(key.startswith(f"{prefix}layers.") for key in state):
        for name, value in module.state_dict().items():
            if name.startswith(ADDITIONS):
                state.setdefault(prefix + name, torch.zeros_like(value))


def is_addition(name: str) -> bool:
    """Whether a weight of the network goes beyond the reference and changes nothing while it is zero."""
    return name.removeprefix("prompt_encoder.").startswith(ADDITIONS)


def sample_features(features: Tensor, points: Tensor, image_size: Sequence[int]) -> Tensor:
    """Features at points, trilinear; zero outside the volume.

    Args:
        features: (B, C, D, H, W) over the whole image.
        points: (B, N, 3) as (z, y, x) in voxels of the image, voxel centre = integer.
        image_size: voxels of the image along D, H, W.

    Returns:
        (B, N, C)
    """
    if points.shape[1] == 0:
        return features.new_zeros(features.shape[0], 0, features.shape[1])
    size = torch.tensor(image_size, dtype=torch.float32, device=points.device)
    # float32 throughout: bfloat16 cannot name a voxel of a 512 edge
    grid = ((points.float() + 0.5) / size * 2 - 1).flip(-1)[:, :, None, None]  # grid_sample wants (x, y, z)
    sampled = F.grid_sample(features.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled[..., 0, 0].transpose(1, 2).to(features.dtype)


class Attention(nn.Module):
    """Multi-head attention with separate projections and an inner width (SAM's mask decoder attention).

    Shape:
        q: (B, N, C), k and v: (B, M, C) -> (B, N, C); seen: bool, (B, 1, 1, M), which keys there are, ``None`` for all
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2)
            for proj, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class PromptLayer(nn.Module):
    """Queries and points attend to each other, then the image attends to the queries.

    Shape:
        image: (B, T, C), points: (B, N, C), N may be 0 -> the same two shapes; seen: bool, (B, 1, 1, queries + N),
        ``None`` where all points are clicks
    """

    def __init__(self, width: int, mlp_dim: int) -> None:
        super().__init__()
        self.global_query = nn.Parameter(torch.randn(1, NUM_QUERIES, width) * 0.1)
        self.self_attn = Attention(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_dim, nn.ReLU)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn = Attention(width, width // 2)

    def forward(self, image: Tensor, points: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q = torch.cat([self.global_query.expand(len(points), -1, -1).to(points.dtype), points], 1)
        q = self.norm2(q + self.norm1(self.self_attn(q, q, q, seen)))
        queries, points = q[:, :NUM_QUERIES], q[:, NUM_QUERIES:]
        queries = self.norm3(queries + self.mlp(queries))
        image = self.norm4(image + self.cross_attn(image, queries, queries))
        return image, points


class ClickMaps3d(nn.Module):
    """Adds to each tap what a linear layer makes of Gaussians around the clicks.

    The reference's clicks reach the image only through its ten global queries, which can say what was clicked on but
    hardly where. The mask decoder convolves each tap before it joins them, so from the taps a click's place meets the
    features of its neighbourhood. Goes beyond the reference: the layer is zero at first, and without clicks it adds
    nothing whatever it has learned, since it has no bias.

    Args:
        width: channels of the taps.

    Shape:
        taps: four of (B, C, d, h, w), points: (B, N, 3) in (z, y, x) voxels of an image of ``image_size``,
        signs: (B, N), 1 for foreground, -1 for background, 0 for no click, ``None`` for foreground alone -> like taps
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_taps = nn.Linear(len(SIGNS) * len(SIGMAS), TAPS * width, bias=False)
        nn.init.zeros_(self.to_taps.weight)

    def forward(
        self, taps: Sequence[Tensor], points: Tensor, image_size: Sequence[int], signs: Tensor | None = None
    ) -> list[Tensor]:
        maps = click_maps(points, image_size, taps[0].shape[2:], signs)
        added = channels_first(self.to_taps(GAIN * maps)).chunk(TAPS, 1)
        return [tap + more.to(tap.dtype) for tap, more in zip(taps, added, strict=True)]


def click_maps(points: Tensor, image_size: Sequence[int], grid: Sequence[int], signs: Tensor | None = None) -> Tensor:
    """Gaussians around the clicks, the highest where they overlap.

    Args:
        points: (B, N, 3) as (z, y, x) in voxels of the image, voxel centre = integer.
        image_size: voxels of the image along D, H, W.
        grid: tokens over the whole image (d, h, w).
        signs: (B, N), see :class:`ClickMaps3d`.

    Returns:
        (B, d, h, w, 6): foreground clicks at each of ``SIGMAS``, then background clicks; 1 at a click, 0 everywhere
        without any.
    """
    size = torch.tensor([tuple(image_size), tuple(grid)], dtype=torch.float32, device=points.device)
    places = (points.float() + 0.5) * (size[1] / size[0]) - 0.5  # in tokens, token centre = integer
    along = [
        (torch.arange(length, device=points.device) - places[..., axis, None]) ** 2 for axis, length in enumerate(grid)
    ]
    squared = along[0][..., None, None] + along[1][..., None, :, None] + along[2][..., None, None, :]  # (B, N, d, h, w)
    signs = torch.ones(points.shape[:2], device=points.device) if signs is None else signs
    maps = []
    for sign in SIGNS:
        others = (signs != sign)[..., None, None, None]
        none = squared.new_full((len(points), 1, *grid), torch.inf)  # also where there are no points at all
        nearest = torch.cat([squared.masked_fill(others, torch.inf), none], 1).amin(1)
        maps += [torch.exp(-nearest / (2 * sigma**2)) for sigma in SIGMAS]
    return torch.stack(maps, -1)
