"""One image, the clicks in it, and its mask: what an interactive viewer talks to. Knows nothing of HTTP."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from nnunetv2_sam3d.clicks.click import BACKGROUND, FOREGROUND, Click, ClickError, check_count, finite_position
from nnunetv2_sam3d.server.axis_order import AxisOrder

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""First voxel and the one behind the last, along k, j, i."""


CheckAxes = Callable[[np.ndarray, Sequence[float], AxisOrder], str | None]
"""Takes an image (C, k, j, i), its spacing, how its axes lie to the model's; gives a warning or raises ValueError."""

SPACINGS_MM = (1e-9, 1e9)  # of voxels; beyond, the sizes that follow from them are no numbers


class ServedModel(Protocol):
    """A model with one image, in the model's axes (z, y, x)."""

    channels: int
    label: str  # of the clicks

    def set_image(self, image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        """Takes an image (C, z, y, x) with its spacing in mm; returns the automatic mask, bool (z, y, x)."""

    def check(self, clicks: Sequence[Click]) -> None:
        """ValueError for clicks that the model cannot take, in any image."""

    def mask(self, clicks: Sequence[Click]) -> np.ndarray:
        """The mask with clicks of this image, at least one, bool (z, y, x)."""

    def segmentation(self, clicks: Sequence[Click]) -> np.ndarray:
        """The labels of ``dataset.json`` with clicks of this image, or without any, (z, y, x)."""

    def stop(self) -> None:
        """A prediction in another thread ends with the window that it is at, and there are no others."""


@dataclass(frozen=True)
class Change:
    """What a request did to the mask.

    Attributes:
        box: encloses every voxel that changed, cleared ones included; ``None`` if none did.
        values: the mask in that box, uint8, 0 and 1.
        ran: whether anything was predicted or undone.
    """

    box: Box | None = None
    values: np.ndarray | None = None
    ran: bool = True


@dataclass(frozen=True)
class _Step:
    """How things were before a click: the clicks, how many were predicted, and the mask where it changed, packed."""

    clicks: tuple[Click, ...]
    predicted: int
    box: Box | None = None
    packed: bytes = b""


class InteractiveSession:
    """The state that one client sees.

    Images, voxels and masks have the viewer's axes (k, j, i); ``axes`` leads to the model's and back.

    Args:
        model: of this session alone; sessions may share its weights.
        axes: how the viewer's axes lie to the model's.
        check_axes: looks at the volumes of viewers.
    """

    def __init__(
        self, model: ServedModel, axes: AxisOrder | None = None, check_axes: CheckAxes = lambda *_: None
    ) -> None:
        self.model, self.axes, self._check_axes = model, axes or AxisOrder(), check_axes
        self._forget_image()

    def _forget_image(self) -> None:
        self.shape: tuple[int, int, int] | None = None
        self.automatic: np.ndarray | None = None
        self.warning: str | None = None
        self._forget_clicks()

    def _forget_clicks(self) -> None:
        self._clicks: tuple[Click, ...] = ()
        self._predicted = 0  # of the clicks
        self._steps: list[_Step] = []
        self._mask = None if self.shape is None else np.zeros(self.shape, bool)

    @property
    def mask(self) -> np.ndarray:
        """The mask as the client has it, bool (k, j, i)."""
        return self._the_mask()

    @property
    def clicks(self) -> tuple[Click, ...]:
        """The clicks in the model's voxels (z, y, x), in their order."""
        return self._clicks

    def set_image(self, image: np.ndarray, spacing: Sequence[float], check_axes: CheckAxes | None = None) -> str | None:
        """Takes an image and predicts it automatically; forgets the earlier image and its clicks.

        Args:
            image: (C, k, j, i), of any number type.
            spacing: mm, along k, j, i; negative where the viewer shows an axis backwards, as napari does.
            check_axes: in place of the session's, for an image that comes from no viewer.

        Returns:
            a warning if nobody can tell whether the volume has the axes of the training.

        Raises:
            ValueError: for another number of channels, a spacing that is none, voxels that are no numbers, and a volume
                with other axes than the training's. No image is set then.
        """
        self._forget_image()
        if image.ndim != 4 or len(image) != self.model.channels or not image.size:
            raise ValueError(
                f"the model takes volumes of {self.model.channels} channels, (C, k, j, i), got {list(image.shape)}"
            )
        spacing = [abs(length) for length in finite_position(spacing)]
        if not SPACINGS_MM[0] <= min(spacing) <= max(spacing) <= SPACINGS_MM[1]:
            low, high = SPACINGS_MM
            raise ValueError(f"the spacing is three lengths (k, j, i) from {low:g} to {high:g} mm, got {spacing}")
        warning = (check_axes or self._check_axes)(image, spacing, self.axes)
        with np.errstate(over="ignore"):  # becomes infinite
            voxels = np.ascontiguousarray(self.axes.to_model(image), dtype=np.float32)
        if not np.isfinite(voxels).all():
            raise ValueError("the volume has voxels that are no finite numbers (NaN or infinite); replace them first")
        automatic = self.model.set_image(voxels, self.axes.sizes(spacing))
        k, j, i = image.shape[1:]
        self.shape, self.warning = (k, j, i), warning
        self.automatic = np.ascontiguousarray(self.axes.from_model(automatic))
        self._forget_clicks()
        return warning

    def add_click(self, voxel: Sequence[float], positive: bool = True, *, predict: bool = True) -> Change:
        """Adds a click.

        Args:
            voxel: (k, j, i), the centre of a voxel is a whole number.
            positive: whether the structure is there.
            predict: whether the mask is to change now; otherwise with the next prediction.

        Raises:
            ValueError: before an image, outside of it, and for clicks that the model cannot take. Nothing changes then.
        """
        shape, voxel = self._the_mask().shape, finite_position(voxel)
        if not all(-0.5 <= place <= length - 0.5 for place, length in zip(voxel, shape, strict=True)):
            raise ClickError(f"the point {list(voxel)} (k, j, i) lies outside the volume of {list(shape)} voxels")
        click = Click(self.axes.point(voxel, shape), self.model.label, FOREGROUND if positive else BACKGROUND)
        clicks = (*self._clicks, click)
        check_count(len(clicks))
        self.model.check(clicks)
        step = _Step(self._clicks, self._predicted)
        if predict:
            change, step = self._change_to(clicks, step)
        else:
            change = Change(ran=False)
        self._clicks = clicks
        self._steps.append(step)
        return change

    def predict(self) -> Change:
        """Predicts with clicks that were added without a prediction."""
        self._the_mask()
        if self._predicted == len(self._clicks):
            return Change(ran=False)
        change, self._steps[-1] = self._change_to(self._clicks, self._steps[-1])
        return change

    def undo(self) -> Change:
        """Takes back the last click and what it changed, exactly; ``ran`` is false if there is none."""
        mask = self._the_mask()
        if not self._steps:
            return Change(ran=False)
        step = self._steps.pop()
        self._clicks, self._predicted = step.clicks, step.predicted
        if step.box is None:
            return Change()
        place = _slices(step.box)
        part = mask[place]
        bits = np.frombuffer(zlib.decompress(step.packed), np.uint8)
        part[...] = np.unpackbits(bits, count=part.size).reshape(part.shape)
        return Change(step.box, part.astype(np.uint8))

    def reset(self) -> None:
        """Forgets clicks, mask and what could be undone; keeps the image. May come before any image."""
        self._forget_clicks()

    def close(self) -> None:
        """Ends the session, also while another thread predicts for it."""
        self.model.stop()

    def _the_mask(self) -> np.ndarray:
        if self._mask is None:
            raise ValueError("there is no image yet: send one first (set_image)")
        return self._mask

    def _change_to(self, clicks: tuple[Click, ...], step: _Step) -> tuple[Change, _Step]:
        """Predicts; what changed, and the step with the way back."""
        old, new = self._the_mask(), self.axes.from_model(self.model.mask(clicks))
        self._predicted = len(clicks)
        box = box_of(old != new)
        if box is None:
            return Change(), step
        place = _slices(box)
        packed = zlib.compress(np.packbits(old[place]).tobytes(), 1)
        old[place] = new[place]
        return Change(box, old[place].astype(np.uint8)), replace(step, box=box, packed=packed)


def box_of(where: np.ndarray) -> Box | None:
    """The smallest box around the true voxels of a bool array (k, j, i); ``None`` if there are none."""
    bounds: list[tuple[int, int]] = []
    for axis in range(3):
        found = np.flatnonzero(where.any(tuple(other for other in range(3) if other != axis)))
        if not len(found):
            return None
        bounds.append((int(found[0]), int(found[-1]) + 1))
    return bounds[0], bounds[1], bounds[2]


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(low, high) for low, high in box)
