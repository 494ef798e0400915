"""Importing this module makes nnU-Net find the trainers of this package.

nnU-Net looks for trainers outside its own package in the folders that the environment variable ``nnUNet_extTrainer``
lists. This module adds the folder ``_nnunet_ext`` to it. The installed file ``nnunetv2_sam3d.pth`` imports it whenever
a Python process of the environment starts, so nothing needs to be set by hand. For the same reason it may import only
what every Python process has loaded anyway.
"""

import os

VARIABLE = "nnUNet_extTrainer"
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_nnunet_ext")


def with_our_folder(value: str) -> str:
    """Returns the list of folders ``value`` with ours as the last one, or unchanged if it already has ours.

    Ours is there already in child processes, which inherit the variable. What the user listed comes first and is kept
    as it is: nnU-Net takes the first folder that has the trainer.
    """
    if FOLDER in value.split(os.pathsep):
        return value
    separator = os.pathsep if value and not value.endswith(os.pathsep) else ""
    return value + separator + FOLDER


os.environ[VARIABLE] = with_our_folder(os.environ.get(VARIABLE, ""))
