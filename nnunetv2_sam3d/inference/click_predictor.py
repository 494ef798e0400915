"""Segmenting an image by clicks, for people who build tools."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from torch import Tensor

from nnunetv2_sam3d.clicks.click import (
    FOREGROUND,
    Click,
    ClickError,
    ClickFile,
    FileClick,
    finite_position,
    parse_space,
)
from nnunetv2_sam3d.clicks.click_files import read_clicks
from nnunetv2_sam3d.clicks.geometry import PreprocessedGrid
from nnunetv2_sam3d.clicks.placing import clicks_for_case, clicks_in_grid
from nnunetv2_sam3d.inference.local_resampling import is_local, resampling_of
from nnunetv2_sam3d.inference.only_clicked import only_clicked
from nnunetv2_sam3d.inference.slab_export import SLAB_BYTES, segmentation_by_slabs
from nnunetv2_sam3d.inference.turns import ONE_EXPORT
from nnunetv2_sam3d.inference.window_predictor import CACHE_BYTES, WindowPredictor
from nnunetv2_sam3d.memory.model import GB, available_bytes
from nnunetv2_sam3d.messages import some
from nnunetv2_sam3d.nnunet.image_files import image_written_whole
from nnunetv2_sam3d.nnunet.images import ImageError, case_name, read_image
from nnunetv2_sam3d.nnunet.labels import click_target, find_target
from nnunetv2_sam3d.nnunet.layout import FINAL
from nnunetv2_sam3d.nnunet.trained_fold import TrainedFold, trained_folds
from nnunetv2_sam3d.settings import Settings
from nnunetv2_sam3d.weights.reading import network_from, read_weights


class ClickPredictor:
    """A trained model that segments images, without clicks as ``nnUNetv2_predict`` does, and better with them.

    Args:
        model: folder of a trained model, ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION``.
        folds: which are averaged; all that are trained by default.
        checkpoint: name of the file in the folds' folders.
        device: ``cuda`` if there is one, else ``cpu``, by default.
        mirroring: nnU-Net's test-time augmentation: eight times slower, a little better.
        tile_step_size: of the automatic prediction's windows, in patches.
        cache_bytes: memory for what later clicks reuse, see
            :class:`~nnunetv2_sam3d.inference.window_predictor.WindowPredictor`.
        progress: show nnU-Net's progress bar during the automatic prediction.

    Raises:
        ValueError: if the folder is none of a SAM3D model, or a fold is not trained.
        WeightsError: for a damaged checkpoint.

    Example:
        >>> predictor = ClickPredictor("nnUNet_results/Dataset051_.../nnUNetTrainer_SAM3DFull__nnUNetSAM3DPlans__...")
        >>> predictor.set_image(ct, spacing=(5.0, 0.8, 0.8))
        >>> segmentation = predictor.predict([Click((41, 210, 187), "tumour")])
        >>> segmentation = predictor.refine([Click((44, 230, 190), "tumour", sign=-1)])
    """

    def __init__(
        self,
        model: str | Path,
        folds: Sequence[int | str] | None = None,
        checkpoint: str = FINAL,
        *,
        device: str | torch.device | None = None,
        mirroring: bool = True,
        tile_step_size: float = 0.5,
        cache_bytes: int = CACHE_BYTES,
        progress: bool = False,
    ) -> None:
        model = Path(model).absolute()
        fold, *others = [TrainedFold(model, n, checkpoint) for n in folds or trained_folds(model, checkpoint) or [0]]
        self.dataset_json = fold.dataset_json
        self.plans, self.configuration, self.label_manager = fold.plans, fold.configuration, fold.labels
        self._settings = settings = Settings.from_plans(self.configuration.configuration, fold.plans_file)
        weights = [read_weights(each.checkpoint) for each in (fold, *others)]
        networks = [network_from(each, settings.precision).prepare(self.configuration.patch_size) for each in weights]
        if networks[0].config.num_classes != self.label_manager.num_segmentation_heads:
            raise ValueError(
                f"{fold.checkpoint} has {networks[0].config.num_classes} output channels, but the labels in "
                f"{model / 'dataset.json'} need {self.label_manager.num_segmentation_heads}: they are not of one model"
            )
        self.checkpoints = [each.checkpoint for each in (fold, *others)]
        self.windows = WindowPredictor(
            networks,
            self.configuration.patch_size,
            mirror_axes=weights[0].mirror_axes if mirroring else None,
            tile_step_size=tile_step_size,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            cache_bytes=cache_bytes,
            progress=progress,
        )
        self.mirroring, self.tile_step_size = mirroring, tile_step_size
        self._forget_image()

    def _forget_image(self) -> None:
        self._clicks: list[Click] = []
        self._of_files = False
        self.spacing: list[float] = []  # of the image, mm, (z, y, x)
        self.image_doubt: str | None = None  # why nothing can be found in the image, if it came from files
        self.properties: dict[str, Any] = {}  # what nnU-Net's reader and preprocessor say of the image

    def for_another_image(self, *, cache_bytes: int = CACHE_BYTES) -> ClickPredictor:
        """The same model for another image beside this one: shares the weights, has its own image, clicks and cache.

        Args:
            cache_bytes: memory for what later clicks reuse.
        """
        other = copy(self)
        other.windows = self.windows.for_another_image(cache_bytes=cache_bytes)
        other._forget_image()
        return other

    @property
    def clicks(self) -> tuple[Click, ...]:
        """The clicks of the last prediction, in their order."""
        return tuple(self._clicks)

    def set_image(
        self, image: np.ndarray, spacing: Sequence[float], properties: Mapping[str, Any] | None = None
    ) -> None:
        """The image that the next calls are about; preprocesses it as nnU-Net does.

        Args:
            image: (C, z, y, x), or (z, y, x) for models of one channel, as read: no resampling, no normalisation.
            spacing: mm, (z, y, x).
            properties: what nnU-Net's reader returned beside the image, if one read it.

        Raises:
            ValueError: for another number of channels, and a spacing that is none.
        """
        channels = self.windows.config.in_channels
        image = image[None] if image.ndim == 3 and channels == 1 else image
        if image.ndim != 4 or len(image) != channels or not min(image.shape):
            raise ValueError(
                f"expected an image of shape ({channels}, z, y, x)"
                f"{' or (z, y, x)' if channels == 1 else ''}, got {image.shape}"
            )
        if len(spacing) != 3 or not all(0 < length < np.inf for length in spacing):
            raise ValueError(f"the spacing is three positive lengths (z, y, x) in mm, got {spacing!r}")
        preprocessor = self.configuration.preprocessor_class(verbose=False)
        self.spacing, self._shape = [float(length) for length in spacing], image.shape[1:]
        data, _, self.properties = preprocessor.run_case_npy(
            image,
            None,
            {**(properties or {}), "spacing": self.spacing},
            self.plans,
            self.configuration,
            self.dataset_json,
        )
        self.grid = PreprocessedGrid.from_properties(self.properties, self.plans.transpose_forward, data.shape[1:])
        self.windows.set_image(torch.from_numpy(data))
        self._of_files, self._case, self.image_doubt = properties is not None, "image", None
        self._clicks = []

    def set_image_files(self, files: str | Path | Sequence[str | Path]) -> None:
        """The same for an image file, or one for each channel, read by the reader that the model was trained with.

        Raises:
            ImageError: for files that cannot be read.
        """
        files = [files] if isinstance(files, str | Path) else files
        image, properties = read_image([Path(file) for file in files], self.plans.image_reader_writer_class())
        self.set_image(image, properties["spacing"], properties)
        self._case = case_name(Path(files[0]), self.dataset_json["file_ending"])
        self.image_doubt = (
            f"{some(files)}: all voxels have the value {image.flat[0]:g}, nothing can be found among them; export the "
            f"image again"
            if (image == image.flat[0]).all()
            else None
        )

    def check_memory(self) -> None:
        """Looks whether logits and segmentation of the image fit, before the network runs.

        Raises:
            ImageError: with what is needed and what there is.
        """
        needed = self.prediction_bytes(prod(self.grid.shape), prod(self.properties["shape_before_cropping"]))
        free = available_bytes()
        if free is not None and needed > free:
            raise ImageError(
                f"the prediction of {self._case}, {list(self.grid.shape)} voxels of the network, takes "
                f"{needed / GB:.1f} GB beside the image, and {free / GB:.1f} GB are free: close other programs, crop "
                f"the image, or use a machine with more memory"
            )

    def prediction_bytes(self, grid: int, voxels: int) -> int:
        """About what a prediction takes beside the image, labels of the whole image included.

        Args:
            grid: voxels of the preprocessed image.
            voxels: of the original image.
        """
        copies = self.windows.config.num_classes * (1 if len(self.windows.networks) == 1 else 2)
        logits = 2 * grid * (copies + 1)  # float16; one more for the windows' weights
        # whole, all classes are resampled in single precision and one of them in double precision
        whole = voxels * (4 * self.windows.config.num_classes + 16)
        return logits + (6 * SLAB_BYTES if is_local(self.configuration) else whole) + 2 * voxels

    def clicks_from_file(self, file: str | Path) -> list[Click]:
        """The clicks of a file for this image, which came from files itself; of a table, its lines for this case.

        Args:
            file: in any format of :func:`~nnunetv2_sam3d.clicks.click_files.read_clicks`.

        Raises:
            ClickError: for clicks of another image, outside the image, or of labels that the model does not have.
        """
        if not self._of_files:
            raise RuntimeError("the image came without its file's geometry; set it with set_image_files()")
        content = read_clicks(file)
        return self._placed(replace(content, clicks=tuple(c for c in content.clicks if c.case in (None, self._case))))

    def clicks_at(
        self,
        positions: Sequence[Sequence[float]] | np.ndarray,
        space: str,
        label: str | int | None = None,
        sign: int = FOREGROUND,
    ) -> list[Click]:
        """Clicks at positions in this image.

        Args:
            positions: (N, 3); millimetres in images that came from files, or voxels.
            space: ``LPS``, ``RAS``, ``ijk`` or ``zyx``, see :data:`~nnunetv2_sam3d.clicks.click.SPACES`.
            label: of all of them, in ``dataset.json``.
            sign: 1 if they are in the structure, -1 if they are outside it.

        Raises:
            ClickError: as :meth:`clicks_from_file`.
        """
        space = parse_space(space)
        listed = [finite_position(position) for position in np.asarray(positions, float).tolist()]
        clicks = (FileClick(number, place, space, label, sign) for number, place in enumerate(listed, 1))
        return self._placed(ClickFile(Path("positions"), tuple(clicks)))

    def _placed(self, content: ClickFile) -> list[Click]:
        if not self.properties:
            raise RuntimeError("an image must be set before clicks can be placed in it")
        return clicks_for_case(content, self._case, self.properties, self._shape, self.dataset_json["labels"])

    def predict(self, clicks: Sequence[Click] = (), *, only: bool = False) -> np.ndarray:
        """The segmentation with these clicks and no earlier ones.

        Args:
            clicks: voxels of the image, in the order in which they were made.
            only: return the clicked structures alone, see
                :func:`~nnunetv2_sam3d.inference.only_clicked.only_clicked`.

        Returns:
            labels of ``dataset.json``, (z, y, x), voxels of the image.

        Raises:
            ClickError: for clicks outside the image or of labels that the model does not have.
            ValueError: for clicks that the model cannot take.
        """
        segmentation = self.segmentation(self.logits(clicks))
        if doubt := self.doubt(clicks):
            warnings.warn(doubt, stacklevel=2)
        if not only:
            return segmentation
        segmentation, missed = only_clicked(segmentation, clicks, self.dataset_json["labels"], self.spacing)
        if missed:
            warnings.warn(f"nothing of that kind was found near {', '.join(map(click_in_words, missed))}", stacklevel=2)
        return segmentation

    def refine(self, more: Sequence[Click], *, only: bool = False) -> np.ndarray:
        """The segmentation with the clicks of the last prediction and more; arguments and errors as in :meth:`predict`.

        Returns:
            (z, y, x), labels of the data set.
        """
        return self.predict([*self._clicks, *more], only=only)

    def write(self, segmentation: np.ndarray, file: str | Path) -> None:
        """Writes a segmentation of this image, which came from files, with their geometry; whole or not at all."""
        if not self._of_files:
            raise RuntimeError("the image came without its file's geometry; set it with set_image_files()")
        with image_written_whole(Path(file), self.dataset_json["file_ending"]) as partial:
            self.plans.image_reader_writer_class().write_seg(segmentation, str(partial), self.properties)

    def reset(self) -> None:
        """Forgets the clicks, keeps the image and what was computed of it."""
        self._clicks = []

    def check(self, clicks: Sequence[Click]) -> None:
        """Raises what :meth:`predict` would raise for such clicks in any image."""
        if not all(isinstance(click, Click) for click in clicks):
            raise ClickError(f"expected a list of Click, got {clicks!r:.200}")
        self.windows.check_signs([click.sign for click in clicks])
        for click in clicks:
            if click.label is not None:
                try:
                    find_target(self.dataset_json["labels"], str(click.label))
                except ValueError as error:
                    raise ClickError(f"{click_in_words(click)}: {error}") from error

    def doubt(self, clicks: Sequence[Click]) -> str | None:
        """Why clicks may be worth little: the training had none, or none on their labels; ``None`` if it had."""
        if not clicks:
            return None
        if self._settings.click_preset() is None:
            return "the model was trained without clicks, so that they may not help"
        labels = self.dataset_json["labels"]
        target = click_target(labels, self.label_manager, self._settings.click_targets)
        named = {str(click.label) for click in clicks if click.label is not None}
        others = sorted(name for name in named if not set(find_target(labels, name).labels) <= set(target.labels))
        if others:
            return f"the model was trained with clicks on {target.name}, not on {', '.join(others)}"
        return None

    def logits(self, clicks: Sequence[Click] = ()) -> Tensor:
        """Logits (classes, D, H, W) on nnU-Net's preprocessed grid; arguments and errors as in :meth:`predict`."""
        logits = self.windows.logits(*self._points(clicks))
        self._clicks = list(clicks)
        return logits

    def window_logits(self, clicks: Sequence[Click]) -> list[tuple[tuple[slice, ...], Tensor]]:
        """Where :meth:`logits` differ from those without clicks; arguments and errors as there.

        Returns:
            for each window its box (C, D, H, W) in the preprocessed grid, and the logits in it, (classes, d, h, w).
        """
        parts = self.windows.parts(*self._points(clicks))
        self._clicks = list(clicks)
        return parts

    def _points(self, clicks: Sequence[Click]) -> tuple[Tensor, Tensor]:
        """Clicks as voxels (N, 3) of the preprocessed grid, and their signs (N,)."""
        if not self.properties:
            raise RuntimeError("an image must be set with set_image() before the prediction")
        self.check(clicks)
        for click in clicks:
            if not all(-0.5 <= place <= size - 0.5 for place, size in zip(click.zyx, self._shape, strict=True)):
                words = click_in_words(click)
                raise ClickError(f"{words} lies outside the image of {list(self._shape)} voxels (z, y, x)")
        shape = np.asarray(self.grid.shape)
        # rounding may put a click on the surface of the grid a little beyond it
        points = np.clip(clicks_in_grid(clicks, self.grid), -0.5, shape - 0.5)
        return torch.from_numpy(points).float(), torch.tensor([float(click.sign) for click in clicks])

    def segmentation(self, logits: Tensor, probabilities: bool = False) -> Any:
        """Labels (z, y, x) from logits of this image, as nnU-Net exports them.

        With ``probabilities`` a pair, the second one (classes, z, y, x).
        """
        axes = None if probabilities else resampling_of(self.plans, self.configuration, self.spacing, self.grid)
        if axes is not None:
            shape = self.properties["shape_before_cropping"]
            labels = segmentation_by_slabs(logits, axes, self.grid, shape, self.label_manager)
            return labels.transpose(self.plans.transpose_backward)
        with ONE_EXPORT:
            return convert_predicted_logits_to_segmentation_with_correct_shape(
                logits,
                self.plans,
                self.configuration,
                self.label_manager,
                self.properties,
                return_probabilities=probabilities,
            )


def click_in_words(click: Click) -> str:
    """For sentences."""
    return f"the click at {tuple(round(place, 2) for place in click.zyx)} (z, y, x, {click.label or 'no label'})"
