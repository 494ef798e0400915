"""Which trainers a study asks for, and which of them have results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nnunetv2_sam3d.nnunet.layout import PLANS_NAME
from nnunetv2_sam3d.report.request import Results
from nnunetv2_sam3d.results.collect import unfinished_folds
from nnunetv2_sam3d.results.trained_models import Dataset, find_models
from nnunetv2_sam3d.trainers.names import SHORT_NAMES, full_name, recipe_of, study_arms

STARTS = ("Original", "Full")  # the first that has results is what the others started from


@dataclass(frozen=True)
class Arms:
    """The arms of studies.

    Attributes:
        present: short names of those with all predictions of the folds.
        absent: short names of the others, and why they are not reported.
    """

    present: tuple[str, ...] = ()
    absent: dict[str, str] = field(default_factory=dict)


def arms_with_results(
    dataset: Dataset, studies: Sequence[str], plans: str, configuration: str, folds: Sequence[int]
) -> Arms:
    """Sorts the arms of studies by whether they are finished.

    Args:
        dataset: where results lie.
        studies: keys of :data:`~nnunetv2_sam3d.trainers.names.STUDIES`; none gives no arms.
        plans: of the results.
        configuration: such as ``3d_fullres``.
        folds: that are reported; an arm has to have all of them.

    Raises:
        FileNotFoundError: if no arm is finished.
    """
    if not studies:
        return Arms()

    def has_results(arm: str) -> bool:
        return (dataset.results / f"{full_name(arm)}__{plans}__{configuration}").is_dir()

    present: list[str] = []
    absent: dict[str, str] = {}
    for arm in study_arms(list(studies), next((arm for arm in STARTS if has_results(arm)), STARTS[0])):
        if not has_results(arm):
            absent[arm] = "not trained"
            continue
        (model,) = find_models(dataset, [f"{arm}__{plans}"], plans, configuration, SHORT_NAMES)
        if unfinished := unfinished_folds(dataset, model, model.repeats[0], folds):
            absent[arm] = f"fold {' '.join(map(str, unfinished))} of {len(folds)} folds not finished"
        else:
            present.append(arm)
    if not present:
        first = [f"{arm} ({why})" for arm, why in list(absent.items())[:3]]
        raise FileNotFoundError(
            f"{dataset.results}: none of the {len(absent)} arms of the study {' '.join(studies)} has all predictions "
            f"of the folds {' '.join(map(str, folds))} with {plans}: {', '.join(first)}, ... nnUNetv2_sam3d crossval "
            f"-d {dataset.name} -p {plans} --study {' '.join(studies)} does what is missing, --folds reports finished "
            f"folds only"
        )
    return Arms(tuple(present), absent)


def controls() -> dict[str, str]:
    """Class names of this package's trainers and of their declared controls."""
    recipes = {full: recipe_of(short) for short, full in SHORT_NAMES.items()}
    return {full: full_name(recipe.control) for full, recipe in recipes.items() if recipe and recipe.control}


def crossval_of(results: Results, repeats: int = 0) -> str:
    """The command that trains what the report lacks, ready to be pasted."""
    plans = results.models[0].plans
    arms = f"--study {' '.join(results.study)}" if results.study else f"--trainers {' '.join(results.names)}"
    options = ["" if plans == PLANS_NAME else f"-p {plans}", arms, f"--repeats {repeats}" if repeats else ""]
    return " ".join(filter(None, [f"nnUNetv2_sam3d crossval -d {results.dataset.name}", *options]))


def question_of(trainer: str) -> str:
    """What a trainer is run for; empty for trainers that do not say."""
    recipe = recipe_of(trainer)
    return recipe.question if recipe else ""
