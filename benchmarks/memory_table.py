"""Prints what fits into GPUs as a table in Markdown: ``python benchmarks/memory_table.py`` (minutes, no GPU needed)."""

from __future__ import annotations

from nnunetv2_sam3d.memory.model import GB
from nnunetv2_sam3d.network_architecture.config import VARIANTS
from nnunetv2_sam3d.planning.memory_choice import choose
from nnunetv2_sam3d.trainers.recipes import RECIPES

MEMORY_GB = (8, 12, 24, 40, 80)
WANTED = (128, 128, 128)
BATCH = 2


def cell(variant: str, recipe: str, memory_gb: float) -> str:
    """Patch, batch, checkpointing and predicted peak of one recipe alone."""
    try:
        found = choose(VARIANTS[variant], memory_gb, patch_size=WANTED, batch_size=BATCH, recipes=(recipe,))
    except ValueError:
        return "-"
    patch = "x".join(map(str, found.patch_size))
    more = ", recomputed" if found.checkpointing else ""
    return f"{patch}, {found.batch_size}{more}: {found.peak[recipe] / GB:.1f}"


def main() -> None:
    """Row by row, as it is computed."""
    print("| variant | recipe |" + "".join(f" {memory} GB |" for memory in MEMORY_GB))
    print("| --- | --- |" + " --- |" * len(MEMORY_GB))
    for variant in ("vit_b", "vit_l", "vit_h"):
        for recipe in RECIPES:
            cells = "".join(f" {cell(variant, recipe, memory)} |" for memory in MEMORY_GB)
            print(f"| `{variant}` | {recipe} |{cells}", flush=True)


if __name__ == "__main__":
    main()
