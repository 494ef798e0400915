"""What is measured: the labels or regions of a data set, with their surface tolerance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunetv2_sam3d.nnunet.labels import foreground, sounds_like_lesion
from nnunetv2_sam3d.results.metrics import KITS_TOLERANCES_MM

KITS_REGIONS: Mapping[str, frozenset[int]] = {
    "kidney and masses": frozenset({1, 2, 3}),
    "masses": frozenset({2, 3}),
    "tumour": frozenset({2}),
}
DEFAULT_TOLERANCE_MM = 2.0


@dataclass(frozen=True)
class Structure:
    """One label or region.

    Attributes:
        name: as in ``dataset.json``.
        labels: label values that belong to it.
        tolerance_mm: of its surface Dice.
        lesion: whether its connected components are counted as lesions.
    """

    name: str
    labels: tuple[int, ...]
    tolerance_mm: float
    lesion: bool

    def mask(self, labels: np.ndarray) -> np.ndarray:
        """The structure's voxels in a label map, as bool array of the same shape."""
        return np.isin(labels, self.labels)


def structures_of(
    dataset_json: Mapping[str, Any],
    tolerances_mm: Sequence[float] | None = None,
    *,
    kits: bool = False,
    lesions: Sequence[str] | None = None,
) -> tuple[Structure, ...]:
    """The foreground labels or regions of a data set.

    Args:
        dataset_json: content of nnU-Net's ``dataset.json``.
        tolerances_mm: one for all structures or one each; by default KiTS's three on KiTS's three regions, else 2 mm.
        kits: measure KiTS's three regions of a data set whose labels 1, 2, 3 are kidney, tumour, cyst.
        lesions: names of the structures whose lesions are counted; by default those that are called like one.

    Raises:
        ValueError: for a data set without foreground, a wrong number of tolerances, or names that do not exist.
    """
    regions = {name: frozenset(values) for name, values in foreground(dataset_json["labels"]).items()}
    if kits:
        present = frozenset().union(*regions.values()) if regions else frozenset()
        if present != {1, 2, 3}:
            raise ValueError(
                f"KiTS's regions are made of the labels 1 (kidney), 2 (tumour) and 3 (cyst), but dataset.json has "
                f"{sorted(present)}; leave out --kits"
            )
        regions = dict(KITS_REGIONS)
    if not regions:
        raise ValueError(f"dataset.json has no foreground label, only {sorted(dataset_json['labels'])}")
    unknown = sorted(set(lesions or ()) - set(regions))
    if unknown:
        raise ValueError(f"there is no structure {unknown[0]!r} to count lesions of; there are {sorted(regions)}")
    tolerances = _tolerances(regions, tolerances_mm)
    return tuple(
        Structure(
            name,
            tuple(sorted(values)),
            tolerance,
            sounds_like_lesion(name) if lesions is None else name in lesions,
        )
        for (name, values), tolerance in zip(regions.items(), tolerances, strict=True)
    )


def has_kits_regions(regions: Mapping[str, frozenset[int]]) -> bool:
    """Whether these are KiTS's three regions, whatever their names."""
    return len(regions) == 3 and set(regions.values()) == set(KITS_REGIONS.values())


def _tolerances(regions: Mapping[str, frozenset[int]], given: Sequence[float] | None) -> list[float]:
    if given is None:
        if has_kits_regions(regions):
            by_labels = {labels: KITS_TOLERANCES_MM[name] for name, labels in KITS_REGIONS.items()}
            return [by_labels[values] for values in regions.values()]
        return [DEFAULT_TOLERANCE_MM] * len(regions)
    if len(given) not in (1, len(regions)) or not all(0 <= value < 1000 for value in given):
        raise ValueError(
            f"--tolerance-mm takes one distance for all structures or one for each of {list(regions)}, in this order, "
            f"between 0 and 1000 mm; got {list(given)}"
        )
    return [float(value) for value in given] * (len(regions) if len(given) == 1 else 1)
