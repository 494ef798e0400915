"""From the clicks of a file to the clicks of an image: checked, and in its voxels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any

import numpy as np

from nnunetv2_sam3d.clicks.click import Click, ClickError, ClickFile, FileClick
from nnunetv2_sam3d.clicks.geometry import Geometry, PreprocessedGrid
from nnunetv2_sam3d.clicks.slicer_names import understand
from nnunetv2_sam3d.messages import shown
from nnunetv2_sam3d.nnunet.labels import foreground

# How far the geometry that a file names may be from the image's: headers are often rounded to single precision.
_TOLERANCES = {"image_size": 0.0, "spacing": 1e-3, "origin": 1e-2, "direction": 1e-3}


def clicks_for_case(
    file: ClickFile, case: str, properties: Mapping[str, Any], shape: Sequence[int], labels: Mapping[str, Any]
) -> list[Click]:
    """The clicks of one image.

    Args:
        file: from :func:`~nnunetv2_sam3d.clicks.click_files.find_clicks` or ``read_clicks``.
        case: name of the image without channel and ending.
        properties: what nnU-Net's reader returned beside the image.
        shape: (z, y, x) of the image that it returned.
        labels: ``labels`` of ``dataset.json``.

    Raises:
        ClickError: for clicks of another image, outside the image, in a space that the image does not have, or with a
            label that the data set does not have; it names file, click and remedy.
    """
    try:
        geometry = Geometry.from_properties(properties, shape)
        _check_image(file, case, geometry)
        zyx = np.empty((len(file.clicks), 3))
        for index, click in enumerate(file.clicks):
            try:
                zyx[index] = geometry.to_zyx([click.position], click.space)[0]
            except ClickError as error:
                raise ClickError(f"{click}: {error}") from error
        inside = geometry.inside(zyx)
        if not inside.all():
            _refuse_outside(file.clicks, int(np.argmin(inside)), zyx, geometry)
        return [_click(click, place, labels) for click, place in zip(file.clicks, zyx.tolist(), strict=True)]
    except ClickError as error:
        raise ClickError(f"{file.file}, for the case {case}: {error}") from error


def clicks_in_grid(clicks: Sequence[Click], grid: PreprocessedGrid) -> np.ndarray:
    """Clicks in voxels of nnU-Net's preprocessed image, (N, 3) as (z, y, x) of that image's axes.

    Raises:
        ClickError: for a click in the empty border that nnU-Net cuts off.
    """
    points = grid.from_image([click.zyx for click in clicks])
    inside = grid.inside(points)
    if not inside.all():
        number = int(np.argmin(inside))
        raise ClickError(
            f"click {number + 1} ({clicks[number].label or 'no label'}) at voxel {_show(clicks[number].zyx)} (z, y, x) "
            "lies in the border of zeros around the image, which nnU-Net cuts off and predicts as background: remove it"
        )
    return points


def _click(click: FileClick, zyx: list[float], labels: Mapping[str, Any]) -> Click:
    names = foreground(labels)
    try:
        if click.names:
            label, sign = understand(click.names, list(names))
            return Click((zyx[0], zyx[1], zyx[2]), label, sign)
        return Click((zyx[0], zyx[1], zyx[2]), _label(click.label, names), click.sign)
    except ClickError as error:
        raise ClickError(f"{click}: {error}") from error


def _label(label: str | int | None, names: Mapping[str, Sequence[int]]) -> str | int | None:
    """A label by its name in ``dataset.json``; a number that only stands among others in regions stays a number."""
    if label is None:
        return None
    for name, numbers in names.items():
        if tuple(numbers) == (label,) or (isinstance(label, str) and name.casefold() == label.strip().casefold()):
            return name
    if label in {number for numbers in names.values() for number in numbers}:
        return label
    if label == 0 or str(label).casefold() == "background":
        raise ClickError(
            "the background is no label to click on; for a click outside a structure use the sign background"
        )
    near = get_close_matches(f"{label:.60}" if isinstance(label, str) else str(label), names, n=1)
    hint = f", for instance {near[0]!r}" if near else ""
    known = ", ".join(f"{name} = {','.join(map(str, numbers))}" for name, numbers in names.items())
    raise ClickError(f"the data set has no label {shown(label)}; it has {known}. Use one of them{hint}, or none")


def _refuse_outside(clicks: Sequence[FileClick], index: int, zyx: np.ndarray, geometry: Geometry) -> None:
    click = clicks[index]
    positions = [other.position for other in clicks]
    fitting = [
        space
        for space in geometry.spaces()
        if space != click.space and geometry.inside(geometry.to_zyx(positions, space)).all()
    ]
    advice = (
        f"Read as {' or '.join(fitting)}, all clicks of the file would lie inside: is its space wrong?"
        if fitting
        else "Were the clicks made on another image?"
    )
    depth, height, width = geometry.shape
    raise ClickError(
        f"{click} lies outside the image: it would be voxel {_show(zyx[index])} (z, y, x) of {depth} x {height} x "
        f"{width}. {advice}"
    )


def _check_image(file: ClickFile, case: str, geometry: Geometry) -> None:
    if file.image is not None:
        name = PurePath(file.image.replace("\\", "/")).name
        if not re.fullmatch(re.escape(case) + r"(_\d{4})?(\.\w+)*", name):
            raise ClickError(
                f"the clicks were made on the image {shown(file.image)}; give them to that case, or remove the entry "
                "if the image is the same"
            )
    own = geometry.description()
    for key, values in file.geometry.items():
        if key in own and not np.allclose(values, own[key], rtol=0, atol=_TOLERANCES[key]):
            raise ClickError(
                f"the clicks were made on an image whose {key.replace('_', ' ')} is {_show(values)}, but this one's is "
                f"{_show(own[key])}; give them to the image that they were made on"
            )


def _show(values: Sequence[float] | np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
