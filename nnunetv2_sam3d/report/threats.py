"""Threats to validity, made from what was not run and from what differs besides the adapter."""

from __future__ import annotations

from collections.abc import Iterator

from nnunetv2_sam3d.report.arms import start_of_arm
from nnunetv2_sam3d.report.gates import unmeasured
from nnunetv2_sam3d.report.request import Results
from nnunetv2_sam3d.report.study import crossval_of, question_of
from nnunetv2_sam3d.report.tables import listed
from nnunetv2_sam3d.report.training_record import Training
from nnunetv2_sam3d.results.statistics import FEW_CASES
from nnunetv2_sam3d.trainers.names import recipe_of

LIKE = 0.01  # parameters that differ by less are as many


def threats(results: Results) -> list[str]:
    """Each in one or two sentences, the gravest first."""
    return [
        *_controls(results),
        *_repeats(results),
        *_folds_and_cases(results),
        *_starts(results),
        *_confounds(results),
        *_not_run(results),
    ]


def _controls(results: Results) -> Iterator[str]:
    lacking = {name: control for name, control in results.wanted_controls.items() if name not in results.controls}
    for control in dict.fromkeys(lacking.values()):
        arms = [name for name, wanted in lacking.items() if wanted == control]
        yield (
            f"No control: {listed(arms)} is to be compared with {control}, not in this report. What the "
            f"figures of {listed(arms)} owe to the adapter, to longer training or to more parameters cannot be told."
        )
    if results.controls:
        known = {*results.wanted_controls, *results.controls.values(), *map(start_of_arm, results.trainings)}
        if alone := [name for name in results.names if name not in known]:
            yield f"{listed(alone)} has no declared control and is no control here: it is compared with nothing."


def _repeats(results: Results) -> Iterator[str]:
    once = [model.name for model in results.models if len(model.repeats) == 1]
    if once:
        who = "every arm" if len(once) == len(results.models) and len(once) > 1 else listed(once, len(once))
        verb = "was" if who == "every arm" or len(once) == 1 else "were"
        yield (
            f"One repeat only: {who} {verb} trained once a fold. Training noise is left out of the intervals but "
            f"for what the folds tell; another training would move the figures. More repeats: "
            f"{crossval_of(results, 3)}"
        )
    if len({model.repeats for model in results.models}) > 1:
        numbers = ", ".join(f"{model.name} {len(model.repeats)}" for model in results.models)
        yield f"Unlike numbers of repeats ({numbers}): two arms are compared on the repeats that both have."
    yield from results.notes


def _folds_and_cases(results: Results) -> Iterator[str]:
    cases = results.cases
    if len(results.folds) < len(results.dataset.splits):
        yield (
            f"Not all folds: {len(results.folds)} of {len(results.dataset.splits)}. The figures are of {cases} cases "
            f"and stand for these only."
        )
    if len(results.folds) == 1:
        yield "With one fold there is no standard deviation over folds."
    if cases < FEW_CASES:
        yield (
            f"Only {cases} cases: intervals and tests of so few can hardly show anything. Read the "
            f"single cases instead."
        )
    yield "One data set, and no cases beside those of the folds: other scanners, hospitals and organs are not tested."


def _starts(results: Results) -> Iterator[str]:
    for name, start in sorted({(run.model, run.start) for run in results.trainings if run.start_replaced}):
        folds = sorted({run.fold for run in results.trainings if run.start_replaced and run.model == name})
        yield (
            f"{name} started from {start}, which has been trained again since in these folds: "
            f"{', '.join(map(str, folds))}. Results of both do not belong together."
        )
    if len({model.plans for model in results.models}) > 1:
        plans = ", ".join(f"{model.name}: {model.plans}" for model in results.models)
        yield f"The models have different plans ({plans}), so that spacing and patch may differ, too."


def _confounds(results: Results) -> Iterator[str]:
    """What differs between compared arms besides what the comparison asks about."""
    runs: dict[str, Training] = {}
    for run in results.trainings:
        runs.setdefault(run.model, run)
    recipes = {model.name: recipe_of(model.trainer) for model in results.models}
    for arm, control in results.controls.items():
        one, other = runs[arm], runs[control]
        recipe = recipes[arm]
        asked = recipe.asks_about if recipe else ()
        differs = []
        if "trained parameters" not in asked and one.trained is not None and other.trained is not None:
            if _unlike(one.trained, other.trained):
                differs.append(f"trained parameters ({one.trained:,} against {other.trained:,})")
        if None not in (one.steps, other.steps) and one.steps != other.steps and "steps" not in asked:
            differs.append(f"steps ({one.steps:,} against {other.steps:,})")
        for what, mine, its in (("device", one.device, other.device), ("PyTorch", one.torch, other.torch)):
            if mine and its and mine != its:
                differs.append(f"{what} ({mine} against {its})")
        if differs:
            yield f"{arm} and its control {control} differ in {listed(differs, 4)}."


def _unlike(one: int, other: int) -> bool:
    return abs(one - other) > LIKE * max(one, other)


def _not_run(results: Results) -> Iterator[str]:
    for arm, why in results.absent.items():
        question = question_of(arm)
        yield f"Not in this report: {arm} ({why}). " + (f"Left open: {question}" if question else "")
    if results.absent:
        yield f"The rest is done by: {crossval_of(results)}"
    if results.study and all(model.trainer.startswith("nnUNetTrainer_SAM3D") for model in results.models):
        yield "No nnU-Net of equal memory (such as ResEnc-M) is in this report: nothing tells how the arms stand to it."
    if not results.clicked:
        yield "Automatic results only: nothing was evaluated with clicks."
    elif any(len(model.repeats) > 1 for model in results.models):
        yield "Results with clicks are of the first repeat only."
    if sentence := unmeasured(results.gates):
        yield f"Mechanism not shown: {sentence[0].lower()}{sentence[1:]}"
