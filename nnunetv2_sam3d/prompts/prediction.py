"""Segmentations of many images as files, with and without clicks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import save_json, save_pickle
from tqdm import tqdm

from nnunetv2_sam3d import __version__
from nnunetv2_sam3d.prompts.cases import Case, read_header
from nnunetv2_sam3d.prompts.clicks import BACKGROUND, Click, ClickError
from nnunetv2_sam3d.prompts.files import find_clicks, write_clicks
from nnunetv2_sam3d.prompts.geometry import Geometry
from nnunetv2_sam3d.prompts.only_clicked import only_clicked
from nnunetv2_sam3d.prompts.placing import clicks_for_case
from nnunetv2_sam3d.prompts.predictor import ClickPredictor, describe
from nnunetv2_sam3d.weights.files import sha256


@dataclass(frozen=True)
class Job:
    """An image and its clicks.

    Attributes:
        case: the image.
        clicks: in voxels of it, in their order.
        click_file: where they came from; ``None`` for images without clicks.
        geometry: of the image, where there are clicks.
    """

    case: Case
    clicks: tuple[Click, ...] = ()
    click_file: Path | None = None
    geometry: Geometry | None = None


def plan_jobs(cases: Sequence[Case], clicks: Path | None, reader: Any, labels: Mapping[str, Any]) -> list[Job]:
    """Reads all clicks and holds them against the images' headers, before anything is computed.

    Args:
        cases: the images.
        clicks: a file of clicks or a folder of them, see :func:`~nnunetv2_sam3d.prompts.files.find_clicks`.
        reader: nnU-Net's, of the plans.
        labels: ``labels`` of ``dataset.json``.

    Raises:
        ClickError: for clicks that are not of these images, outside of them, or of unknown labels.
    """
    files = {} if clicks is None else find_clicks(clicks, [case.name for case in cases])
    jobs = []
    for case in cases:
        if case.name not in files:
            jobs.append(Job(case))
            continue
        file, (properties, shape) = files[case.name], read_header(case, reader)
        placed = clicks_for_case(file, case.name, properties, shape, labels)
        jobs.append(Job(case, tuple(placed), file.file, Geometry.from_properties(properties, shape)))
    return jobs


def predict_jobs(
    predictor: ClickPredictor,
    jobs: Sequence[Job],
    output: Path,
    *,
    only: bool = False,
    probabilities: bool = False,
    keep_existing: bool = False,
    provenance: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Writes ``CASE.nii.gz`` as nnU-Net does, and for images with clicks ``CASE_clicks.json``.

    Args:
        predictor: the model.
        jobs: from :func:`plan_jobs`.
        output: folder, made if it does not exist.
        only: write the clicked structures alone, for images with clicks.
        probabilities: write ``CASE.npz`` and ``CASE.pkl`` as well, as nnU-Net does for ensembles.
        keep_existing: leave what was predicted with the same model and the same clicks.
        provenance: noted beside the clicks.
        say: takes sentences for the user.

    Returns:
        how many images were predicted.

    Raises:
        ClickError: for clicks that the model cannot take, before anything is computed; after all images for clicks
            in a part of theirs that nnU-Net cuts off.
        ValueError: if an image would be overwritten.
    """
    ending = predictor.dataset_json["file_ending"]
    for job in jobs:
        if any(file.resolve() == (output / (job.case.name + ending)).resolve() for file in job.case.files):
            raise ValueError(f"the segmentation of {job.case.files[0]} would replace the image: choose another folder")
        try:
            predictor.check(job.clicks)
        except ValueError as error:
            raise ClickError(f"{job.click_file}: {error}") from error
        if only and job.clicks and all(click.sign == BACKGROUND for click in job.clicks):
            raise ClickError(
                f"{job.click_file} has background clicks alone for {job.case.name}: nothing would be left of it. Add a "
                f"click in the structure"
            )
        if job.click_file is not None and not job.clicks:
            say(f"Warning: {job.click_file} holds no click for {job.case.name}, which is predicted automatically")
    for doubt in dict.fromkeys(doubt for job in jobs if (doubt := predictor.doubt(job.clicks))):
        say(f"Warning: {doubt}")
    output.mkdir(parents=True, exist_ok=True)
    save_json(predictor.dataset_json, output / "dataset.json", sort_keys=False)
    save_json(predictor.plans.plans, output / "plans.json", sort_keys=False)
    suffixes = [ending, *([".npz"] if probabilities else [])]
    predicted, failed = 0, list[str]()
    for job in tqdm(jobs, desc="cases", disable=len(jobs) < 2):
        record = _write_record(job, output, only, provenance or {})
        try:
            if keep_existing and _is_done(job, record, output, suffixes):
                continue
            predictor.set_image_files(job.case.files)
            result = predictor.segmentation(predictor.logits(job.clicks), probabilities)
            segmentation = result[0] if probabilities else result
            if only and job.clicks:
                labels = predictor.dataset_json["labels"]
                segmentation, missed = only_clicked(segmentation, job.clicks, labels, predictor.spacing)
                for click in missed:
                    say(f"{job.case.name}: nothing of that kind was found near {describe(click)}")
            # they are of an earlier segmentation
            for file in (_record(job, output), *(output / f"{job.case.name}{suffix}" for suffix in (".npz", ".pkl"))):
                file.unlink(missing_ok=True)
            if probabilities:
                np.savez_compressed(output / f"{job.case.name}.npz", probabilities=result[1])
                save_pickle(predictor.properties, str(output / f"{job.case.name}.pkl"))
            predictor.write(segmentation, output / (job.case.name + ending))
            if record is not None:
                os.replace(record, _record(job, output))
            predicted += 1
        except ClickError as error:  # known only after preprocessing; the other images are not lost for it
            failed.append(f"{job.click_file}, for the case {job.case.name}: {error}")
        finally:
            if record is not None:
                record.unlink(missing_ok=True)
    if failed:
        raise ClickError("\n".join([*failed, f"The other {len(jobs) - len(failed)} images are there."]))
    return predicted


def _record(job: Job, output: Path) -> Path:
    return output / f"{job.case.name}_clicks.json"


def _write_record(job: Job, output: Path, only: bool, provenance: Mapping[str, Any]) -> Path | None:
    """The clicks under a hidden name, which they lose when the segmentation is there."""
    if job.click_file is None or job.geometry is None:
        return None
    file = output / f".{_record(job, output).name}"
    source = {"file": str(job.click_file.absolute()), "sha256": sha256(job.click_file)}
    write_clicks(
        file,
        job.clicks,
        job.geometry,
        space="LPS" if "LPS" in job.geometry.spaces() else "zyx",
        image=job.case.files[0].name,
        provenance={"clicks": source, "only_clicked": only, "nnunetv2_sam3d": __version__, **provenance},
    )
    return file


def _is_done(job: Job, record: Path | None, output: Path, suffixes: Sequence[str]) -> bool:
    """Whether the segmentation is there and was made with these clicks."""
    old = _record(job, output)
    same = not old.exists() if record is None else old.is_file() and old.read_bytes() == record.read_bytes()
    return same and all((output / (job.case.name + suffix)).is_file() for suffix in suffixes)
