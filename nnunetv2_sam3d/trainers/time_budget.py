"""Stock nnU-Net for a fixed time, so that it can stand beside other trainers at equal wall-clock."""

from __future__ import annotations

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_sam3d.settings import Settings
from nnunetv2_sam3d.trainers.cpu_process import prepare_process

UNLIMITED_EPOCHS = 1_000_000


class _BudgetSpent(Exception):
    """Ends nnU-Net's epoch loop."""


class nnUNetTrainer_TimeBudget(nnUNetTrainer):
    """nnU-Net's own trainer and network, stopped after the plans' ``max_seconds`` of epochs.

    The learning rate follows nnU-Net's polynomial, in the share of the time that is spent instead of the epochs.

    Raises:
        ValueError: if the plans hold no ``max_seconds``.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        prepare_process(device)
        settings = Settings.from_plans(self.configuration_manager.configuration)
        if settings.max_seconds is None:
            raise ValueError(
                "the plans set no max_seconds for nnUNetTrainer_TimeBudget; "
                "derive plans with: nnUNetv2_sam3d plan --max-seconds S"
            )
        self.max_seconds = settings.max_seconds
        self.num_epochs = UNLIMITED_EPOCHS
        self.num_iterations_per_epoch = settings.iterations_per_epoch
        self.num_val_iterations_per_epoch = settings.val_iterations_per_epoch

    def spent_s(self) -> float:
        """Seconds of all finished epochs, those before an interruption included."""
        log = self.logger.local_logger.my_fantastic_logging
        return sum(
            end - start for start, end in zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=False)
        )

    def on_train_epoch_start(self) -> None:
        """nnU-Net's, with the learning rate of the time spent."""
        super().on_train_epoch_start()
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial_lr * max(0.0, 1 - self.spent_s() / self.max_seconds) ** 0.9
        self.logger.local_logger.my_fantastic_logging["lrs"][-1] = self.optimizer.param_groups[0]["lr"]

    def on_epoch_end(self) -> None:
        """nnU-Net's; ends the training when the time is spent."""
        super().on_epoch_end()
        spent = [self.spent_s() >= self.max_seconds]
        if self.is_ddp:  # clocks differ; all processes do what the first one decides
            torch.distributed.broadcast_object_list(spent, src=0)
        if spent[0]:
            raise _BudgetSpent

    def run_training(self) -> None:
        """nnU-Net's, up to the limit."""
        try:
            super().run_training()
        except _BudgetSpent:
            self.on_train_end()
