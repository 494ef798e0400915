"""Surfaces for the 3D viewer: small triangle meshes as JSON with base64 arrays."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.measure import marching_cubes

from nnunetv2_sam3d.report.overlays import View
from nnunetv2_sam3d.report.style import REFERENCE_COLOUR, colour
from nnunetv2_sam3d.results.structures import Structure

MAX_CELLS = 56  # along the longest axis of the grid that surfaces are taken from
LEVEL = 0.5


def scene(view: View, structures: Sequence[Structure], focus: Structure) -> dict[str, Any]:
    """All surfaces of a case.

    Args:
        view: the case, cropped around ``focus``.
        structures: what gets a surface.
        focus: shown first, of the annotation and the last model; of the others the annotation's largest one, as a veil.

    Returns:
        ``case``; ``absent``, the ``name`` and ``structure`` of empty masks; ``meshes``, each with ``name``,
        ``structure``, ``colour``, ``shown``, ``veil``, ``scale`` (mm per unit), ``positions`` (uint16 x, y, z) and
        ``triangles`` (uint32), both base64, little-endian.
    """
    size_mm = [size * spacing for size, spacing in zip(view.reference.shape, view.spacing_mm, strict=True)]
    sizes = {structure.name: int(structure.mask(view.reference).sum()) for structure in structures}
    veil = max(sizes, key=lambda name: (sizes[name], name)) if len(structures) > 1 else ""
    meshes: list[dict[str, Any]] = []
    absent = []
    sources = [("annotation", REFERENCE_COLOUR, view.reference)]
    sources += [(name, colour(number), labels) for number, (name, labels) in enumerate(view.predictions.items())]
    for name, paint, labels in sources:
        for structure in structures:
            mesh = _mesh(structure.mask(labels), view.spacing_mm, size_mm)
            if mesh is None:
                absent.append({"name": name, "structure": structure.name})
                continue
            is_veil = structure.name == veil != focus.name
            meshes.append(
                {
                    "name": name,
                    "structure": structure.name,
                    "colour": paint,
                    "shown": (structure == focus and name in ("annotation", sources[-1][0]))
                    or (is_veil and name == "annotation"),
                    "veil": is_veil or (structure == focus and name == "annotation"),
                    **mesh,
                }
            )
    return {"case": view.case, "meshes": meshes, "absent": absent}


def _mesh(mask: np.ndarray, spacing_mm: Sequence[float], size_mm: Sequence[float]) -> dict[str, Any] | None:
    """Marching cubes on a coarser, evenly spaced grid, centred on the crop; ``None`` for an empty mask."""
    if not mask.any():
        return None
    step_mm = max(max(size_mm) / MAX_CELLS, min(spacing_mm))
    padded = np.pad(mask.astype(np.float32), 2)
    soft = ndimage.gaussian_filter(padded, [0.45 * step_mm / spacing for spacing in spacing_mm])
    grid = ndimage.zoom(soft, [spacing / step_mm for spacing in spacing_mm], order=1, grid_mode=True, mode="nearest")
    # a structure of a few voxels must not vanish in the smoothing
    level = min(LEVEL, 0.5 * float(grid.max()))
    real_step = [
        size * spacing / cells for size, spacing, cells in zip(padded.shape, spacing_mm, grid.shape, strict=True)
    ]
    vertices, triangles, _, _ = marching_cubes(np.pad(grid, 1), level, spacing=real_step)
    offset = [
        (0.5 - 1) * step - 2 * spacing - size / 2
        for step, spacing, size in zip(real_step, spacing_mm, size_mm, strict=True)
    ]
    x_y_z = (vertices + offset)[:, ::-1]
    scale = max(size_mm) / 40000
    positions = np.clip(np.round(x_y_z / scale) + 32768, 0, 65535).astype("<u2")
    return {
        "scale": round(scale, 9),
        "positions": base64.b64encode(positions.tobytes()).decode(),
        "triangles": base64.b64encode(triangles.astype("<u4").tobytes()).decode(),
    }
