"""What a cross-validation needs, checked before the first hour is spent."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_sam3d.experiment.annotations import check_annotations
from nnunetv2_sam3d.experiment.crossval import CrossValidation, is_sam3d, settings_of, starts_from
from nnunetv2_sam3d.experiment.devices import Device
from nnunetv2_sam3d.experiment.models import Model
from nnunetv2_sam3d.experiment.steps import is_whole
from nnunetv2_sam3d.files import write_whole
from nnunetv2_sam3d.messages import some
from nnunetv2_sam3d.nnunet.descriptions import PLANS, configuration_of, plans_in, read_dataset, read_plans
from nnunetv2_sam3d.nnunet.folders import dataset_folder
from nnunetv2_sam3d.nnunet.layout import CHECKPOINTS, dataset_number, repeat_of
from nnunetv2_sam3d.nnunet.preprocessed import check_cases
from nnunetv2_sam3d.nnunet.splits import read_folds
from nnunetv2_sam3d.trainers.names import BASE_PLANS, TIME_BUDGET, short_name, trainer_class
from nnunetv2_sam3d.trainers.recipes import Recipe, apply_freezing
from nnunetv2_sam3d.trainers.start import Run, Start
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.lineage import start_of

SPLITS = 5
FLOAT32_BYTES = 4
CHECKPOINTS_AT_ONCE = 3  # the best, the latest, and the one that is being written
STOCK_CHECKPOINT_BYTES = 250e6  # nnU-Net's 3d_fullres: 31 million parameters and their momentum


def splits_of(model: Model) -> list[dict[str, list[str]]]:
    """The folds of ``splits_final.json``, which is made as nnU-Net's first training would make it if there is none.

    Trainings that begin at the same time would otherwise all write it.

    Raises:
        ValueError: if the file is damaged, or the cases are too few.
    """
    file = _splits_file(model.dataset)
    if not file.is_file():
        cases = sorted(_preprocessed_cases(model))
        check_case_count(model.dataset, len(cases))
        folds = [{part: [str(case) for case in fold[part]] for part in fold} for fold in generate_crossval_split(cases)]
        write_whole(file, lambda out: out.write(json.dumps(folds, indent=4).encode()))
    return read_folds(file)


def check_case_count(dataset: str, count: int) -> None:
    """Raises ValueError if there are too few cases to split, and no split."""
    file = _splits_file(dataset)
    if count < SPLITS and not file.is_file():
        raise ValueError(
            f"the {count} training cases of {dataset} are too few for {SPLITS} folds. Add cases, or write your own "
            f'{file}: [{{"train": [...], "val": [...]}}, ...]'
        )


def _splits_file(dataset: str) -> Path:
    return dataset_folder(dataset) / "splits_final.json"


def check_plans(models: Sequence[Model]) -> None:
    """Raises ValueError if plans are not there, for all models at once."""
    problems = Problems()
    for model in models:
        with problems.noted():
            _plans(model)
    problems.check()


def check(
    run: CrossValidation,
    splits: list[dict[str, list[str]]],
    devices: tuple[Device, ...],
    say: Callable[[str], None] = lambda line: None,
) -> dict[Model, float]:
    """Looks for all that keeps a training of the run from working, or its results from belonging together.

    The plans are those that ``check_plans`` has seen. ``say`` gets what is accepted, and told once more in the report.

    Returns:
        the size of a checkpoint in bytes, for each model with missing folds.

    Raises:
        ValueError: with everything that was found.
    """
    if too_high := [fold for fold in run.folds if not 0 <= fold < len(splits)]:
        raise ValueError(
            f"there is no fold {too_high[0]}: {_splits_file(run.dataset)} has {len(splits)} folds, the first is 0"
        )
    problems = Problems()
    checkpoint_bytes: dict[Model, float] = {}
    needed_bytes = 0.0
    seen: set[tuple[str, str, str]] = set()
    with problems.noted():
        _check_arms(run)
    for model in run.models:
        with problems.noted():
            _check_starts(run, model)
        with problems.noted():
            _check_plans(model)  # of finished models, too: others start from them and are compared with them
        missing = [fold for fold in run.folds if not run.training(model, fold).finished]
        if not missing:
            continue
        with problems.noted():
            _check_batch(model, max((device.num_gpus for device in devices), default=1))
        with problems.noted():
            _check_cases(model, [splits[fold] for fold in missing], seen, say)
        with problems.noted():
            checkpoint_bytes[model] = _check_weights(run, model, missing)
            needed_bytes += len(missing) * CHECKPOINTS_AT_ONCE * checkpoint_bytes[model]
    with problems.noted():
        _check_space(needed_bytes)
    problems.check()
    return checkpoint_bytes


class Problems:
    """What is wrong, so that it is told at once and not one thing after the other."""

    def __init__(self) -> None:
        self.found: list[ValueError] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Goes on after a check that fails."""
        try:
            yield
        except ValueError as error:
            if str(error) not in map(str, self.found):  # models share plans and cases
                self.found.append(error)

    def check(self) -> None:
        """Raises ValueError with all that was found; a single error as it is."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            lines = [f"{number}. {error}" for number, error in enumerate(self.found, 1)]
            raise ValueError("\n\n".join([f"{len(lines)} things have to be put right first:", *lines]))


def check_devices(devices: tuple[Device, ...]) -> None:
    """Raises ValueError if this machine does not have the GPUs."""
    count = torch.cuda.device_count()
    for device in devices:
        if device.kind == "cuda" and max((*device.indices, device.num_gpus - 1)) >= count:
            raise ValueError(f"{device} does not exist: PyTorch sees {count} GPUs. Choose others, or --devices cpu.")


def _plans(model: Model) -> dict[str, Any]:
    """A model's plans, with its configuration in them."""
    file = dataset_folder(model.dataset) / f"{model.plans}.json"
    if not file.is_file():
        there = ", ".join(plans_in(file.parent)) or "none"
        raise ValueError(
            f"{model.trainer} needs {file}, which does not exist; plans that there are: {there}. Choose one of them "
            f"(-p, or TRAINER__PLANS), or make it:\n  {_planning(model)}"
        )
    plans = read_plans(file, needed=PLANS)
    configuration_of(file, plans, model.configuration)
    return plans


def _configuration(model: Model) -> ConfigurationManager:
    return PlansManager(_plans(model)).get_configuration(model.configuration)


def _check_arms(run: CrossValidation) -> None:
    """Refuses two trainers that the plans make one: they would be compared with themselves."""
    known: dict[tuple[str, Recipe], Model] = {}
    for model in filter(is_sam3d, run.models):
        recipe: Recipe = trainer_class(model.trainer).recipe  # type: ignore[attr-defined]
        start = recipe.adapter_start or settings_of(model).adapter_start
        other = known.setdefault((model.plans, replace(recipe, adapter_start=start, control=None, question="")), model)
        if other is not model:
            raise ValueError(
                f"{short_name(other.trainer)} and {short_name(model.trainer)} are the same training with "
                f"{model.plans}, whose adapters start {start}. Leave one out, or derive plans with another "
                f"--adapter-start"
            )


def _check_plans(model: Model) -> None:
    """Refuses plans that lack something, or are not those of the folds that are there."""
    plans = _plans(model)
    if model.trainer == TIME_BUDGET and settings_of(model).max_seconds is None:
        raise ValueError(f"{model.plans} set no time for {model.trainer}. Make them anew:\n  {_planning(model)}")
    used = model.folder / "plans.json"
    if any(model.folder.glob("fold_*/checkpoint_*.pth")) and used.is_file() and read_plans(used) != plans:
        raise ValueError(
            f"folds in {model.folder} were trained with other plans than {model.plans} are now, so the folds would "
            f"not be comparable. Restore the plans from {used}, give the new ones another name, or delete "
            f"{model.folder}."
        )


def _check_batch(model: Model, gpus: int) -> None:
    batch_size = _configuration(model).batch_size
    if gpus > batch_size:
        raise ValueError(
            f"{model.plans} have a batch of {batch_size}, which {gpus} GPUs cannot share (--num-gpus). Use fewer, "
            f"or derive plans with a larger batch: nnUNetv2_sam3d plan -d {model.dataset} --batch-size {gpus}"
        )


def _check_space(needed_bytes: float) -> None:
    results = Path(os.environ["nnUNet_results"])
    results.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(results).free) < needed_bytes:
        raise ValueError(
            f"{results} has {free / 1e9:.1f} GB free; the checkpoints of the missing trainings need about "
            f"{needed_bytes / 1e9:.1f} GB. Free some space, or train fewer folds at a time (--folds)."
        )


def _check_starts(run: CrossValidation, model: Model) -> None:
    """Refuses folds, finished or begun, whose start this run would train again, or has become another model.

    They are not trained again without being asked for: hours of work would be overwritten.
    """
    outdated: dict[str, list[int]] = {}
    for fold in run.folds if starts_from(model) else ():
        checkpoint = next(filter(is_whole, run.training(model, fold).checkpoints), None)
        start = None if checkpoint is None else start_of(checkpoint)
        if start is None:
            continue
        if not is_whole(start.file):
            if any(start.file.parent == other.fold_folder(fold) for other in run.models):
                outdated.setdefault(f"{start.model}, which this run would train again", []).append(fold)
        elif start.replaced:
            outdated.setdefault(f"{start.model}, which has been trained again since", []).append(fold)
    messages = []
    for reason, folds in outdated.items():
        names = " ".join(f"fold_{fold}" for fold in folds)
        messages.append(
            f"{model.trainer} started in {names} from the same fold of {reason}: results of both would not belong "
            f"together. To train {names} again, rename or delete {'it' if len(folds) == 1 else 'them'} in "
            f"{model.folder}; to keep what is there, put the {CHECKPOINTS[0]} of the start back in its place."
        )
    if messages:
        raise ValueError("\n".join(messages))


def _planning(model: Model) -> str:
    """The command that makes a model's plans."""
    if model.trainer == TIME_BUDGET:
        return f"nnUNetv2_sam3d plan -d {model.dataset} -o {model.plans} --max-seconds SECONDS_OF_A_FOLD"
    plans, repeat = repeat_of(model.plans)
    if repeat > 1:
        return f"nnUNetv2_sam3d crossval -d {model.dataset} -p {plans} --trainers ... --repeats {repeat}"
    if is_sam3d(model) and model.plans != BASE_PLANS:
        return f"nnUNetv2_sam3d plan -d {model.dataset} -o {model.plans}"
    return f"nnUNetv2_plan_and_preprocess -d {dataset_number(model.dataset)} -c {model.configuration}"


def _preprocessed_cases(model: Model) -> set[str]:
    """Names of the cases that preprocessing has finished for a model's plans."""
    folder = dataset_folder(model.dataset) / _configuration(model).data_identifier
    try:
        cases = infer_dataset_class(str(folder)).get_identifiers(str(folder))
    except (OSError, AssertionError, KeyError):  # no folder, or nothing that nnU-Net would recognise in it
        cases = []
    return {case for case in cases if (folder / f"{case}.pkl").is_file()}


def _check_cases(
    model: Model, folds: list[dict[str, list[str]]], seen: set[tuple[str, str, str]], say: Callable[[str], None]
) -> None:
    """Reads the preprocessed cases and the annotations of folds; ``seen`` has those that another model has, too."""
    plans = repeat_of(model.plans)[0]  # repeats share the data
    command = f"nnUNetv2_preprocess -d {dataset_number(model.dataset)} -plans_name {plans} -c {model.configuration}"
    needed = {case for fold in folds for part in ("train", "val") for case in fold[part]}
    if absent := sorted(needed - _preprocessed_cases(model)):
        raise ValueError(
            f"{len(absent)} cases of the folds are not preprocessed for {plans}: {some(absent)}. Preprocess them:\n"
            f"  {command}"
        )
    identifier, content = _configuration(model).data_identifier, PlansManager(_plans(model))
    reader = content.plans.get("image_reader_writer", "")
    new = sorted(case for case in needed if (identifier, reader, case) not in seen)
    seen |= {(identifier, reader, case) for case in new}
    folder = dataset_folder(model.dataset)
    cases = check_cases(folder / identifier, new, command)
    for note in check_annotations(folder, content, cases):
        say(note)


def _check_weights(run: CrossValidation, model: Model, folds: list[int]) -> float:
    """Loads what the trainings would begin with, as they will; returns the size of a checkpoint in bytes."""
    if not is_sam3d(model):
        return STOCK_CHECKPOINT_BYTES
    cls = trainer_class(model.trainer)
    plans = PlansManager(_plans(model))
    configuration = plans.get_configuration(model.configuration)
    dataset = read_dataset(dataset_folder(model.dataset) / "dataset.json")
    network: nn.Module = cls.build_network_architecture(  # type: ignore[attr-defined]
        plans,
        configuration,
        determine_num_input_channels(plans, configuration, dataset),
        plans.get_label_manager(dataset).num_segmentation_heads,
        False,
    )
    recipe = cls.recipe  # type: ignore[attr-defined]
    trained = sum(parameter.numel() for group in apply_freezing(network, recipe) for parameter in group)
    settings = settings_of(model)
    begins: dict[Any, list[int]] = {}  # folds by what they begin with
    for fold in folds:
        resumes = any(is_whole(checkpoint) for checkpoint in run.training(model, fold).checkpoints)
        if not resumes and run.depends_on(model, fold) is None:
            file = run.pretrained if run.takes_pretrained(model, fold) else run.source(model, fold)
            # another fold's model is another file
            begins.setdefault((file, fold if isinstance(file, Model) else None), []).append(fold)
    for (file, _), (fold, *others) in begins.items():
        results = Path(os.environ["nnUNet_results"])
        place = Run(model.dataset, model.plans, model.configuration, fold, model.trainer, results)
        start = Start(network, lambda _: None)  # type: ignore[arg-type]
        if run.takes_pretrained(model, fold):
            start.take(run.pretrained)  # type: ignore[arg-type]
        else:
            start.find(place, recipe, settings.sam_checkpoint, settings.variant)
        apply_freezing(network, recipe)
        for parameter in start.lacking().values():
            parameter.requires_grad_(True)
        try:
            start.check(place, recipe)
        except WeightsError as error:
            if file is not None:
                raise
            if recipe.starts_from:
                raise WeightsError(_start_advice(model, recipe, [fold, *others])) from error
            advice = "add Full to --trainers" if recipe.groups else "give the model with --pretrained-weights FILE"
            raise WeightsError(f"{error}\nIn a cross-validation, {advice}.") from error
    total = sum(parameter.numel() for parameter in network.parameters())
    return FLOAT32_BYTES * (total + 2 * trained)  # AdamW keeps two numbers for each that it trains


def _start_advice(model: Model, recipe: Recipe, folds: list[int]) -> str:
    """What to do where no fold's model is there to start from."""
    names = [short_name(trainer) for trainer in recipe.starts_from]
    needs_none = " (Full needs no pretrained weights)" if "Full" in names else ""
    return (
        f"{model.trainer} starts from the same fold of {' or '.join(recipe.starts_from)} with {model.plans}, which is "
        f"finished neither in this run nor before it for {'fold' if len(folds) == 1 else 'folds'} "
        f"{', '.join(map(str, folds))}. Add {' or '.join(names)} to --trainers{needs_none}, or give a whole model: "
        f"--pretrained-weights FILE"
    )
