"""Segmentations of many images as files, with and without clicks."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunetv2_sam3d import __version__
from nnunetv2_sam3d.clicks.click import BACKGROUND, Click, ClickError
from nnunetv2_sam3d.clicks.click_files import RECORD_SUFFIX, case_of, find_clicks, write_clicks
from nnunetv2_sam3d.clicks.geometry import Geometry
from nnunetv2_sam3d.clicks.json_format import PREDICTED_BY
from nnunetv2_sam3d.clicks.placing import clicks_for_case
from nnunetv2_sam3d.files import append_json_line, sha256, write_json, write_whole, written_whole
from nnunetv2_sam3d.inference.click_predictor import ClickPredictor, click_in_words
from nnunetv2_sam3d.inference.only_clicked import only_clicked
from nnunetv2_sam3d.messages import some
from nnunetv2_sam3d.nnunet.images import Case, ImageError, read_header

FILE = "predict_sam3d.jsonl"
MOST_FAILED = 3  # images whose errors are shown


# What differs, in words for the user.
_WORDS = {
    "checkpoints": "model",
    "plans": "plans",
    "mirroring": "mirroring",
    "step_size": "step size",
    "clicks": "clicks",
    "only_clicked": "--only-clicked",
}


def prediction_conditions(predictor: ClickPredictor) -> dict[str, Any]:
    """What decides the result beside the image and its clicks, as JSON has it; the same wherever the model lies."""
    described = [predictor.plans.plans, predictor.dataset_json, predictor.configuration.configuration]
    return {
        "checkpoints": [sha256(file) for file in predictor.checkpoints],
        "plans": hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(),
        "mirroring": predictor.mirroring,
        "step_size": predictor.tile_step_size,
    }


def with_clicks(settings: dict[str, Any], clicks: Sequence[Click], only: bool) -> dict[str, Any]:
    """The same for one image; clicks are equal if their places agree to a thousandth of a voxel."""
    listed = [[*(round(place, 3) for place in click.zyx), click.label, click.sign] for click in clicks]
    return settings | {"clicks": listed, "only_clicked": only and bool(clicks)}


class PredictionRecords:
    """A line for each segmentation that was written into a folder, in ``predict_sam3d.jsonl``.

    Lines are only added, the last one of a case counts: a process that is killed, or another one that writes into the
    same folder, costs no line of an earlier segmentation.

    Args:
        folder: of the segmentations.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        self._cases: dict[str, Any] = {}
        lines = self.file.read_text("utf-8", errors="replace").splitlines() if self.file.is_file() else []
        for line in lines:
            try:
                content = json.loads(line)
                self._cases[content.pop("case")] = content
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                continue  # cut off; its case is predicted again

    def difference(self, case: str, made_with: dict[str, Any]) -> str | None:
        """What differs from how the case was made, in words; ``None`` if nothing does."""
        before = self._cases.get(case)
        if not before:
            return "nothing says what made it"
        words = [_WORDS[key] for key in made_with if before.get(key) != made_with[key]]
        return f"different {', '.join(words)}" if words else None

    def changed(self, case: str, file: Path) -> bool:
        """Whether the segmentation is not what was written; earlier versions noted no hash of it."""
        written = self._cases.get(case, {}).get("sha256")
        return written is not None and written != sha256(file)

    def begin(self, case: str) -> None:
        """The files of the case are about to be written: nobody knows what they are until :meth:`done`."""
        self.done(case, {})

    def __contains__(self, case: str) -> bool:
        """Whether a command of this package wrote files of the case."""
        return case in self._cases

    def done(self, case: str, made_with: dict[str, Any]) -> None:
        """The files of the case are there."""
        self._cases[case] = made_with
        append_json_line(self.file, {"case": case} | made_with)


@dataclass(frozen=True)
class PredictionJob:
    """An image and its clicks.

    Attributes:
        case: the image.
        clicks: in voxels of it, in their order.
        click_file: where they came from; ``None`` for images without clicks.
        geometry: of the image, where there are clicks.
        passed_over: points of the file that are no clicks.
    """

    case: Case
    clicks: tuple[Click, ...] = ()
    click_file: Path | None = None
    geometry: Geometry | None = None
    passed_over: int = 0


def plan_jobs(
    cases: Sequence[Case], clicks: Path | None, reader: Any, labels: Mapping[str, Any], output: Path | None = None
) -> list[PredictionJob]:
    """Reads all clicks and holds them against the images' headers, before anything is computed.

    Args:
        cases: the images.
        clicks: a file of clicks or a folder of them, see :func:`~nnunetv2_sam3d.clicks.click_files.find_clicks`.
        reader: nnU-Net's, of the plans.
        labels: ``labels`` of ``dataset.json``.
        output: where the segmentations will be written.

    Raises:
        ClickError: for clicks that are not of these images, outside of them, or of unknown labels, and for a file that
            the prediction would replace.
    """
    files = {} if clicks is None else find_clicks(clicks, [case.name for case in cases], output)
    jobs = []
    for case in cases:
        if case.name not in files:
            jobs.append(PredictionJob(case))
            continue
        file, (properties, shape) = files[case.name], read_header(case, reader)
        if output is not None and not file.of_prediction and _same(file.file, _record(case, output)):
            raise ClickError(
                f"{file.file} has the name under which the clicks that were used are written: rename it, for instance "
                f"{case.name}.json, or choose another folder for the segmentations"
            )
        placed = clicks_for_case(file, case.name, properties, shape, labels)
        geometry = Geometry.from_properties(properties, shape)
        jobs.append(PredictionJob(case, tuple(placed), file.file, geometry, file.passed_over))
    return jobs


def predict_jobs(
    predictor: ClickPredictor,
    jobs: Sequence[PredictionJob],
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
        ImageError: for images that cannot be read, after all the others.
        ValueError: if an image would be overwritten, or a segmentation that another program made.
    """
    ending = predictor.dataset_json["file_ending"]
    for job in jobs:
        if any(_same(file, output / (job.case.name + ending)) for file in job.case.files):
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
        if other := _other_case(job):
            say(f"Warning: {job.click_file} is named after {other}, but its clicks are used for {job.case.name}")
    for file, count in {job.click_file: job.passed_over for job in jobs if job.passed_over}.items():
        say(f"Warning: {file}: {count} of its points have no position, as they were deleted or never placed; there "
            f"are no clicks of them")  # fmt: skip
    records = PredictionRecords(output)
    names = [job.case.name for job in jobs if job.case.name not in records]
    if foreign := [file for name in names if (file := output / (name + ending)).exists()]:
        raise ValueError(
            f"{some(foreign)}: this command would overwrite segmentations that it did not make (or {records.file} does "
            f"not name them any more). Choose another folder with -o, or move them"
        )
    for doubt in dict.fromkeys(doubt for job in jobs if (doubt := predictor.doubt(job.clicks))):
        say(f"Warning: {doubt}")
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "dataset.json", predictor.dataset_json, indent=4)
    write_json(output / "plans.json", predictor.plans.plans, indent=4)
    settings = prediction_conditions(predictor)
    predicted, failed = 0, list[ValueError]()
    for job in tqdm(jobs, desc="cases", disable=len(jobs) < 2):
        name = job.case.name
        made_with = with_clicks(settings, job.clicks, only)
        if keep_existing and (output / (name + ending)).is_file():
            difference = records.difference(name, made_with)
            if difference is None and records.changed(name, output / (name + ending)):
                difference = f"{output / (name + ending)} is not what was written"
            if difference is None and _all_there(job, output, probabilities):
                continue
            say(f"{name} is predicted again: {difference or 'some of its files are absent'}")
        if job.clicks:
            say(f"{name}: clicks at voxels (i, j, k) {_listed(job)}")
        try:
            predictor.set_image_files(job.case.files)
            predictor.check_memory()
            if predictor.image_doubt:
                say(f"Warning: {predictor.image_doubt}")
            result = predictor.segmentation(predictor.logits(job.clicks), probabilities)
        # known only now; the other images are not lost for it
        except ImageError as error:
            failed.append(error)
            continue
        except ClickError as error:
            failed.append(ClickError(f"{job.click_file}, for the case {name}: {error}"))
            continue
        segmentation = result[0] if probabilities else result
        if only and job.clicks:
            labels = predictor.dataset_json["labels"]
            segmentation, missed = only_clicked(segmentation, job.clicks, labels, predictor.spacing)
            for click in missed:
                say(f"{name}: nothing of that kind was found near {click_in_words(click)}")
        records.begin(name)
        # They are of an earlier segmentation. A record is replaced where there are clicks, as it may be their file.
        stale = (".npz", ".pkl", *((RECORD_SUFFIX,) if job.click_file is None else ()))
        for suffix in stale:
            (output / f"{name}{suffix}").unlink(missing_ok=True)
        if probabilities:
            with written_whole(output / f"{name}.npz", ".npz") as partial:
                np.savez_compressed(partial, probabilities=result[1])
            write_whole(output / f"{name}.pkl", lambda file: pickle.dump(predictor.properties, file))
        predictor.write(segmentation, output / (name + ending))
        _write_record(job, output, predictor.checkpoints, made_with)
        records.done(name, made_with | {"sha256": sha256(output / (name + ending))})
        predicted += 1
    if failed:
        others = [f"The other {len(jobs) - len(failed)} images are there."] if len(jobs) > len(failed) else []
        more = [f"and {len(failed) - MOST_FAILED} images more"] if len(failed) > MOST_FAILED else []
        raise type(failed[0])("\n".join([*map(str, failed[:MOST_FAILED]), *more, *others]))
    return predicted


def _other_case(job: PredictionJob) -> str | None:
    """The case that the file of clicks is named after, if that is another one: a file of one image may have any name.

    It is where there is such an image, or the names differ in their numbers alone.
    """
    if job.click_file is None:
        return None
    own, named, image = job.case.name, case_of(job.click_file, [job.case.name]), job.case.files[0]
    alike = re.sub(r"\d+", "0", named) == re.sub(r"\d+", "0", own)
    there = image.with_name(named + image.name.removeprefix(own)).is_file()
    return named if named != own and (alike or there) else None


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _record(case: Case, output: Path) -> Path:
    return output / (case.name + RECORD_SUFFIX)


def _write_record(job: PredictionJob, output: Path, checkpoints: Sequence[Path], made_with: Mapping[str, Any]) -> None:
    if job.click_file is None or job.geometry is None:
        return
    # the clicks themselves are in the file
    settings = {key: value for key, value in made_with.items() if key != "clicks"}
    settings["checkpoints"] = dict(zip(map(str, checkpoints), made_with["checkpoints"], strict=True))
    source = {"file": str(job.click_file.absolute()), "sha256": sha256(job.click_file)}
    write_clicks(
        _record(job.case, output),
        job.clicks,
        job.geometry,
        space="LPS" if "LPS" in job.geometry.spaces() else "zyx",
        image=job.case.files[0].name,
        provenance={"clicks": source, "voxels_ijk": _voxels(job), PREDICTED_BY: __version__, **settings},
    )


def _voxels(job: PredictionJob) -> list[list[int]]:
    """The voxels of the file that the clicks are in, as viewers count them."""
    assert job.geometry is not None  # every job with clicks has it
    places = np.reshape([click.zyx for click in job.clicks], (-1, 3))
    inside = np.clip(np.rint(places), 0, np.array(job.geometry.shape) - 1)  # a click may lie on the outer surface
    return np.rint(job.geometry.from_zyx(inside, "ijk")).astype(int).tolist()


def _listed(job: PredictionJob, most: int = 10) -> str:
    """For sentences: place, label and sign of the clicks."""
    listed = [
        f"{tuple(voxel)} {'not ' if click.sign == BACKGROUND else ''}{click.label or 'no label'}"
        for click, voxel in zip(job.clicks[:most], _voxels(job), strict=False)
    ]
    return ", ".join(listed) + (f" and {len(job.clicks) - most} more" if len(job.clicks) > most else "")


def _all_there(job: PredictionJob, output: Path, probabilities: bool) -> bool:
    """Whether what is written beside the segmentation is there as well."""
    suffixes = (".npz", ".pkl") if probabilities else ()
    files = [output / f"{job.case.name}{suffix}" for suffix in suffixes]
    return all(file.is_file() for file in [*files, *([] if job.click_file is None else [_record(job.case, output)])])
