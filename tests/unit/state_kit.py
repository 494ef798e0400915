"""Everything that the commands read, on disk: a small data set, a model that was never trained, what commands left."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_sam3d.files import sha256
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.trainers.recipes import DUALPATH, apply_freezing
from nnunetv2_sam3d.weights.checkpoint_file import write_checkpoint

NAME, MODEL = "Dataset991_Toy", "nnUNetTrainer_SAM3DFull__nnUNetSAM3DPlans__3d_fullres"
SHAPE, PATCH = (16, 18, 16), [16, 16, 16]
FOLDS = [{"train": ["case_c", "case_d"], "val": ["case_a", "case_b"]},
         {"train": ["case_a", "case_b"], "val": ["case_c", "case_d"]}]  # fmt: skip
CASES = [case for fold in FOLDS for case in fold["val"]]
SAM3D_SETTINGS = {"variant": "vit_tiny", "precision": "float32", "epochs": 2,
                  "network": {"embed_dim": 32, "num_heads": 2, "out_channels": 16, "decoder_channels": 8,
                              "prompt_mlp_dim": 32, "position_grid": 4}}  # fmt: skip
DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1, "tumour": 2},
           "file_ending": ".nii.gz", "numTraining": 4}  # fmt: skip


def plans(name: str) -> dict[str, Any]:
    """Plans as nnU-Net writes them, those of this package with their settings."""
    kwargs = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    resampling = "resample_data_or_seg_to_shape"
    full = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "batch_dice": False, "patch_size": PATCH, "spacing": [1.0, 1.0, 1.0],
        "median_image_size_in_voxels": list(map(float, SHAPE)), "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False], "resampling_fn_data": resampling, "resampling_fn_data_kwargs": kwargs,
        "resampling_fn_seg": resampling, "resampling_fn_seg_kwargs": kwargs | {"is_seg": True},
        "resampling_fn_probabilities": resampling, "resampling_fn_probabilities_kwargs": kwargs,
        "architecture": {"network_class_name": "unused", "arch_kwargs": {}, "_kw_requires_import": []},
    }  # fmt: skip
    return {
        "dataset_name": NAME, "plans_name": name, "image_reader_writer": "SimpleITKIO",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": list(SHAPE), "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2], "label_manager": "LabelManager", "experiment_planner_used": "x",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"3d_fullres": full | ({"sam3d": SAM3D_SETTINGS} if name == "nnUNetSAM3DPlans" else {})},
    }  # fmt: skip


@dataclass(frozen=True)
class State:
    """Where everything is."""

    root: Path

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed" / NAME

    @property
    def data(self) -> Path:
        return self.preprocessed / "nnUNetPlans_3d_fullres"

    @property
    def raw(self) -> Path:
        return self.root / "raw" / NAME

    @property
    def results(self) -> Path:
        return self.root / "results" / NAME

    @property
    def model(self) -> Path:
        return self.results / MODEL

    @property
    def fold(self) -> Path:
        return self.model / "fold_0"

    def contents(self) -> dict[str, str]:
        """SHA-256 of all files."""
        files = sorted(file for file in self.root.rglob("*") if file.is_file())
        return {str(file.relative_to(self.root)): sha256(file) for file in files}

    def commands(self) -> dict[str, list[str]]:
        """The commands that the state is read by."""
        device = ["--device", "cpu"]
        r = self.root
        commands: dict[str, list[Any]] = {
            "plan": ["plan", "-d", 991, "--variant", "vit_tiny", "-o", "nnUNetNewPlans",
                     "--click-targets", "tumour", "--map-class", "tumour=1"],
            "crossval": ["crossval", "-d", 991, "--trainers", "Full", "--devices", "cpu",
                         "--repeats", 2, "--dry-run"],
            "split": ["splits", "import", r / "split.pkl", "-d", 991, "--force"],
            "evaluate": ["evaluate", self.model, "-f", 0, "--clicks", 0, 1, *device],
            "adapters": ["adapters", self.model, "-f", 0, "--max-cases", 1, *device],
            "predict": ["predict", "-m", self.model, "-f", 0, "-i", r / "images", "-o", r / "predicted", "--clicks",
                        r / "placed", "--continue_prediction", *device],
            "serve": ["serve", "-m", self.model, "-f", 0, "--port", 0, *device],
            "report": ["report", "-d", 991, "--trainers", "Full", "-f", 0, "-np", 1, "-o", r / "report"],
            "inspect": ["weights", "inspect", self.fold / "checkpoint_final.pth"],
            "export": ["weights", "export-adapter", self.model, "-o", r / "new.safetensors"],
            "benchmark": ["benchmark", "--json", r / "times.json"],
            "demo": ["demo", "-o", r / "demo", "--data-only"],
            "merge": ["weights", "merge", r / "base.pth", r / "adapter.safetensors", "-o", r / "merged.pth"],
        }  # fmt: skip
        return {name: list(map(str, words)) for name, words in commands.items()}


def write_state(root: Path, network: SAM3D, run: Callable[[list[str]], int]) -> State:
    """Writes what nnU-Net leaves and lets the commands add theirs; nnU-Net's variables have to point to the folder."""
    state = State(root)
    _write_data(state)
    _write_fold(state, network)
    for name in ("evaluate", "adapters", "predict", "report", "export"):
        assert run(state.commands()[name]) == 0, name
    (root / "new.safetensors").rename(root / "adapter.safetensors")
    return state


def _write_data(state: State) -> None:
    root = state.root
    rng = np.random.default_rng(0)
    for folder in (state.data, state.preprocessed / "gt_segmentations", state.raw / "imagesTr", state.raw / "labelsTr",
                   state.fold / "validation", root / "images"):  # fmt: skip
        folder.mkdir(parents=True)
    for number, case in enumerate(CASES):
        labels = np.zeros(SHAPE, np.uint8)
        labels[2:14, 2:16, 2:14] = 1
        labels[5 : 9 + number, 5:11, 5:11] = 2
        image = rng.normal(labels, 0.5).astype(np.float32)
        mask, picture = sitk.GetImageFromArray(labels), sitk.GetImageFromArray(image)
        sitk.WriteImage(picture, str(state.raw / "imagesTr" / f"{case}_0000.nii.gz"))
        for file in (state.raw / "labelsTr", state.preprocessed / "gt_segmentations"):
            sitk.WriteImage(mask, str(file / f"{case}.nii.gz"))
        if case in FOLDS[0]["val"]:
            sitk.WriteImage(mask, str(state.fold / "validation" / f"{case}.nii.gz"))
            sitk.WriteImage(picture, str(root / "images" / f"{case}_0000.nii.gz"))
        properties = SimpleITKIO().read_seg(str(state.raw / "labelsTr" / f"{case}.nii.gz"))[1] | {
            "shape_before_cropping": SHAPE, "bbox_used_for_cropping": [[0, size] for size in SHAPE],
            "shape_after_cropping_and_before_resampling": SHAPE,
            "class_locations": {label: np.argwhere(labels[None] == label) for label in (1, 2)},
        }  # fmt: skip
        # in chunks of planes, as nnU-Net's own are in parts
        nnUNetDatasetBlosc2.save_case(
            image[None], labels[None].astype(np.int8), properties, str(state.data / case),
            (1, 4, *SHAPE[1:]), (1, 2, *SHAPE[1:]), (1, 4, *SHAPE[1:]), (1, 2, *SHAPE[1:]),
        )  # fmt: skip
    for folder in (state.raw, state.preprocessed, state.model):
        (folder / "dataset.json").write_text(json.dumps(DATASET))
    (state.preprocessed / "splits_final.json").write_text(json.dumps(FOLDS))
    for name in ("nnUNetPlans", "nnUNetSAM3DPlans"):
        (state.preprocessed / f"{name}.json").write_text(json.dumps(plans(name)))
    shutil.copy(state.preprocessed / "nnUNetSAM3DPlans.json", state.model / "plans.json")
    (root / "times.json").write_text(json.dumps({"environment": {}, "records": [{"what": "forward"}]}))
    phantoms = root / "demo" / "raw" / "Dataset990_KidneyPhantoms" / "phantoms.json"
    phantoms.parent.mkdir(parents=True)
    phantoms.write_text(json.dumps({"phantoms": {"version": 0}}))
    (root / "split.pkl").write_bytes(pickle.dumps([{"train": CASES[:2], "val": CASES[2:3], "test": CASES[3:]}]))
    points = [{"position": [7, 7, 7], "label": "tumour"}]
    clicks = {"format": "nnunetv2_sam3d clicks", "version": 1, "space": "ijk", "image": "case_a", "clicks": points}
    (root / "placed").mkdir()
    (root / "placed" / "case_a.json").write_text(json.dumps(clicks))


def _write_fold(state: State, network: SAM3D) -> None:
    """What a training leaves: a checkpoint, records, and a base that the adapters stand on."""
    groups = apply_freezing(network, DUALPATH)
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert groups
    config = network.config.to_dict()
    write_checkpoint(
        {"network_weights": network.state_dict(), "sam3d": {"format": 1, "network": config, "provenance": {}}},
        state.root / "base.pth",
    )
    record = {"file": "base.pth", "kind": "converted", "sha256": sha256(state.root / "base.pth")}
    parts = ("SAM encoder", "stem", "adapters", "prompt encoder", "mask decoder", "other encoder parts")
    seconds = {"epoch_start_timestamps": [0.0, 60.0], "epoch_end_timestamps": [60.0, 120.0]}
    block = {"gate_mean": 0.5, "gate_sd": 0.1, "local_share": 0.5}
    content = {
        "network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer_SAM3DFull", "current_epoch": 2,
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}, "grad_scaler_state": None,
        "logging": {"train_losses": [0.5, 0.4], "adapter_paths": [[block] * 4] * 2, **seconds},
        "init_args": {"plans": plans("nnUNetSAM3DPlans"), "configuration": "3d_fullres", "fold": 0,
                      "dataset_json": DATASET, "device": "cpu"},
        "inference_allowed_mirroring_axes": None, "_best_ema": 0.5,
        "sam3d": {"format": 1, "network": config, "trained": sorted(trained),
                  "provenance": dict.fromkeys(parts, record)},
    }  # fmt: skip
    write_checkpoint(content, state.fold / "checkpoint_final.pth")
    shutil.copy(state.fold / "checkpoint_final.pth", state.fold / "checkpoint_best.pth")
    (state.fold / "debug.json").write_text(json.dumps({"device": "cpu", "torch_version": "2"}))
    log = "\n".join(f"2026-01-01 10:00:00.1: Epoch {n}\n2026-01-01 10:00:00.1: Epoch time: 60.0 s" for n in range(2))
    (state.fold / "training_log_2026_1_1_10_00_00.txt").write_text(log)
    cases = [{"prediction_file": f"{case}.nii.gz", "reference_file": f"{case}.nii.gz", "metrics": {"1": {"Dice": 1.0}}}
             for case in FOLDS[0]["val"]]  # fmt: skip
    summary = {"foreground_mean": {"Dice": 1.0}, "mean": {}, "metric_per_case": cases}
    (state.fold / "validation" / "summary.json").write_text(json.dumps(summary))
    steps = state.results / "crossval__nnUNetSAM3DPlans__3d_fullres__fold_0"
    steps.mkdir()
    entry = {"train nnUNetTrainer_SAM3DFull": {"seconds": 120.0, "peak_rss_bytes": 1000}}
    (steps / "steps.json").write_text(json.dumps(entry))


DEEP = b"[" * 100_000


def retyped(content: Any) -> Any:
    """The same top level; what is in it is of another type."""
    if isinstance(content, dict):
        return {key: [] if isinstance(value, str | int | float | dict) else "text" for key, value in content.items()}
    return [5 for _ in content]


def flipped(data: bytes, seed: int, low: float = 0.0, high: float = 1.0, count: int = 1) -> bytes:
    """The bytes with some bits turned, in a part of them."""
    rng, changed = random.Random(seed), bytearray(data)
    for _ in range(count):
        changed[rng.randrange(int(low * len(data)), max(1, int(high * len(data))))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def text_damages(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What may become of a file of JSON."""
    yield from {"empty": b"", "half": data[: len(data) // 2], "list": b"[]", "number": b"5",
                "deep": DEEP, "not UTF-8": b"\xff\xfe" + data}.items()  # fmt: skip
    yield "empty table", b"{}"
    yield "retyped", json.dumps(retyped(json.loads(data))).encode()
    yield from ((f"flip {seed}", flipped(data, seed)) for seed in range(2))


def binary_damages(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What may become of another file."""
    yield from {"empty": b"", "half": data[: len(data) // 2], "text": b"text\n" * 20, "deep": DEEP}.items()
    yield "flip in the header", flipped(data, 1, 0, 64 / len(data), 3)
    yield "flip in the middle", flipped(data, 2, 0.4, 0.6, 3)
