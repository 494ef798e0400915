"""A trained fold as nnU-Net leaves it, with cases of a few thousand voxels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_sam3d.evaluation.reference_protocol import ReferenceProtocol
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.nnunet.labels import find_target
from nnunetv2_sam3d.nnunet.trained_fold import TrainedFold
from nnunetv2_sam3d.weights.checkpoint_file import write_checkpoint

NAME = "Dataset991_Toy"
MODEL = "nnUNetTrainer_SAM3DFull__nnUNetSAM3DPlans__3d_fullres"
SHAPE = (20, 24, 18)
ORIGINAL_SHAPE = (20, 24, 12)  # before nnU-Net resampled it along x
ORIGINAL_SPACING_MM = [2.0, 1.0, 1.5]
MARGIN = (1, 2, 3)  # what nnU-Net cropped away on each side, z, y, x
PATCH = (16, 16, 16)
SPACING_MM = [2.0, 1.0, 1.0]
VALIDATION = ["case_a", "case_b", "case_empty"]
LABELS = {"background": 0, "organ": 1, "tumour": 2}
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}


@dataclass
class Site:
    """A trained fold 0 in nnU-Net's folders."""

    model: Path
    preprocessed: Path

    @property
    def fold(self) -> TrainedFold:
        return TrainedFold(self.model, 0)

    @property
    def output(self) -> Path:
        return self.model / "fold_0" / "reference_protocol_with_clicks"

    @property
    def data(self) -> Path:
        return self.preprocessed / "nnUNetSAM3DPlans_3d_fullres"

    def protocol(self, **options: int) -> ReferenceProtocol:
        return ReferenceProtocol(find_target(LABELS), self.fold.labels, PATCH, (1, 3), **options)


def save_network(network: SAM3D, file: Path) -> None:
    metadata = {"format": 1, "network": network.config.to_dict(), "provenance": {}}
    content = {"network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer_SAM3DFull", "sam3d": metadata}
    write_checkpoint(content | {"inference_allowed_mirroring_axes": (1, 2)}, file)


def write_fold(root: Path, network: SAM3D) -> Site:
    """Preprocessed data, annotations, split, plans and a checkpoint."""
    site = Site(root / "results" / NAME / MODEL, root / "preprocessed" / NAME)
    site.data.mkdir(parents=True)
    (site.preprocessed / "gt_segmentations").mkdir()
    rng = np.random.default_rng(0)
    whole = tuple(size + 2 * margin for size, margin in zip(ORIGINAL_SHAPE, MARGIN, strict=True))
    box = [[margin, margin + size] for size, margin in zip(ORIGINAL_SHAPE, MARGIN, strict=True)]
    properties = {
        "spacing": ORIGINAL_SPACING_MM, "shape_before_cropping": whole, "bbox_used_for_cropping": box,
        "shape_after_cropping_and_before_resampling": ORIGINAL_SHAPE,
        "sitk_stuff": {
            "spacing": ORIGINAL_SPACING_MM[::-1], "origin": (0.0, 0.0, 0.0), "direction": np.eye(3).ravel().tolist(),
        },
    }  # fmt: skip
    for case in [*VALIDATION, "case_trained"]:
        segmentation = np.zeros((1, *SHAPE), np.int16)
        segmentation[0, 3:9, 3:12, 3:9] = 1
        if case != "case_empty":
            segmentation[0, 10:16, 12:19, 5:11] = 2
        image = rng.normal(segmentation, 1).astype(np.float32)
        nnUNetDatasetBlosc2.save_case(image, segmentation, properties, str(site.data / case))
        original = segmentation[0, :, :, np.arange(ORIGINAL_SHAPE[2]) * SHAPE[2] // ORIGINAL_SHAPE[2]]
        padded = np.pad(np.moveaxis(original, 0, -1), [(margin, margin) for margin in MARGIN])
        annotation = sitk.GetImageFromArray(padded.astype(np.uint8))
        annotation.SetSpacing(ORIGINAL_SPACING_MM[::-1])
        sitk.WriteImage(annotation, str(site.preprocessed / "gt_segmentations" / f"{case}.nii.gz"))
    (site.preprocessed / "splits_final.json").write_text(json.dumps([{"train": ["case_trained"], "val": VALIDATION}]))
    full = {
        "data_identifier": site.data.name, "patch_size": PATCH, "spacing": SPACING_MM, "batch_size": 1,
        "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False],
        "preprocessor_name": "DefaultPreprocessor",
        **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
        **{f"resampling_fn_{what}_kwargs": RESAMPLING for what in ("data", "seg", "probabilities")},
        "architecture": {"network_class_name": "unused", "arch_kwargs": {}, "_kw_requires_import": []},
    }  # fmt: skip
    plans = {
        "dataset_name": NAME, "plans_name": "nnUNetSAM3DPlans", "configurations": {"3d_fullres": full},
        "label_manager": "LabelManager", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
    }  # fmt: skip
    dataset_json = {"labels": LABELS, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (site.model / "fold_0").mkdir(parents=True)
    (site.model / "plans.json").write_text(json.dumps(plans))
    for folder in (site.model, site.preprocessed):
        (folder / "dataset.json").write_text(json.dumps(dataset_json))
    save_network(network, site.model / "fold_0" / "checkpoint_final.pth")
    return site
