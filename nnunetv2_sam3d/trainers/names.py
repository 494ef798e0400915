"""What the trainers are called, and which of them belong together in a study. Imports neither PyTorch nor nnU-Net."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Sequence
from functools import cache

from nnunetv2_sam3d.trainers.recipes import RECIPES, Recipe

PREFIX = "nnUNetTrainer_SAM3D"
TIME_BUDGET = "nnUNetTrainer_TimeBudget"

# Short names and class names of this package's trainers; what others start from comes first.
SHORT_NAMES = {short: PREFIX + short for short in RECIPES} | {"TimeBudget": TIME_BUDGET}
CLAIM = "DualPath"  # the arm whose comparison with its control the project is about: it is told first

# The arms of a study beside the start, which is Original or Full.
STUDIES: dict[str, tuple[str, ...]] = {
    "controls": ("OriginalEval", "OriginalContinued", "OriginalWide", "DualPath", "DualPathCold"),
    "paths": (
        "OriginalContinued",
        "DualPath",
        "DualPathNoGate",
        "DualPathLocalOnly",
        "DualPathConv",
        "DualPathFFT",
    ),
}


def full_name(trainer: str) -> str:
    """``DualPath`` -> ``nnUNetTrainer_SAM3DDualPath``; class names stay as they are."""
    return SHORT_NAMES.get(trainer, trainer)


def short_name(trainer: str) -> str:
    """``nnUNetTrainer_SAM3DDualPath`` -> ``DualPath``; trainers of others keep their class names."""
    return next((short for short, full in SHORT_NAMES.items() if full == trainer), trainer)


def recipe_of(trainer: str) -> Recipe | None:
    """The recipe of a trainer of this package, by either name; ``None`` for other trainers."""
    return RECIPES.get(short_name(trainer))


def evaluation_of(adapter: str) -> str:
    """Short name of the trainer that validates models of these adapters, or else of one that trains them."""
    fitting = [short for short, recipe in RECIPES.items() if recipe.adapter == adapter]
    return next((short for short in fitting if not RECIPES[short].groups), fitting[0])


def ordered(trainers: list[str]) -> list[str]:
    """Class names, those first that others start from; other trainers last.

    Raises:
        ValueError: if a trainer is named twice.
    """
    names = [full_name(trainer) for trainer in trainers]
    if len(set(names)) != len(names):
        raise ValueError(f"a trainer is named twice in {trainers}")
    order = list(SHORT_NAMES.values())
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def study_arms(studies: list[str], start: str) -> list[str]:
    """Short names of all arms of the studies, each once, in the order in which they start from each other.

    Args:
        studies: keys of :data:`STUDIES`.
        start: the arm that the others start from, ``Original`` or ``Full``.
    """
    wanted = {start, *(arm for study in studies for arm in STUDIES[study])}
    return [short for short in SHORT_NAMES if short in wanted]


BASE_PLANS = "nnUNetPlans"
BUDGET_PLANS = "nnUNetTimeBudgetPlans"


def plans_of(trainer: str, plans: str) -> str:
    """Stock trainers keep nnU-Net's own plans; the time-limited one has a copy that holds its limit."""
    if "SAM3D" in trainer:
        return plans
    return BUDGET_PLANS if trainer == TIME_BUDGET else BASE_PLANS


def check_trainers(names: Sequence[str]) -> None:
    """Raises ValueError for names that are neither short names nor trainers that nnU-Net knows, for all at once."""
    unknown = []
    for name in dict.fromkeys(names):
        try:
            trainer_class(full_name(name))
        except ValueError:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"nnU-Net knows no trainer {' and no trainer '.join(map(repr, unknown))}. Give one of "
            f"{', '.join(SHORT_NAMES)}, or the class name of a trainer"
        )


@cache
def trainer_class(name: str) -> type:
    """The class that nnU-Net finds by a trainer's name.

    Raises:
        ValueError: if it knows none.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    for module in list(sys.modules.values()):
        # the search asks as well, and fails if a module (one of transformers', say) imports others to answer
        with contextlib.suppress(ImportError):
            getattr(module, "__file__", None)
    try:
        # the search reports every file it looks into, and imports modules that warn
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise ValueError(f"nnU-Net knows no trainer {name!r}") from error
