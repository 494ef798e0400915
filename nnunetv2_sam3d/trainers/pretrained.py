"""``nnUNetv2_train -pretrained_weights FILE`` for the SAM3D trainers.

nnU-Net loads the file into the finished network with a loader of its own. That loader unpickles without restriction,
refuses a file with other adapters, and never takes the last convolution, which a frozen decoder needs. DDP and the
optimizer also have to know before which parameters the file leaves to be trained. So the SAM3D trainers get the file's
name and read it themselves; the function of ``nnunetv2.run.run_training`` that decides this is replaced by one that
asks whose trainer it is.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType

from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_sam3d.trainers.sam3d_trainer import nnUNetTrainer_SAM3D

NAME = "maybe_load_checkpoint"


def read_by_the_trainer(module: ModuleType) -> None:
    """Replaces :data:`NAME` in nnU-Net's module of the training command, once."""
    stock = getattr(module, NAME)
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def maybe_load_checkpoint(
        nnunet_trainer: nnUNetTrainer,
        continue_training: bool,
        validation_only: bool,
        pretrained_weights_file: str | None = None,
    ) -> None:
        is_start = pretrained_weights_file and not continue_training and not validation_only
        if not is_start or not isinstance(nnunet_trainer, nnUNetTrainer_SAM3D):
            stock(nnunet_trainer, continue_training, validation_only, pretrained_weights_file)
            return
        nnunet_trainer.pretrained_weights = pretrained_weights_file
        nnunet_trainer.initialize()

    setattr(module, NAME, maybe_load_checkpoint)


read_by_the_trainer(run_training)
# "python -m nnunetv2.run.run_training" runs a second copy of the module, called __main__.
if getattr(sys.modules["__main__"], "__file__", None) == run_training.__file__:
    read_by_the_trainer(sys.modules["__main__"])
