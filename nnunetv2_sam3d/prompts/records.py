"""What the segmentations in a folder were made with, so that a prediction that is continued keeps the right ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.clicks.click import Click
from nnunetv2_sam3d.inference.click_predictor import ClickPredictor
from nnunetv2_sam3d.weights.files import sha256

FILE = "predict_sam3d.jsonl"
# What differs, in words for the user.
_WORDS = {
    "checkpoints": "model",
    "plans": "plans",
    "mirroring": "mirroring",
    "step_size": "step size",
    "clicks": "clicks",
    "only_clicked": "--only-clicked",
}


def settings_of(predictor: ClickPredictor) -> dict[str, Any]:
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


class Records:
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
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # cut off; its case is predicted again

    def difference(self, case: str, made_with: dict[str, Any]) -> str | None:
        """What differs from how the case was made, in words; ``None`` if nothing does."""
        before = self._cases.get(case)
        if not before:
            return "nothing says what made it"
        words = [_WORDS[key] for key in made_with if before.get(key) != made_with[key]]
        return f"different {', '.join(words)}" if words else None

    def begin(self, case: str) -> None:
        """The files of the case are about to be replaced: nobody knows what they are until :meth:`done`."""
        if case in self._cases:
            self.done(case, {})

    def done(self, case: str, made_with: dict[str, Any]) -> None:
        """The files of the case are there."""
        self._cases[case] = made_with
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"case": case} | made_with) + "\n")
