"""What is measured: one case is one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any

from nnunetv2_sam3d.network_architecture.config import VARIANTS, SAM3DConfig
from nnunetv2_sam3d.trainers.recipes import RECIPES

WHAT = ("forward", "step", "predict")
FORMS = ("ours", "plain")
PRECISIONS = ("float32", "bfloat16", "float16")
TRAINED = [name for name, recipe in RECIPES.items() if recipe.groups]  # recipes that train
CLICKS = 10  # of a forward pass; training and nnU-Net's inference use none


@dataclass(frozen=True)
class BenchmarkCase:
    """One record of the benchmark before it is measured.

    Attributes:
        what: ``forward``: network with 10 points, no gradients; ``step``: forward, loss, backward, clipping, AdamW;
            ``predict``: nnU-Net's sliding window with mirroring over a volume.
        form: ``ours``, or ``plain`` (:mod:`nnunetv2_sam3d.benchmark.plain`).
        variant: name in ``VARIANTS``.
        patch_size: voxels D H W.
        depth: transformer blocks; the variant's, or fewer.
        precision: of the matrix products; the weights are float32 in all.
        recipe: what is trained, and with which adapters.
        checkpointing: whether blocks are recomputed in the backward pass.
        batch_size: samples of a pass.
        device: ``cpu`` or ``cuda``.
        volume: voxels D H W that ``predict`` works on; ``None`` for the others.
    """

    what: str
    form: str
    variant: str
    patch_size: tuple[int, int, int]
    depth: int
    precision: str
    recipe: str
    checkpointing: bool = False
    batch_size: int = 1
    device: str = "cpu"
    volume: tuple[int, int, int] | None = None

    def config(self) -> SAM3DConfig:
        """Sizes of the network."""
        variant = VARIANTS[self.variant]
        return replace(
            variant,
            depth=self.depth,
            global_attn_indexes=tuple(index for index in variant.global_attn_indexes if index < self.depth),
            adapter=RECIPES[self.recipe].adapter,
            checkpointing=self.checkpointing,
        )

    @property
    def points(self) -> int:
        """Clicks given to the network."""
        return CLICKS if self.what == "forward" else 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BenchmarkCase:
        """From a record; what was measured is left out."""
        known: dict[str, Any] = {field.name: values[field.name] for field in fields(cls)}
        for name in ("patch_size", "volume"):
            known[name] = None if known[name] is None else tuple(known[name])
        return cls(**known)

    def label(self) -> str:
        """For the table and progress."""
        words = [self.what, self.form, self.variant, "x".join(map(str, self.patch_size))]
        words += [f"{self.depth} blocks", self.precision, self.recipe]
        words += ["checkpointing"] if self.checkpointing else []
        words += [f"batch {self.batch_size}"] if self.batch_size > 1 else []
        return " ".join(words)


def cases(
    *,
    variants: Sequence[str],
    patch_sizes: Sequence[tuple[int, int, int]],
    depths: Sequence[int] | None,
    what: Sequence[str],
    forms: Sequence[str],
    precisions: Sequence[str],
    recipes: Sequence[str],
    checkpointing: Sequence[bool] = (False,),
    batch_size: int = 1,
    device: str = "cpu",
    volume: tuple[int, int, int] | None = None,
) -> list[BenchmarkCase]:
    """Every combination that makes sense.

    Only a training step of our form has checkpointing; the recipes Full and Original have the same forward pass, which
    is measured once.

    Raises:
        ValueError: for sizes that cannot work, before anything is measured.
    """
    found: dict[BenchmarkCase, None] = {}
    for variant, patch in product(variants, patch_sizes):
        for depth in depths or (VARIANTS[variant].depth,):
            if depth > VARIANTS[variant].depth:
                raise ValueError(f"--depth {depth} is more than the {VARIANTS[variant].depth} blocks of {variant}")
            for case in _of_network(variant, patch, depth, what, forms, precisions, recipes, checkpointing):
                window = volume or (patch[0] * 3 // 2, patch[1] * 3 // 2, patch[2] * 3 // 2)
                case = replace(
                    case, batch_size=batch_size, device=device, volume=window if case.what == "predict" else None
                )
                case.config().check_patch_size(patch)
                found[case] = None
    return list(found)


def _of_network(
    variant: str,
    patch: tuple[int, int, int],
    depth: int,
    what: Sequence[str],
    forms: Sequence[str],
    precisions: Sequence[str],
    recipes: Sequence[str],
    checkpointing: Sequence[bool],
) -> Iterator[BenchmarkCase]:
    for kind, precision, recipe, form, recompute in product(what, precisions, recipes, forms, checkpointing):
        if kind != "step":
            recipe = "Original" if recipe == "Full" else recipe
            recompute = False
        yield BenchmarkCase(kind, form, variant, patch, depth, precision, recipe, recompute and form == "ours")
