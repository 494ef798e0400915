"""Chooses patch, batch size and checkpointing for the memory of a GPU."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import ceil

from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_sam3d.memory.count import Counted, step_bytes
from nnunetv2_sam3d.memory.model import GB, peak_bytes
from nnunetv2_sam3d.network_architecture.config import TAPS, SAM3DConfig
from nnunetv2_sam3d.network_architecture.windows import WINDOW
from nnunetv2_sam3d.trainers.losses import DiceCELoss
from nnunetv2_sam3d.trainers.recipes import RECIPES, apply_freezing

Patch = tuple[int, int, int]
PLANNED = ("DualPath", "Original")  # the two that are compared, and so trained with the same plans


@dataclass(frozen=True)
class Choice:
    """What fits.

    Attributes:
        patch_size: voxels (D, H, W).
        batch_size: samples.
        checkpointing: whether activations are recomputed.
        peak: predicted bytes of a training step, for each recipe.
    """

    patch_size: Patch
    batch_size: int
    checkpointing: bool
    peak: dict[str, int]


@cache
def counted_bytes(
    config: SAM3DConfig, recipe: str, patch_size: Patch, batch_size: int, precision: str, device: str = "cpu"
) -> Counted:
    """Tensors of a training step; the adapters are the recipe's.

    Deep networks are counted at two small depths: every further block holds the same.
    """
    if config.depth > 2 * TAPS:
        few, more = (
            counted_bytes(_cut(config, depth), recipe, patch_size, batch_size, precision, device)
            for depth in (TAPS, 2 * TAPS)
        )
        return Counted(few.peak + (more.peak - few.peak) * (config.depth - TAPS) // TAPS, more.widest)
    freeze = partial(apply_freezing, recipe=RECIPES[recipe])
    labels = {"background": 0} | {f"label {value}": value for value in range(1, config.num_classes)}
    loss = DiceCELoss(LabelManager(labels, None), batch_dice=False).train()
    config = replace(config, adapter=RECIPES[recipe].adapter)
    return step_bytes(
        config, freeze, loss, patch_size=patch_size, batch_size=batch_size, precision=precision, device=device
    )


def _cut(config: SAM3DConfig, depth: int) -> SAM3DConfig:
    indexes = tuple(index for index in config.global_attn_indexes if index < depth)
    return replace(config, depth=depth, global_attn_indexes=indexes)


def gpu_peaks(config: SAM3DConfig, patch_size: Patch, batch_size: int, recipes: Sequence[str]) -> dict[str, int]:
    """Predicted bytes of a training step on a GPU under nnU-Net's autocast, for each recipe."""
    return {
        recipe: peak_bytes(counted_bytes(config, recipe, patch_size, batch_size, "float16", "cuda"), "cuda", "float16")
        for recipe in recipes
    }


def choose(
    config: SAM3DConfig,
    memory_gb: float,
    *,
    patch_size: Sequence[int],
    batch_size: int,
    keep_patch: bool = False,
    keep_batch: bool = False,
    checkpointing: bool | None = None,
    recipes: Sequence[str] = PLANNED,
) -> Choice:
    """The largest that fits: first the patch as wanted, then the batch, then no checkpointing.

    A large patch shows the network more, a large batch steadies its steps; checkpointing costs time only.

    Args:
        config: the network; its adapter and checkpointing do not matter.
        memory_gb: of the GPU, in 10^9 bytes.
        patch_size: voxels (D, H, W), never exceeded; smaller ones are whole attention windows.
        batch_size: never exceeded.
        keep_patch: whether the patch may not be made smaller.
        keep_batch: whether the batch may not be made smaller.
        checkpointing: whether to recompute, where that is decided.
        recipes: names of those that have to fit.

    Raises:
        ValueError: if nothing fits, naming the least that is needed.
    """
    if not memory_gb > 0:
        raise ValueError(f"--gpu-memory must be positive, got {memory_gb}")
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    wanted = (int(patch_size[0]), int(patch_size[1]), int(patch_size[2]))
    config.check_patch_size(wanted)
    batches = [batch_size] if keep_batch else list(range(batch_size, 0, -1))
    ladder = [(wanted, batch) for batch in batches]
    if not keep_patch:
        ladder += [(smaller, batches[-1]) for smaller in _smaller(wanted, config.token_stride)]

    def peaks(step: tuple[Patch, int], recompute: bool) -> dict[str, int]:
        return gpu_peaks(replace(config, checkpointing=recompute), *step, recipes)

    def fits(step: tuple[Patch, int], recompute: bool) -> bool:
        return max(peaks(step, recompute).values()) <= memory_gb * GB

    thrifty = checkpointing is not False
    first = bisect_left(ladder, True, key=lambda step: fits(step, thrifty))
    if first == len(ladder):
        patch, batch = ladder[-1]
        needed = max(peaks(ladder[-1], thrifty).values()) / GB
        raise ValueError(
            f"not even a batch of {batch} with a patch of {list(patch)} fits into {memory_gb:g} GB: a training step "
            f"is predicted to take {needed:.1f} GB{' with checkpointing' if thrifty else ''}. Choose a smaller "
            f"--variant, a larger --token-stride, or give a smaller --patch-size or --batch-size where you gave one."
        )
    recompute = checkpointing if checkpointing is not None else not fits(ladder[first], False)
    return Choice(*ladder[first], recompute, peaks(ladder[first], recompute))


def _smaller(patch: Patch, stride: Patch) -> Iterator[Patch]:
    """Ever smaller patches of whole attention windows, down to one: the axis with the most windows loses one."""
    edges = [WINDOW * step for step in stride]
    windows = [ceil(size / edge) for size, edge in zip(patch, edges, strict=True)]
    while max(windows) > 1:
        windows[windows.index(max(windows))] -= 1
        sizes = [min(size, n * edge) for size, n, edge in zip(patch, windows, edges, strict=True)]
        yield sizes[0], sizes[1], sizes[2]
