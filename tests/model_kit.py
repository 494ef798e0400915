"""A model folder as nnU-Net's training leaves it, with networks that were never trained, and predictions with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from blobs import Blobs
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from slicer_files import markups

from nnunetv2_sam3d.cli import main
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.weights.checkpoint_file import write_checkpoint

MODEL = "nnUNetTrainer_SAM3DFull__nnUNetSAM3DPlans__3d_fullres"
PATCH = (8, 8, 8)
SETTINGS = {
    "variant": "vit_tiny", "precision": "float32",
    "network": {"embed_dim": 32, "out_channels": 16, "decoder_channels": 8, "decoder_scale": 2, "prompt_mlp_dim": 32,
                "position_grid": 4},
}  # fmt: skip
LABELS = {"background": 0, "organ": 1, "tumour": 2}
REGIONS = {"background": 0, "organ": [1, 2], "tumour": 2}


def write_model(
    folder: Path,
    networks: Sequence[SAM3D],
    *,
    labels: dict[str, Any] = LABELS,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    transpose_forward: Sequence[int] = (2, 0, 1),
    mirror_axes: tuple[int, ...] | None = (0, 1, 2),
) -> Path:
    """The model folder with a fold for each network, of the sizes in ``SETTINGS``."""
    config = networks[0].config
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    channels = config.in_channels
    network = dict(SETTINGS["network"])  # type: ignore[call-overload]
    network |= {name: True for name in ("signed_clicks",) if getattr(config, name)}
    full = {
        "data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "batch_dice": False,
        "patch_size": list(PATCH), "spacing": list(spacing), "median_image_size_in_voxels": [20, 20, 20],
        "normalization_schemes": ["ZScoreNormalization"] * channels, "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape", "resampling_fn_seg_kwargs": resampling | {"is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
        "architecture": {"network_class_name": "unused", "arch_kwargs": {}, "_kw_requires_import": []},
        "sam3d": SETTINGS | {"network": network, "prompt_encoder": config.prompt_encoder},
    }  # fmt: skip
    plans = {
        "dataset_name": "Dataset991_Toy", "plans_name": "nnUNetSAM3DPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose_forward), "transpose_backward": np.argsort(transpose_forward).tolist(),
        "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(channels)},
        "label_manager": "LabelManager", "configurations": {"3d_fullres": full},
    }  # fmt: skip
    dataset = {
        "labels": labels, "channel_names": {str(channel): "CT" for channel in range(channels)},
        "file_ending": ".nii.gz", "numTraining": 2,
    }  # fmt: skip
    if any(isinstance(value, list) for value in labels.values()):
        dataset["regions_class_order"] = [1, 2]
    model = folder / MODEL
    for fold, network in enumerate(networks):
        metadata = {"format": 1, "network": network.config.to_dict(), "provenance": {}}
        content = {
            "network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer_SAM3DFull", "sam3d": metadata,
            "init_args": {"configuration": "3d_fullres"}, "inference_allowed_mirroring_axes": mirror_axes,
        }  # fmt: skip
        write_checkpoint(content, model / f"fold_{fold}" / "checkpoint_final.pth")
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset))
    return model


def stock_prediction(model: Path, folds: Sequence[int], images: Path, output: Path, mirroring: bool = True) -> None:
    """What nnUNetv2_predict writes, in this process."""
    output.mkdir()
    stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=mirroring)
    stock.initialize_from_trained_model_folder(str(model), tuple(folds), "checkpoint_final.pth")
    stock.predict_from_files_sequential(str(images), str(output), save_probabilities=True)


def read(path: Path) -> np.ndarray:
    """A segmentation, (z, y, x)."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def predict(model: Path, images: Path, output: Path, *more: object) -> None:
    """The command, which must succeed."""
    arguments = ["predict", "-m", model, "-i", images, "-o", output, "--device", "cpu", *more]
    assert main([str(argument) for argument in arguments]) == 0


def fiducials(file: Path, blobs: Blobs, numbers: list[int], name: str = "tumour") -> Path:
    """Points on some of the blobs, as 3D Slicer saves them."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(markups([(f"{name}-{n}", blobs.lps[n].tolist()) for n in numbers])))
    return file


# spacing of the image and of the grid, labels, order of the axes
GEOMETRIES: list[tuple[tuple[float, ...], tuple[float, ...], dict[str, Any], tuple[int, ...]]] = [
    ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), LABELS, (2, 0, 1)),  # nothing is resampled
    ((1.7, 0.6, 0.8), (1.0, 0.9, 0.7), LABELS, (0, 1, 2)),  # linear along all axes
    ((5.0, 0.8, 0.8), (3.3, 1.0, 1.1), REGIONS, (0, 1, 2)),  # the nearest slice, linear within slices
    ((0.5, 0.5, 2.6), (2.0, 0.7, 0.7), LABELS, (2, 0, 1)),
    ((0.9, 1.1, 1.3), (1.1, 1.3, 0.4), LABELS, (1, 2, 0)),
    ((11.0, 1.0, 1.0), (1.0, 1.0, 1.0), LABELS, (0, 1, 2)),  # voxels of the image longer than a window
]


def nnunet_export(predictor: Any, logits: Any) -> np.ndarray:
    """The segmentation of a predictor's image by nnU-Net's own function."""
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, predictor.plans, predictor.configuration, predictor.label_manager, predictor.properties
    )
