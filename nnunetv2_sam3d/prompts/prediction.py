"""Segmentations of many images as files, with and without clicks."""

from __future__ import annotations

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
from nnunetv2_sam3d.prompts.records import Records, settings_of, with_clicks
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
    say: Callable[[str], None] = print,
) -> int:
    """Writes ``CASE.nii.gz`` as nnU-Net does, and for images with clicks ``CASE_clicks.json``.

    Args:
        predictor: the model.
        jobs: from :func:`plan_jobs`.
        output: folder, made if it does not exist.
        only: write the clicked structures alone, for images with clicks.
        probabilities: write ``CASE.npz`` and ``CASE.pkl`` as well, as nnU-Net does for ensembles.
        keep_existing: leave what was made with the same clicks, model and settings.
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
    settings, records = settings_of(predictor), Records(output)
    predicted, failed = 0, list[str]()
    for job in tqdm(jobs, desc="cases", disable=len(jobs) < 2):
        name = job.case.name
        made_with = with_clicks(settings, job.clicks, only)
        if keep_existing and (output / (name + ending)).is_file():
            difference = records.difference(name, made_with)
            if difference is None and _all_there(job, output, probabilities):
                continue
            say(f"{name} is predicted again: {difference or 'some of its files are absent'}")
        try:
            predictor.set_image_files(job.case.files)
            result = predictor.segmentation(predictor.logits(job.clicks), probabilities)
        except ClickError as error:  # known only after preprocessing; the other images are not lost for it
            failed.append(f"{job.click_file}, for the case {name}: {error}")
            continue
        segmentation = result[0] if probabilities else result
        if only and job.clicks:
            labels = predictor.dataset_json["labels"]
            segmentation, missed = only_clicked(segmentation, job.clicks, labels, predictor.spacing)
            for click in missed:
                say(f"{name}: nothing of that kind was found near {describe(click)}")
        records.begin(name)
        # they are of an earlier segmentation
        for file in (_record(job, output), *(output / f"{name}{suffix}" for suffix in (".npz", ".pkl"))):
            file.unlink(missing_ok=True)
        if probabilities:
            np.savez_compressed(output / f"{name}.npz", probabilities=result[1])
            save_pickle(predictor.properties, str(output / f"{name}.pkl"))
        predictor.write(segmentation, output / (name + ending))
        _write_record(job, output, predictor.checkpoints, made_with)
        records.done(name, made_with)
        predicted += 1
    if failed:
        raise ClickError("\n".join([*failed, f"The other {len(jobs) - len(failed)} images are there."]))
    return predicted


def _record(job: Job, output: Path) -> Path:
    return output / f"{job.case.name}_clicks.json"


def _write_record(job: Job, output: Path, checkpoints: Sequence[Path], made_with: Mapping[str, Any]) -> None:
    if job.click_file is None or job.geometry is None:
        return
    # the clicks themselves are in the file
    settings = {key: value for key, value in made_with.items() if key != "clicks"}
    settings["checkpoints"] = dict(zip(map(str, checkpoints), made_with["checkpoints"], strict=True))
    source = {"file": str(job.click_file.absolute()), "sha256": sha256(job.click_file)}
    write_clicks(
        _record(job, output),
        job.clicks,
        job.geometry,
        space="LPS" if "LPS" in job.geometry.spaces() else "zyx",
        image=job.case.files[0].name,
        provenance={"clicks": source, "nnunetv2_sam3d": __version__, **settings},
    )


def _all_there(job: Job, output: Path, probabilities: bool) -> bool:
    """Whether what is written beside the segmentation is there as well."""
    suffixes = (".npz", ".pkl") if probabilities else ()
    files = [output / f"{job.case.name}{suffix}" for suffix in suffixes]
    return all(file.is_file() for file in [*files, *([] if job.click_file is None else [_record(job, output)])])
