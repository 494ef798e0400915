"""The figures of a comparison, from the files that nnU-Net's commands left."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from nnunetv2_sam3d.experiment.comparison import Comparison
from nnunetv2_sam3d.experiment.steps import Record
from nnunetv2_sam3d.text_table import markdown_table
from nnunetv2_sam3d.weights.checkpoint_file import read_checkpoint
from nnunetv2_sam3d.weights.describe import parameters, training_seconds


@dataclass(frozen=True)
class Row:
    """One trainer's figures.

    Attributes:
        trainer: class name.
        validation_dice: mean Dice over the validation cases, by label name; ``None`` where no case counts.
        unseen_dice: the same for the cases of ``imagesTs``; empty without such.
        training_seconds: time of all epochs.
        trained_parameters: how many numbers the optimizer changed.
        all_parameters: size of the network.
        peak_rss_bytes: peak resident memory of the training and validation process.
    """

    trainer: str
    validation_dice: dict[str, float | None]
    unseen_dice: dict[str, float | None]
    training_seconds: float
    trained_parameters: int
    all_parameters: int
    peak_rss_bytes: int


def collect(comparison: Comparison, record: Record) -> list[Row]:
    """Reads the finished trainings of a comparison."""
    rows = []
    for trainer in comparison.trainers:
        folder = comparison.fold_folder(trainer)
        checkpoint = read_checkpoint(folder / "checkpoint_final.pth")
        trained, total = parameters(checkpoint)
        unseen = comparison.test_folder(trainer) / "summary.json"
        rows.append(
            Row(
                trainer,
                _dice(folder / "validation" / "summary.json", comparison.raw),
                _dice(unseen, comparison.raw) if unseen.is_file() else {},
                round(training_seconds(checkpoint), 1),
                trained,
                total,
                int(record.steps.get(f"train {trainer}", {}).get("peak_rss_bytes", 0)),
            )
        )
    return rows


def _dice(summary: Path, raw: Path) -> dict[str, float | None]:
    """Mean Dice by label name from nnU-Net's summary; nnU-Net leaves cases out that are empty in both."""
    labels = json.loads((raw / "dataset.json").read_text())["labels"]
    names = {str(tuple(value) if isinstance(value, list) else value): name for name, value in labels.items()}
    mean = json.loads(summary.read_text())["mean"]
    dice = {names.get(key, key): value["Dice"] for key, value in mean.items()}
    return {name: None if value is None or value != value else float(value) for name, value in dice.items()}


def as_markdown(rows: list[Row]) -> str:
    """The table, for the terminal and for documents."""
    validation = list(rows[0].validation_dice)
    unseen = next((list(row.unseen_dice) for row in rows if row.unseen_dice), [])
    header = [
        "trainer",
        *(f"{name} (val)" for name in validation),
        *(f"{name} (unseen)" for name in unseen),
        "training [s]",
        "trained parameters",
        "peak memory [GB]",
    ]
    table = [
        [
            row.trainer.removeprefix("nnUNetTrainer_"),
            *(_number(row.validation_dice.get(name)) for name in validation),
            *(_number(row.unseen_dice.get(name)) for name in unseen),
            f"{row.training_seconds:.0f}",
            f"{row.trained_parameters:,} ({100 * row.trained_parameters / row.all_parameters:.0f} %)",
            f"{row.peak_rss_bytes / 1e9:.1f}" if row.peak_rss_bytes else "-",
        ]
        for row in rows
    ]
    return markdown_table(header, table)


def _number(dice: float | None) -> str:
    return "-" if dice is None else f"{dice:.3f}"


def write(rows: list[Row], folder: Path) -> Path:
    """Writes ``results.json`` and ``results.md``; returns the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    file = folder / "results.md"
    file.write_text(
        "Dice by nnU-Net (mean over cases; cases empty in both masks left out), no clicks.\n\n"
        + as_markdown(rows)
        + "\n"
    )
    return file
