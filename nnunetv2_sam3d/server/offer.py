"""A trained model that is opened to be served: what it is, what it takes, how long it needs, sessions on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from pathlib import Path

import numpy as np
import torch

from nnunetv2_sam3d.clicks.click import Click
from nnunetv2_sam3d.inference.click_predictor import ClickPredictor
from nnunetv2_sam3d.inference.stock_predictor import StockPredictor
from nnunetv2_sam3d.inference.window_predictor import CACHE_BYTES
from nnunetv2_sam3d.nnunet.labels import Target, click_target, find_target
from nnunetv2_sam3d.nnunet.layout import FINAL
from nnunetv2_sam3d.nnunet.trained_fold import TrainedFold, trained_folds
from nnunetv2_sam3d.server.axis_check import Confirmations, TrainingGeometry, WrongAxes
from nnunetv2_sam3d.server.axis_order import AxisOrder
from nnunetv2_sam3d.server.interactive_session import InteractiveSession, ServedModel
from nnunetv2_sam3d.server.served_models import AutomaticModel, ClickModel, click_label
from nnunetv2_sam3d.settings import Settings
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint
from nnunetv2_sam3d.weights.reading import METADATA_KEY

STEP = 0.5  # of nnU-Net's windows, in patches


@dataclass(frozen=True)
class Timings:
    """Seconds, measured on one window and counted up.

    Attributes:
        image_s: the automatic prediction of an image of the training's median size.
        first_click_s: where no click was before; ``None`` for models that compute nothing then.
        next_click_s: near an earlier one.
    """

    image_s: float
    first_click_s: float | None = None
    next_click_s: float | None = None


class Offer:
    """A model and how it is served.

    Args:
        model: folder of a trained model, of a SAM3D trainer or of any other one of nnU-Net's.
        folds: which are averaged; all that are trained by default.
        checkpoint: name of the file in the folds' folders.
        target: label or region that the mask shows; by default what the training's clicks were on.
        device: where the networks run.
        mirroring: nnU-Net's test-time augmentation.
        only: show the clicked structures alone.
        axes: how the viewers' axes lie to the model's.
        refuse_axes: volumes whose axes are not the training's are refused; otherwise they get a warning.
        confirm_axes: volumes whose axes nobody can tell are refused once, with the warning.
        sessions: that share the memory for what later clicks reuse.
        progress: show a bar during automatic predictions.

    Raises:
        ValueError: for a folder that is no model's, a fold that is not trained, an unknown target.
    """

    def __init__(
        self,
        model: Path,
        folds: Sequence[int | str] = (),
        checkpoint: str = FINAL,
        *,
        target: str | None = None,
        device: str = "cpu",
        mirroring: bool = True,
        only: bool = False,
        axes: AxisOrder | None = None,
        refuse_axes: bool = True,
        confirm_axes: bool = False,
        sessions: int = 1,
        progress: bool = False,
    ) -> None:
        self.folds = list(folds) or trained_folds(model, checkpoint) or [0]
        first = TrainedFold(model, self.folds[0], checkpoint)
        self.model, self.axes, self._refuse = model, axes or AxisOrder(), refuse_axes
        self._confirmations = Confirmations() if confirm_axes else None
        self.device, self.only, self._sessions = torch.device(device), only, sessions
        self._predictor: ClickPredictor | StockPredictor
        labels = first.dataset_json["labels"]
        wanted = find_target(labels, target) if target is not None else None  # before weights are read
        if METADATA_KEY in read_checkpoint(first.checkpoint):
            self._predictor = ClickPredictor(
                model, self.folds, checkpoint, device=device, mirroring=mirroring, progress=progress
            )
        else:
            self._predictor = StockPredictor(
                model, self.folds, checkpoint, device=device, mirroring=mirroring, progress=progress
            )
        self.plans, self.configuration = self._predictor.plans, self._predictor.configuration
        self.dataset_json = self._predictor.dataset_json
        self.geometry = TrainingGeometry.from_plans(self.plans.plans)
        self.takes_clicks = self.background_clicks = False
        settings = None
        if isinstance(self._predictor, ClickPredictor):
            settings = Settings.from_plans(self.configuration.configuration, first.plans_file)
            config = self._predictor.windows.config
            self.takes_clicks = config.prompt_encoder and settings.click_preset() is not None
            self.background_clicks = self.takes_clicks and config.signed_clicks
        if wanted is None:
            found = click_target(labels, self._predictor.label_manager, settings.click_targets if settings else None)
            wanted = Target(found.name, found.labels)
        self.target = wanted

    @property
    def channels(self) -> list[str]:
        """Names of the image's channels."""
        names = self.dataset_json.get("channel_names") or self.dataset_json.get("modality") or {}
        return [str(names[number]) for number in sorted(names, key=int)]

    @property
    def spacing(self) -> list[float]:
        """Voxel size of the model, mm along z, y, x; the slices' distance is that of the training where it has none."""
        wanted = [float(length) for length in self.configuration.spacing]
        if len(wanted) == 2:
            wanted.insert(0, float(self.plans.original_median_spacing_after_transp[0]))
        return [wanted[axis] for axis in self.plans.transpose_backward]

    @property
    def patch_size(self) -> list[int]:
        """Voxels of a window along z, y, x."""
        patch = [int(length) for length in self.configuration.patch_size]
        return [([1] * (3 - len(patch)) + patch)[axis] for axis in self.plans.transpose_backward]

    @property
    def passes(self) -> int:
        """Through networks, for each window: folds times mirrorings."""
        if isinstance(self._predictor, StockPredictor):
            return self._predictor.passes
        return len(self.folds) * len(self._predictor.windows.mirrorings)

    @property
    def clicks_in_words(self) -> str:
        """What clicks do, for people."""
        if not self.takes_clicks:
            return "not known to the model: a click shows the connected structure that it found there"
        known = "known" if self.background_clicks else "not known to the model"
        return f"foreground clicks move the mask; background clicks are {known}"

    @property
    def axes_in_words(self) -> str:
        """How volumes must lie, and what becomes of others, for people."""
        return self.geometry.advice(self.axes, refused=self._refuse, asked=self._confirmations is not None)

    @property
    def doubt(self) -> str | None:
        """Why clicks on the target may be worth little; ``None`` where the training had them."""
        if not self.takes_clicks or not isinstance(self._predictor, ClickPredictor):
            return None
        label = click_label(self.dataset_json["labels"], self.target)
        return self._predictor.doubt([Click((0, 0, 0), label)])

    @property
    def reorients(self) -> bool:
        """Whether the training's reader turned images, so that their arrays are not what a viewer sends."""
        return "Reorient" in self.plans.image_reader_writer_class.__name__

    def stop(self) -> None:
        """Predictions end with the window that they are at."""
        own = self._predictor
        (own.windows if isinstance(own, ClickPredictor) else own).turns.stop()

    def new_session(self) -> InteractiveSession:
        """A session without an image, with memory of its own."""
        return InteractiveSession(self._new_model(), self.axes, self._check_volume)

    def _new_model(self) -> ServedModel:
        if isinstance(self._predictor, StockPredictor):
            return AutomaticModel(self._predictor.for_another_image(), len(self.channels), self.target)
        own = self._predictor.for_another_image(cache_bytes=CACHE_BYTES // self._sessions)
        if self.takes_clicks:
            return ClickModel(own, self.target, only=self.only)
        return AutomaticModel(own, own.windows.config.in_channels, self.target)

    def _check_volume(self, image: np.ndarray, spacing: Sequence[float], axes: AxisOrder) -> str | None:
        """Of a viewer, which shows refusals only."""
        warning = self._check_axes(image, spacing, axes)
        if warning is not None and self._confirmations is not None:
            self._confirmations.ask(warning, image, spacing)
        return warning

    def check_file(self, image: np.ndarray, spacing: Sequence[float], axes: AxisOrder) -> str | None:
        """The axes of a file, which the training's reader has read; its sender is shown the warning.

        Args:
            image: (C, z, y, x).
            spacing: mm, (z, y, x).
            axes: those of the model.

        Returns:
            a warning, or ``None``.

        Raises:
            WrongAxes: if they are not in the training's order.
        """
        remedy = "Reorient the file as the training's files are (3D Slicer: Orient Scalar Volume)"
        return self._check_axes(image, spacing, axes, remedy)

    def _check_axes(
        self, image: np.ndarray, spacing: Sequence[float], axes: AxisOrder, remedy: str | None = None
    ) -> str | None:
        try:
            return self.geometry.check(axes.sizes(spacing), axes.sizes(image.shape[1:]), axes)
        except WrongAxes as error:
            wrong = WrongAxes(error.finding, remedy or error.remedy)
            if self._refuse:
                raise wrong from error
            return wrong.warning

    @torch.inference_mode()
    def measure(self) -> Timings:
        """Runs one window through one network, and counts the windows, mirrorings and folds."""
        size, patch = self.configuration.median_image_size_in_voxels, self.configuration.patch_size
        steps = [
            max(0, ceil((length - edge) / (edge * STEP))) + 1
            for length, edge in zip(size[-len(patch) :], patch, strict=True)
        ]
        windows = prod(steps) * (round(size[0]) if len(patch) == 2 else 1)
        crop = torch.from_numpy(np.random.default_rng(0).normal(size=(1, len(self.channels), *patch)))
        crop = crop.float().to(self.device)
        if isinstance(self._predictor, StockPredictor):
            network = self._predictor.networks[0]
            return Timings(windows * self.passes * self._seconds(partial(network, crop)))
        network = self._predictor.windows.networks[0]
        encoding = self._seconds(partial(network.encode, crop))
        decoding = self._seconds(partial(network.decode, network.encode(crop))) if self.takes_clicks else 0.0
        one = self.passes * (encoding + decoding)
        return Timings(windows * one, one, self.passes * decoding) if self.takes_clicks else Timings(windows * one)

    def _seconds(self, work: Callable[[], object]) -> float:
        """Of one call; on a GPU not of the first one, which prepares kernels."""
        on_gpu = self.device.type == "cuda"
        with torch.autocast("cuda") if on_gpu else nullcontext():
            if on_gpu:
                work()
                torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            if on_gpu:
                torch.cuda.synchronize()
        return time.perf_counter() - start
