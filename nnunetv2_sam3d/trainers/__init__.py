"""The trainers that nnU-Net finds by name."""

from nnunetv2_sam3d.trainers.time_budget import nnUNetTrainer_TimeBudget
from nnunetv2_sam3d.trainers.variants import (
    nnUNetTrainer_SAM3DDualPath,
    nnUNetTrainer_SAM3DFull,
    nnUNetTrainer_SAM3DOriginal,
    nnUNetTrainer_SAM3DOriginalEval,
)

__all__ = [
    "nnUNetTrainer_SAM3DDualPath",
    "nnUNetTrainer_SAM3DFull",
    "nnUNetTrainer_SAM3DOriginal",
    "nnUNetTrainer_SAM3DOriginalEval",
    "nnUNetTrainer_TimeBudget",
]
