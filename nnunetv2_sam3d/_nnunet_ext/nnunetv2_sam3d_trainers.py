"""The module in which nnU-Net's search by name finds the trainers of the installed package.

nnU-Net imports every module of this folder as a top-level one and forgets it after the search. The folder must
therefore hold nothing but this forwarding module: anything defined here could come to exist twice in a process.
"""

try:
    from nnunetv2_sam3d.trainers import (
        nnUNetTrainer_SAM3DDualPath,
        nnUNetTrainer_SAM3DFull,
        nnUNetTrainer_SAM3DOriginal,
        nnUNetTrainer_SAM3DOriginalEval,
        nnUNetTrainer_TimeBudget,
    )
except ModuleNotFoundError as error:
    # A Python of another environment can inherit the variable that points here. It must still find its own trainers.
    if error.name != "nnunetv2_sam3d":
        raise
else:
    __all__ = [
        "nnUNetTrainer_SAM3DDualPath",
        "nnUNetTrainer_SAM3DFull",
        "nnUNetTrainer_SAM3DOriginal",
        "nnUNetTrainer_SAM3DOriginalEval",
        "nnUNetTrainer_TimeBudget",
    ]
