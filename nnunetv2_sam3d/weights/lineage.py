"""Whether a trained fold still belongs to the model of the same data set that it started from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nnunetv2_sam3d.files import sha256
from nnunetv2_sam3d.nnunet.layout import FINAL
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.reading import read_weights


@dataclass(frozen=True)
class FoldStart:
    """The finished model of the same fold that a training started from.

    Attributes:
        file: where it stands beside the training's own model, or should.
        sha256: of the file as it was then.
        frozen: weights of the training that it took over and did not change.
    """

    file: Path
    sha256: str
    frozen: Mapping[str, Tensor]

    @property
    def model(self) -> str:
        """nnU-Net's ``TRAINER__PLANS__CONFIGURATION``."""
        return self.file.parents[1].name

    @property
    def replaced(self) -> bool:
        """Whether the file is another model now.

        Weights decide and not bytes: nnU-Net writes the file anew when a finished training is run once more.
        """
        if not self.file.is_file() or sha256(self.file) == self.sha256:
            return False
        now = read_weights(self.file).state
        return not all(name in now and torch.equal(tensor, now[name]) for name, tensor in self.frozen.items())


def start_of(checkpoint: Path) -> FoldStart | None:
    """The model that a trained fold says it started from, ``DATASET/MODEL/fold_N/checkpoint_final.pth``.

    It is looked for beside the fold's own model, also after the results were moved or copied.

    Returns:
        ``None`` for any other start, and for checkpoints that no trainer of this package wrote.
    """
    try:
        weights = read_weights(checkpoint)
    except WeightsError:
        return None
    fold = checkpoint.parent
    results = fold.parents[1]
    for record in weights.metadata.get("provenance", {}).values():
        *_, dataset, model, of_fold, file = ("", "", "", "", *Path(str(record.get("file", ""))).parts)
        if (dataset, of_fold, file) == (results.name, fold.name, FINAL) and model != fold.parent.name:
            trained = set(weights.metadata.get("trained", ()))
            frozen = {name: tensor for name, tensor in weights.state.items() if name not in trained}
            return FoldStart(results / model / fold.name / FINAL, record["sha256"], frozen)
    return None
