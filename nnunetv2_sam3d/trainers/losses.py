"""The reference's loss on nnU-Net's targets."""

from __future__ import annotations

from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor, nn

WEIGHT_DICE = 0.5
WEIGHT_CE = 0.5


class DiceCELoss(nn.Module):
    """0.5 Dice + 0.5 cross-entropy in training mode, the Dice loss alone in evaluation mode.

    Dice is taken over the foreground (no background) and counted as ``1 - Dice``. With regions, Dice and binary
    cross-entropy act on each region. Ignored voxels count in neither. All of it is nnU-Net's own loss; this class
    weights it as the reference does (with regions and an ignore label, nnU-Net's cross-entropy is the sum over the
    regions, not their mean) and switches the cross-entropy off for validation.

    Source: Gong et al., arXiv:2306.13465, section 4.1 (MONAI's DiceCELoss there).

    Args:
        labels: nnU-Net's label manager: regions and ignore label.
        batch_dice: Dice over the whole batch instead of each sample, as in the plans.
        ddp: whether batch Dice spans several processes.

    Attributes:
        is_mean_of_samples: whether the loss of a batch is the mean of the losses of its samples.

    Shape:
        logits: (B, classes, D, H, W); target: (B, 1, D, H, W), or (B, regions, D, H, W) -> scalar
    """

    def __init__(self, labels: LabelManager, batch_dice: bool, ddp: bool = False) -> None:
        super().__init__()
        self.is_mean_of_samples = not batch_dice and not labels.has_ignore_label
        dice = {"batch_dice": batch_dice, "smooth": 1e-5, "ddp": ddp, "do_bg": labels.has_regions}
        self.loss: DC_and_BCE_loss | DC_and_CE_loss
        if labels.has_regions:
            self.loss = DC_and_BCE_loss(
                {}, dice, use_ignore_label=labels.has_ignore_label, dice_class=MemoryEfficientSoftDiceLoss
            )
        else:
            self.loss = DC_and_CE_loss(
                dice, {}, ignore_label=labels.ignore_label, dice_class=MemoryEfficientSoftDiceLoss
            )

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        self.loss.weight_dice = WEIGHT_DICE if self.training else 1.0
        self.loss.weight_ce = WEIGHT_CE if self.training else 0.0
        # nnU-Net's Dice loss is -Dice; the constant makes the number the reference's and changes no gradient
        return self.loss(logits, target) + self.loss.weight_dice
