"""nnU-Net's own models on arrays: the automatic prediction, without a detour through files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn

from nnunetv2_sam3d.inference.turns import ONE_EXPORT, InTurn, Turns
from nnunetv2_sam3d.nnunet.layout import FINAL
from nnunetv2_sam3d.nnunet.trained_fold import TrainedFold


class StockPredictor:
    """A model of any trainer of nnU-Net's, as ``nnUNetv2_predict`` uses it. Loading it may run code, as it does there.

    Args:
        model: folder of a trained model.
        folds: which are averaged.
        checkpoint: name of the file in the folds' folders.
        device: where the network goes.
        mirroring: nnU-Net's test-time augmentation.
        progress: show nnU-Net's progress bar.

    Raises:
        ValueError: for a stage of a cascade that needs another one's segmentation, and a fold that is not trained.
    """

    def __init__(
        self,
        model: Path,
        folds: Sequence[int | str],
        checkpoint: str = FINAL,
        *,
        device: str = "cpu",
        mirroring: bool = True,
        progress: bool = False,
    ) -> None:
        fold, *others = [TrainedFold(model.absolute(), number, checkpoint) for number in folds]
        self.checkpoints = [each.checkpoint for each in (fold, *others)]
        self.dataset_json = fold.dataset_json
        self.plans, self.configuration, self.label_manager = fold.plans, fold.configuration, fold.labels
        if self.configuration.previous_stage_name is not None:
            raise ValueError(
                f"{model.name} refines the segmentation of {self.configuration.previous_stage_name} (a cascade), which "
                "no viewer sends. Choose a model that predicts from the image alone"
            )
        with redirect_stdout(io.StringIO()):  # it tells users of CPUs about a default that they did not choose
            self._sliding = nnUNetPredictor(
                device=torch.device(device),
                perform_everything_on_device=device == "cuda",
                use_mirroring=mirroring,
                allow_tqdm=progress,
            )
            self._sliding.initialize_from_trained_model_folder(str(model), tuple(folds), checkpoint)  # type: ignore[arg-type]
        self.networks = [self._with_weights(weights) for weights in self._sliding.list_of_parameters]
        self._sliding.list_of_parameters = []
        self.mirroring, self.device = mirroring, torch.device(device)
        self.turns = Turns()
        self.spacing: list[float] = []
        self.segmentation: np.ndarray | None = None

    def _with_weights(self, weights: dict[str, Any]) -> nn.Module:
        network = deepcopy(self._sliding.network)
        network.load_state_dict(weights)
        return network.to(self._sliding.device).eval()

    @property
    def passes(self) -> int:
        """Of the networks, for each window."""
        axes = self._sliding.allowed_mirroring_axes if self.mirroring else None
        return len(self.networks) * 2 ** len(axes or ())

    def for_another_image(self) -> StockPredictor:
        """The same model for another image, also in another thread: passes through the networks take turns."""
        other = copy(self)
        other._sliding, other.turns = copy(self._sliding), self.turns.branch()
        other.spacing, other.segmentation = [], None
        return other

    @torch.inference_mode()
    def predict(self, image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        """Labels (z, y, x) of ``dataset.json`` for an image.

        Args:
            image: (C, z, y, x), as read.
            spacing: mm, (z, y, x).
        """
        self.spacing = [float(length) for length in spacing]
        preprocessor = self.configuration.preprocessor_class(verbose=False)
        data, _, properties = preprocessor.run_case_npy(
            image, None, {"spacing": self.spacing}, self.plans, self.configuration, self.dataset_json
        )
        total: torch.Tensor | None = None
        for network in self.networks:
            self._sliding.network = InTurn(network, self.turns)
            logits = self._sliding.predict_sliding_window_return_logits(torch.from_numpy(data)).to("cpu")
            total = logits if total is None else total + logits
        assert total is not None
        with ONE_EXPORT:
            return convert_predicted_logits_to_segmentation_with_correct_shape(
                total / len(self.networks), self.plans, self.configuration, self.label_manager, properties
            )
