"""The module in which nnU-Net's search by name finds the trainers of the installed package.

nnU-Net imports every module of this folder as a top-level one and forgets it after the search. The folder must
therefore hold nothing but this forwarding module: anything defined here could come to exist twice in a process.
"""

try:
    from nnunetv2_sam3d.trainers.variants import *  # noqa: F403
except ModuleNotFoundError as error:
    # A Python of another environment can inherit the variable that points here. It must still find its own trainers.
    if error.name != "nnunetv2_sam3d":
        raise
