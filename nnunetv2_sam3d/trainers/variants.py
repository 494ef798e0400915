"""The trainers; nnU-Net names results folders after the class, so every recipe is one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nnunetv2_sam3d.nnunet.layout import validation_summary
from nnunetv2_sam3d.nnunet.validation import take_over
from nnunetv2_sam3d.trainers import pretrained as pretrained
from nnunetv2_sam3d.trainers.names import SHORT_NAMES
from nnunetv2_sam3d.trainers.recipes import RECIPES
from nnunetv2_sam3d.trainers.sam3d_trainer import nnUNetTrainer_SAM3D
from nnunetv2_sam3d.trainers.schedule import LinearDecay
from nnunetv2_sam3d.trainers.time_budget import nnUNetTrainer_TimeBudget


class EvaluatingTrainer(nnUNetTrainer_SAM3D):
    """A finished model: nothing is trained, nnU-Net validates it, the reference's test follows."""

    is_ddp: bool  # nnU-Net's

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 0
        self.loaded_finished = False

    def initialize(self) -> None:
        """nnU-Net's, without DDP's wrapper, which refuses a network of which nothing is trained."""
        with self._unwrapped():
            super().initialize()

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """The other trainers', into the network without wrapper."""
        with self._unwrapped():
            super().load_checkpoint(filename_or_checkpoint)
        self.loaded_finished = True

    @contextmanager
    def _unwrapped(self) -> Iterator[None]:
        """nnU-Net wraps, and looks for a wrapper, where ``is_ddp`` says so; its validation shares out the cases."""
        is_ddp, self.is_ddp = self.is_ddp, False
        try:
            yield
        finally:
            self.is_ddp = is_ddp

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, LinearDecay]:
        """An optimizer of nothing, since nnU-Net's checkpoints hold one."""
        self.prepare_parameters()
        nothing = torch.optim.AdamW([torch.nn.Parameter(torch.empty(0))], lr=self.initial_lr)
        return nothing, LinearDecay(nothing, self.initial_lr, 1)

    def get_dataloaders(self) -> tuple[None, None]:
        """No workers; only the mirroring axes, which nnU-Net sets on the way to its loaders and inference needs."""
        self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return None, None

    def run_training(self) -> None:
        """Loads, saves as finished, and leaves the validation to nnU-Net."""
        self.on_train_start()
        self.logger.plot_progress_png(self.output_folder)
        self.on_train_end()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's automatic validation, then the reference's test with clicks in a folder of its own.

        A validation of the same model next door, made under the same conditions, is copied instead of repeated, but
        not for ``--val`` and ``--c``, which load the finished checkpoint.
        """
        if not self._took_over(save_probabilities):
            super().perform_actual_validation(save_probabilities)
        if self.local_rank == 0:
            self._run_reference_protocol()

    def _took_over(self, save_probabilities: bool) -> bool:
        start = self.start
        assert start is not None
        if self.is_ddp or self.loaded_finished or len(start.files) != 1:
            return False
        source, own = Path(start.files[0]).parent, Path(self.output_folder)
        if not validation_summary(source).is_file():
            return False
        reason = take_over(own, source, self.validation_conditions(), probabilities=save_probabilities)
        if reason is None:
            self.print_to_log_file(
                f"Validation taken over from {source}: same weights, plans, settings, cases and versions. "
                f"nnUNetv2_train ... --val computes it anew.",
                also_print_to_console=True,
            )
            mean = json.loads(validation_summary(own).read_text("utf-8"))["foreground_mean"]["Dice"]
            for line in (("Validation complete",), ("Mean Validation Dice: ", mean)):  # as nnU-Net says it
                self.print_to_log_file(*line, also_print_to_console=True)
        else:
            self.print_to_log_file(f"The validation of {source} is not taken over: {reason}")
        return reason is None

    def _run_reference_protocol(self) -> None:
        # here, so that nnUNetv2_predict, which imports the trainers, does without
        from nnunetv2_sam3d.evaluation.click_test import as_text, run_protocol
        from nnunetv2_sam3d.evaluation.reference_protocol import ReferenceProtocol
        from nnunetv2_sam3d.nnunet.labels import find_target
        from nnunetv2_sam3d.nnunet.trained_fold import TrainedFold
        from nnunetv2_sam3d.weights.reading import load_model

        try:
            fold = TrainedFold(Path(self.output_folder_base), int(self.fold))
            protocol = ReferenceProtocol(
                find_target(self.dataset_json["labels"]),
                self.label_manager,
                tuple(self.configuration_manager.patch_size),
            )
            # as the command does, in float32 on every machine
            network = load_model(fold.checkpoint, self.device)
            summary = run_protocol(fold, protocol, network, self.device, overwrite=True)
        except (ValueError, RuntimeError, OSError) as error:  # the validation is done; the command can be run alone
            self.print_to_log_file(
                f"The reference's test protocol was not run: {error} Run it with: nnUNetv2_sam3d evaluate "
                f"{self.output_folder_base} -f {self.fold} --protocol reference",
                also_print_to_console=True,
            )
            return
        self.print_to_log_file(as_text(summary), also_print_to_console=True)


# A recipe is all in which trainers differ.
for _short, _recipe in RECIPES.items():
    globals()[SHORT_NAMES[_short]] = type(
        SHORT_NAMES[_short],
        (nnUNetTrainer_SAM3D if _recipe.groups else EvaluatingTrainer,),
        {"recipe": _recipe, "__doc__": _recipe.question, "__module__": __name__},
    )

__all__ = [nnUNetTrainer_TimeBudget.__name__, *(SHORT_NAMES[short] for short in RECIPES)]  # noqa: PLE0604
