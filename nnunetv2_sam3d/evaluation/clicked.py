"""Metrics that were reached with clicks, as the test protocols leave them beside nnU-Net's automatic ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from nnunetv2_sam3d.evaluation.reference_protocol import ReferenceProtocol
from nnunetv2_sam3d.evaluation.whole_volume import WholeVolumeProtocol
from nnunetv2_sam3d.files import sha256
from nnunetv2_sam3d.json_files import read_json
from nnunetv2_sam3d.nnunet.layout import fold_folder
from nnunetv2_sam3d.results.hierarchical import estimate
from nnunetv2_sam3d.results.trained_models import Dataset, RepeatedModel

SUMMARY = "summary_with_clicks.json"
FOLDERS = (ReferenceProtocol.folder, WholeVolumeProtocol.folder, WholeVolumeProtocol.only_clicked_folder)


@dataclass(frozen=True)
class ClickedCase:
    """One case with one number of clicks.

    Attributes:
        model: name.
        fold: whose validation case it is.
        case: nnU-Net's identifier.
        clicks: how many.
        metrics: by name, such as ``Dice`` and ``NSD 5 mm``.
    """

    model: str
    fold: int
    case: str
    clicks: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class ClickedResults:
    """All results of one protocol with the same settings.

    Attributes:
        protocol: its name.
        settings: everything that the metrics depend on beside model, data and number of clicks.
        cases: in the order of models, folds, cases and numbers of clicks.
        left_out: by case, why it is in no mean.
    """

    protocol: str
    settings: Mapping[str, Any]
    cases: list[ClickedCase] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> tuple[str, str]:
        """Names of the metrics that tables and plots show: Dice, and surface Dice at the chosen tolerance."""
        return "Dice", next(iter(self.settings["tolerances_mm"]))


@dataclass(frozen=True)
class ClickedSummary:
    """One metric of one model with one number of clicks.

    Attributes:
        model: name.
        clicks: how many.
        metric: name.
        mean: over the cases.
        low: lower end of the 95 % interval of the mean, over folds and cases.
        high: upper end.
        cases: their number.
        folds: whose cases they are.
    """

    model: str
    clicks: int
    metric: str
    mean: float
    low: float
    high: float
    cases: int
    folds: tuple[int, ...]


def collect_clicked(dataset: Dataset, models: Sequence[RepeatedModel], folds: Sequence[int]) -> list[ClickedResults]:
    """What the protocols have finished, from their own folders in the folds; unfinished runs have no summary yet.

    Results of other settings (target, seed, crop, tolerance) are not put together.

    Raises:
        ValueError: for damaged summaries, and for those of another split or checkpoint than the fold's.
    """
    found: dict[str, ClickedResults] = {}
    for folder in FOLDERS:
        for model in models:
            for fold in folds:
                file = fold_folder(model.folder, fold) / folder / SUMMARY
                if file.is_file():
                    summary = read_json(file)
                    try:
                        _check(file, summary, dataset.splits[fold]["val"])
                        one = results_of(summary, model.name, fold)
                    except (KeyError, TypeError, AttributeError) as error:
                        raise ValueError(f"{file} is no summary that nnUNetv2_sam3d evaluate has written") from error
                    key = json.dumps([one.protocol, one.settings], sort_keys=True)
                    together = found.setdefault(key, ClickedResults(one.protocol, one.settings))
                    together.cases.extend(one.cases)
                    together.left_out.update(one.left_out)
    return list(found.values())


def click_folder(model: RepeatedModel, fold: int, results: ClickedResults) -> Path:
    """Where the whole-volume protocol has left such results of a fold."""
    only = results.settings.get("only_clicked")
    name = WholeVolumeProtocol.only_clicked_folder if only else WholeVolumeProtocol.folder
    return fold_folder(model.folder, fold) / name


def results_of(summary: Mapping[str, Any], model: str, fold: int) -> ClickedResults:
    """The content of a summary, which is of one model and fold; its means are not looked at."""
    cases = [
        ClickedCase(model, fold, case, int(count), metrics)
        for case, counts in summary["per_case"].items()
        for count, metrics in counts.items()
    ]
    settings = {key: value for key, value in summary["settings"].items() if key != "click_counts"}
    return ClickedResults(summary["protocol"], settings, cases, dict(summary["cases_left_out"]))


def clicks_frame(clicked: Sequence[ClickedResults]) -> pd.DataFrame:
    """The lines of ``clicks.csv``: one for each metric of each case with each number of clicks, model and protocol."""
    columns = ["protocol", "target", "seed", "model", "fold", "case", "mode", "clicks", "metric", "value"]
    lines = [
        (results.protocol, results.settings["target"], results.settings["seed"], entry.model, entry.fold, entry.case,
         "clicked" if entry.clicks else "automatic", entry.clicks, *metric)
        for results in clicked
        for entry in results.cases
        for metric in entry.metrics.items()
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=columns)


def summarise_clicked(results: ClickedResults) -> list[ClickedSummary]:
    """Means over the cases with intervals; in the order of models, numbers of clicks and metrics."""
    summaries = []
    for model, own in clicks_frame([results]).groupby("model", sort=False):
        by_clicks = own.sort_values("clicks", kind="stable").groupby(["clicks", "metric"], sort=False)
        for (clicks, metric), cases in by_clicks:
            found = estimate(cases["value"].to_numpy()[None], cases["fold"].to_numpy())
            low, high = map(float, found.interval())
            folds = tuple(sorted(set(cases["fold"])))
            summary = ClickedSummary(model, int(clicks), metric, float(found.mean), low, high, len(cases), folds)
            summaries.append(summary)
    return summaries


def _check(file: Path, summary: Mapping[str, Any], validation: Sequence[str]) -> None:
    """Raises ValueError if a summary is not of these cases and of the checkpoint that lies beside it now."""
    remedy = (
        f"Run it again: nnUNetv2_sam3d evaluate {file.parents[2]} -f {file.parents[1].name[5:]} "
        f"--protocol {summary['protocol']} --overwrite"
    )
    if sorted(summary["validation_cases"]) != sorted(validation):
        raise ValueError(f"{file} is of other validation cases than the fold has in splits_final.json. {remedy}")
    checkpoint = file.parents[1] / Path(summary["provenance"]["checkpoint"]).name
    if checkpoint.is_file() and sha256(checkpoint) != summary["checkpoint_sha256"]:
        raise ValueError(f"{file} is of another checkpoint than the {checkpoint.name} that is there now. {remedy}")
