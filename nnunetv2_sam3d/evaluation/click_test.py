"""Runs a protocol on a fold's validation cases; each case is kept as soon as it is done."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from nnunetv2_sam3d import __version__
from nnunetv2_sam3d.evaluation.clicked import SUMMARY, results_of, summarise_clicked
from nnunetv2_sam3d.evaluation.protocol import MASKS, PLACED, ClickProtocol, clicks_title
from nnunetv2_sam3d.files import content_sha256, sha256, write_json, write_text
from nnunetv2_sam3d.json_files import json_or_none, read_json
from nnunetv2_sam3d.nnunet.trained_fold import TrainedFold
from nnunetv2_sam3d.results.measure import told_apart
from nnunetv2_sam3d.text_table import markdown_table

TABLE = "summary_with_clicks.md"
DRAWN = ("metrics.csv", "curves.svg", "curves.png")  # what the command makes of the summary
NOTE = (
    "What was reached with clicks was reached with clicks placed on the ground truth. It may not stand in one column "
    "with metrics of automatic segmentation, such as those in nnU-Net's validation/summary.json."
)


def run_protocol(
    fold: TrainedFold,
    protocol: ClickProtocol,
    network: nn.Module,
    device: torch.device,
    *,
    output: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Runs what is missing and writes summary and tables; results with further numbers of clicks stay as they are.

    Args:
        fold: the trained fold; its validation cases are evaluated.
        protocol: how.
        network: its network, in evaluation mode on ``device``.
        device: where the network is.
        output: folder for the results; ``fold_N/`` and the protocol's by default.
        overwrite: replace results of other settings instead of refusing.

    Returns:
        the summary, as in ``summary_with_clicks.json``.

    Raises:
        ValueError: for a network that takes no clicks, missing data, and results of other settings in ``output``.
    """
    if getattr(network, "prompt_encoder", None) is None:
        raise ValueError(
            f"{fold.checkpoint} has no prompt encoder (the reference's automatic variant) and takes no clicks; the "
            f"protocol {protocol.name} needs some. nnU-Net's validation has the metrics of automatic models."
        )
    cases = fold.validation_cases()
    output = output or fold.folder / protocol.folder
    run = {
        "protocol": protocol.name,
        "settings": protocol.settings(),
        "checkpoint_sha256": sha256(fold.checkpoint),
        "validation_cases": cases,
        "data": fold.configuration.data_identifier,
        "spacing_mm": list(fold.configuration.spacing),
        "plans_sha256": sha256(fold.model / "plans.json"),
    }
    if (more := _with_more_clicks(output, run)) is not None:
        run, protocol = more, replace(protocol, click_counts=tuple(more["settings"]["click_counts"]))  # type: ignore[type-var]
    _claim(output, run, overwrite)
    files = {case: output / "cases" / f"{case}.json" for case in cases}
    counts = [str(count) for count in run["settings"]["click_counts"]]
    missing = [case for case in cases if not _is_record(json_or_none(files[case]), case, counts)]

    predictor = protocol.predictor(network, device)
    with tqdm(
        total=len(cases), initial=len(cases) - len(missing), desc=f"{protocol.name} protocol, fold {fold.fold}",
        unit="case", file=sys.stdout,
    ) as bar:  # fmt: skip
        for volume in fold.volumes(missing):
            record = {"case": volume.case, **protocol.evaluate(predictor, volume)}
            write_json(files[volume.case], record | {"sha256": content_sha256(record)})
            bar.update()
    records = [read_json(files[case]) for case in cases]
    summary = summarize(run | {"note": NOTE, "provenance": fold_provenance(fold, device)}, records)
    write_json(output / SUMMARY, summary)
    write_text(output / TABLE, as_text(summary, per_case=True))
    return summary


def summarize(run: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A run with the metrics of its cases, their means by number of clicks, and 95 % intervals.

    Cases that were left out are in no mean, and named; of a single case there is no interval (``None``).
    """
    evaluated = [record for record in records if "left_out" not in record]
    summary = {
        **run,
        "cases_evaluated": len(evaluated),
        "cases_left_out": {record["case"]: record["left_out"] for record in records if "left_out" in record},
        "mean": {},
        "interval_95": {},
        "per_case": {
            record["case"]: {count: _metrics_of(entry) for count, entry in record["clicks"].items()}
            for record in evaluated
        },
    }
    if apart := {record["case"]: record["voxels_apart"] for record in evaluated if record.get("voxels_apart")}:
        summary["annotations_apart_voxels"] = apart
    source = run["provenance"]
    for entry in summarise_clicked(results_of(summary, source["model"], source["fold"])):
        count, ends = str(entry.clicks), None if math.isnan(entry.low) else [entry.low, entry.high]
        summary["mean"].setdefault(count, {})[entry.metric] = entry.mean
        summary["interval_95"].setdefault(count, {})[entry.metric] = ends
    return summary


def as_text(summary: Mapping[str, Any], *, per_case: bool = False) -> str:
    """The tables, for the terminal and for documents."""
    settings = summary["settings"]
    source = summary["provenance"]
    lines = [
        f"Protocol {summary['protocol']}, WITH CLICKS on the ground truth "
        f"({'but for the column automatic' if '0' in summary['mean'] else 'not automatic'}): "
        f"{settings['target']} (labels {', '.join(map(str, settings['target_labels']))}), "
        f"fold {source['fold']} of {source['model']}, {summary['cases_evaluated']} of "
        f"{len(summary['validation_cases'])} validation cases, {settings_in_words(settings)}, seed {settings['seed']}, "
        f"voxels of {summary['spacing_mm']} mm for the network; mean over the cases with 95 % interval over folds "
        "and cases.",
        "",
        _mean_table(summary),
    ]
    if summary["cases_left_out"]:
        left_out = ", ".join(f"{case} ({reason})" for case, reason in summary["cases_left_out"].items())
        lines += ["", f"Left out, counted in no mean: {left_out}."]
    if apart := summary.get("annotations_apart_voxels"):
        lines += ["", told_apart(apart)]
    if per_case:
        lines += ["", _case_table(summary), "", NOTE]
    return "\n".join(lines) + "\n"


def settings_in_words(settings: Mapping[str, Any]) -> str:
    """What was predicted, and how it was clicked on."""
    if "crop_size" in settings:
        return f"one crop of {'x'.join(map(str, settings['crop_size']))} voxels around random clicks"
    kind = "signed clicks" if settings["signed_clicks"] else "foreground clicks"
    if settings.get("only_clicked"):
        kind += ", with clicks only what was clicked on"
    return f"the whole volume, {kind}, the first in the target's middle, later ones in that of the largest error"


def fold_provenance(fold: TrainedFold, device: torch.device) -> dict[str, Any]:
    """What computed the metrics: model, device, versions."""
    return {
        "model": fold.model.name,
        "dataset": fold.plans.dataset_name,
        "fold": fold.fold,
        "checkpoint": str(fold.checkpoint.absolute()),
        "plans_sha256": sha256(fold.model / "plans.json"),
        "device": str(device),
        "versions": {
            "nnunetv2_sam3d": __version__,
            **{name: version(name) for name in ("nnunetv2", "torch", "numpy", "surface-distance")},
        },
    }


def _is_record(content: Any, case: str, counts: Sequence[str]) -> bool:
    """Whether a case's file holds what a protocol has found; what anything else holds is made again."""
    if not isinstance(content, Mapping) or content.get("case") != case:
        return False
    if content.get("sha256") not in (None, content_sha256(content)):  # earlier versions wrote none
        return False
    if "left_out" in content:
        return isinstance(content["left_out"], str)
    clicks = content.get("clicks")
    if not isinstance(clicks, Mapping) or not set(counts) <= set(clicks):
        return False
    metrics = [_metrics_of(entry) for entry in clicks.values()]
    names = {frozenset(each) if isinstance(each, Mapping) else None for each in metrics}
    values = [value for each in metrics if isinstance(each, Mapping) for value in each.values()]
    return None not in names and len(names) == 1 and all(isinstance(value, int | float) for value in values)


def _metrics_of(entry: Any) -> Any:
    """The metrics of a case with one number of clicks; versions up to 0.2.0 called them figures."""
    return entry.get("metrics", entry.get("figures")) if isinstance(entry, Mapping) else None


def _same(found: Any, run: Mapping[str, Any]) -> bool:
    """Whether a note is of this run; those of earlier versions do not say the plans."""
    return isinstance(found, Mapping) and {"plans_sha256": run["plans_sha256"], **found} == run


def _with_more_clicks(output: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run of the folder if it is this one with further numbers of clicks: it has all that is asked."""
    found = json_or_none(output / "run.json")
    try:
        counts = found["settings"]["click_counts"]
        same = _same(found, {**run, "settings": {**run["settings"], "click_counts": counts}})
        return found if same and set(counts) > set(run["settings"]["click_counts"]) else None
    except (KeyError, TypeError):
        return None


def _claim(output: Path, run: Mapping[str, Any], overwrite: bool) -> None:
    """Notes in the folder what its results are of; refuses a folder of other results."""
    note = output / "run.json"
    if output.is_dir() and any(output.iterdir()):
        found = json_or_none(note)
        if _same(found, run):
            return
        if not isinstance(found, dict) or found.get("protocol") != run["protocol"]:
            raise ValueError(
                f"{output} holds other files than results of this command, or {note} is damaged or lost. Choose "
                f"another folder with -o, or move these files"
            )
        if not overwrite:
            theirs, ours = found.get("settings") or {}, run["settings"]
            differs = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
            changes = "; ".join(f"{key} {theirs.get(key)} instead of {ours.get(key)}" for key in differs)
            what = f"other settings ({changes})" if changes else "another checkpoint, plans, data or split"
            raise ValueError(
                f"{output} holds results of {what}. Choose another folder with -o, or replace them with --overwrite."
            )
        for name in ("cases", MASKS, PLACED):
            shutil.rmtree(output / name, ignore_errors=True)
        for name in (SUMMARY, TABLE, *DRAWN, "figures.csv"):  # metrics.csv up to version 0.2.0
            (output / name).unlink(missing_ok=True)
    write_json(note, run)


def _mean_table(summary: Mapping[str, Any]) -> str:
    mean, interval = summary["mean"], summary["interval_95"]
    if not mean:
        return "No case was evaluated."
    rows = []
    for name in next(iter(mean.values())):
        ends = [interval[count][name] for count in mean]
        texts = [f" [{end[0]:.3f}, {end[1]:.3f}]" if end else "" for end in ends]
        rows.append([name, *(f"{mean[count][name]:.3f}{text}" for count, text in zip(mean, texts, strict=True))])
    return markdown_table(["metric", *(clicks_title(int(count)) for count in mean)], rows)


def _case_table(summary: Mapping[str, Any]) -> str:
    rows = [
        [case, name, *(f"{by_count[count][name]:.3f}" for count in summary["mean"])]
        for case, by_count in summary["per_case"].items()
        for name in next(iter(by_count.values()))
    ]
    return markdown_table(["case", "metric", *(clicks_title(int(count)) for count in summary["mean"])], rows)
