"""What nnU-Net asks of a trainer, for all SAM3D recipes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np
import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import autocast, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_sam3d import __version__
from nnunetv2_sam3d.clicks.simulation import SimulatedClicks
from nnunetv2_sam3d.files import json_hash
from nnunetv2_sam3d.network_architecture.prompt_encoder import is_addition
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.nnunet.labels import click_target
from nnunetv2_sam3d.nnunet.layout import FINAL
from nnunetv2_sam3d.nnunet.validation import note_validated
from nnunetv2_sam3d.nnunet.version import check_nnunet_version
from nnunetv2_sam3d.trainers.adapter_log import AdapterLog
from nnunetv2_sam3d.trainers.cpu_process import keep_large_tensors, look_seldom, prepare_process
from nnunetv2_sam3d.trainers.cpu_samples import SampleThreads, sample_threads
from nnunetv2_sam3d.trainers.losses import DiceCELoss
from nnunetv2_sam3d.trainers.preflight import check_foreground, checked_settings, decide_checkpointing
from nnunetv2_sam3d.trainers.recipes import Recipe, apply_freezing, clip_groups
from nnunetv2_sam3d.trainers.schedule import LinearDecay, adamw
from nnunetv2_sam3d.trainers.seeds import seed_loaders, seed_of_run, seed_process
from nnunetv2_sam3d.trainers.start import Run, Start, outputs_of
from nnunetv2_sam3d.trainers.training_clicks import AUTOMATIC_LOSSES, CLICKED_LOSSES, ClickSteps, seed_of
from nnunetv2_sam3d.weights.checkpoint_file import write_checkpoint
from nnunetv2_sam3d.weights.reading import FORMAT_VERSION, METADATA_KEY, Weights, read_weights
from nnunetv2_sam3d.weights.state_dict import SEG_LAYERS, state_hash
from nnunetv2_sam3d.weights.transfer import check_same_network


class nnUNetTrainer_SAM3D(nnUNetTrainer):
    """Base of the SAM3D trainers: network and settings from the plans, recipe from the class.

    nnU-Net keeps data loading, augmentation, validation, inference and export.

    Raises:
        NotImplementedError: for 2d and cascade configurations.
        ValueError: for settings or patch sizes that cannot work.
    """

    recipe: Recipe

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ):
        check_nnunet_version()
        prepare_process(device)  # before anything is computed, since threads that are there do not change
        # before nnU-Net makes folders for a run that cannot begin
        plans_manager = PlansManager(deepcopy(plans))
        settings = checked_settings(plans_manager.get_configuration(configuration), configuration)
        labels = plans_manager.get_label_manager(dataset_json)
        if not labels.foreground_labels:
            raise ValueError(
                f"{plans_manager.dataset_name} has no foreground label in its dataset.json; there is nothing to "
                f"segment. Add the labels, then plan and preprocess again."
            )
        training, clicks = settings.click_preset(), None
        if training is not None:
            target = click_target(dataset_json["labels"], labels, settings.click_targets)
            clicks = SimulatedClicks(training, target, settings.signed_clicks, seed_of(fold, settings.repeat))
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.settings = settings
        self.seed = seed_of_run(settings.repeat, fold)
        self.clicks = None if clicks is None else ClickSteps(clicks, self.local_rank)
        self.adapter_log = AdapterLog(self.local_rank == 0)
        self.initial_lr = settings.initial_lr
        self.weight_decay = self.recipe.weight_decay
        self.num_epochs = settings.epochs_of(self.recipe.starts_from)
        self.num_iterations_per_epoch = settings.iterations_per_epoch
        self.num_val_iterations_per_epoch = settings.val_iterations_per_epoch
        self.save_every = max(1, min(50, self.num_epochs // 10))
        self.enable_deep_supervision = False
        # nnU-Net's rule takes the last third of a batch from the foreground: of a batch of one, never any
        self.probabilistic_oversampling = self.configuration_manager.batch_size == 1
        self.start: Start | None = None
        self.resumed_from: Weights | None = None
        self.sample_threads: SampleThreads | None = None
        self.has_final_weights = False  # those of checkpoint_final.pth
        self.pretrained_weights: str | None = None  # file of nnUNetv2_train -pretrained_weights

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,  # type: ignore[override]
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network of the plans with this trainer's adapters; needs nothing but its arguments, loads no weights.

        A class method where nnU-Net has a static one: it is called in the same way, and knows its recipe.
        """
        settings = checked_settings(configuration_manager, "this configuration")
        config = settings.network_config(
            adapter=cls.recipe.adapter, in_channels=num_input_channels, num_classes=num_output_channels
        )
        return SAM3D(config, settings.precision).prepare(configuration_manager.patch_size)

    def initialize(self) -> None:
        """nnU-Net's, whose random weights are those of the repeat and the fold."""
        seed_process(self.seed)
        super().initialize()

    @property
    def plain_network(self) -> SAM3D:
        """The network without DDP's and torch.compile's wrappers."""
        network = self.network
        if isinstance(network, DistributedDataParallel):
            network = network.module
        return cast(SAM3D, network._orig_mod if isinstance(network, OptimizedModule) else network)

    def prepare_parameters(self) -> list[list[nn.Parameter]]:
        """Freezes by the recipe and loads the start.

        The weights come here and not later, since which parameters are trained can depend on them, and DDP, which
        wraps the network next, must know.

        Returns:
            the trained parameters, in the groups of the optimizer.
        """
        network = self.plain_network
        groups = apply_freezing(network, self.recipe)
        outputs = outputs_of(self.dataset_json["labels"], self.label_manager.has_regions)
        start = self.recipe.adapter_start or self.settings.adapter_start
        self.start = Start(network, self.print_to_log_file, outputs, self.settings.map_class, start)
        self._load_start()
        if self.recipe.groups and (lacking := self.start.lacking()):
            for parameter in lacking.values():
                parameter.requires_grad_(True)
            groups.append(list(lacking.values()))
            if any(name.startswith(SEG_LAYERS) for name in lacking):
                self.print_to_log_file("The last convolution is trained too: the start has other classes")
            if additions := [name for name in lacking if is_addition(name)]:
                self.print_to_log_file(f"Trained too, from zero, since the start has none: {', '.join(additions)}")
        trained = sum(parameter.numel() for group in groups for parameter in group)
        total = sum(parameter.numel() for parameter in network.parameters())
        self.print_to_log_file(
            f"{type(self).__name__}: {trained:,} of {total:,} parameters are trained "
            f"({100 * trained / total:.1f} %), {total - trained:,} are frozen"
        )
        return groups

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, LinearDecay]:
        """One AdamW over what the recipe trains."""
        optimizer = adamw(self.prepare_parameters(), self.initial_lr, self.weight_decay)
        return optimizer, LinearDecay(optimizer, self.initial_lr, self.num_epochs)

    def _load_start(self) -> None:
        assert self.start is not None
        if self.resumed_from is not None:  # its weights follow in load_checkpoint
            self.start.provenance = dict(self.resumed_from.metadata.get("provenance", {}))
            self.start.loaded = {
                name for name in self.resumed_from.state if name not in self.resumed_from.metadata.get("trained", ())
            }
        elif self.pretrained_weights is not None:
            self.start.take(self.pretrained_weights)
        else:
            self.start.find(self.run(), self.recipe, self.settings.sam_checkpoint, self.settings.variant)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """nnU-Net's, with the mirroring of the settings where they name one."""
        rotation, dummy_2d, patch_size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.settings.mirror_axes is not None:
            axes = self.settings.mirror_axes or None  # nnU-Net's prediction takes None, no empty tuple
            self.inference_allowed_mirroring_axes = axes
        return rotation, dummy_2d, patch_size, axes

    def get_dataloaders(self) -> tuple:
        """nnU-Net's, whose cases, crops and augmentation are those of the repeat and the fold."""
        seed = (self.seed, self.current_epoch, self.local_rank)  # a resumed training draws what it has not yet seen
        seed_process(*seed)
        loaders = super().get_dataloaders()
        look_seldom(loaders)
        return seed_loaders(loaders, *seed)

    def _build_loss(self) -> nn.Module:
        return DiceCELoss(self.label_manager, self.configuration_manager.batch_dice, self.is_ddp)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """The network has one output; there is nothing to switch."""

    def run(self) -> Run:
        """This run's identity."""
        return Run(
            self.plans_manager.dataset_name,
            self.plans_manager.plans_name,
            self.configuration_name,
            self.fold,
            type(self).__name__,
            Path(cast(str, nnUNet_results.require())),
        )

    def on_train_start(self) -> None:
        """Finds the weights and refuses a run that cannot work, before nnU-Net starts its workers."""
        if not self.was_initialized:
            self.initialize()
        assert self.start is not None
        self.start.check(self.run(), self.recipe)
        check_foreground(self.get_tr_and_val_datasets()[0], self.fold, self.preprocessed_dataset_folder)
        self.print_to_log_file(f"Seed {self.seed} of repeat {self.settings.repeat}, fold {self.fold}")
        if self.recipe.groups and self.clicks is not None:
            self.print_to_log_file(
                f"Clicks ({self.settings.clicks}) are simulated on {self.clicks.simulated.target.name}: "
                f"{self.clicks.simulated.training}"
            )
        if self.recipe.groups and self.settings.checkpointing == "auto":
            decide_checkpointing(
                self.plain_network,
                self.recipe,
                patch_size=self.configuration_manager.patch_size,
                batch_size=self.batch_size,
                batch_dice=self.configuration_manager.batch_dice,
                device=self.device,
                say=self.print_to_log_file,
            )
        if self.recipe.groups:
            self.sample_threads = sample_threads(self.network, self.loss, self.batch_size, self.device)
        super().on_train_start()
        if self.recipe.groups:  # and not for the workers, which have begun
            keep_large_tensors(self.device, not self.plain_network.encoder.checkpointing)

    def on_train_end(self) -> None:
        super().on_train_end()
        keep_large_tensors(self.device, False)  # what the validation takes and frees is large and of many sizes

    def on_train_epoch_start(self) -> None:
        """nnU-Net's; the epoch's clicks begin, too."""
        super().on_train_epoch_start()
        if self.clicks is not None:
            self.clicks.begin(self.current_epoch)

    def train_step(self, batch: dict) -> dict:
        """One step of the recipe: its clicks, its loss, its clipping."""
        data, target = (batch[key].to(self.device, non_blocking=True) for key in ("data", "target"))
        self.optimizer.zero_grad(set_to_none=True)
        self.loss.train()
        with self._autocast():
            clicks = () if self.clicks is None else self.clicks.of_training(self.plain_network, data, batch["target"])
        if self.sample_threads is not None:
            loss = self.sample_threads.backward(self.network, self.loss, target, data, *clicks)
        else:
            with self._autocast():
                loss = self.loss(self.network(data, *clicks), target)
            (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
        self._descend()
        return {"loss": loss.detach().cpu().numpy()}

    def _descend(self) -> None:
        """Clips the gradients and takes the optimizer's step."""
        if self.grad_scaler is None:
            self.clip_gradients()
            self.optimizer.step()
            return
        self.grad_scaler.unscale_(self.optimizer)
        self.clip_gradients()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def clip_gradients(self) -> None:
        """Limits the gradient norm of each clip group of the recipe."""
        for parameters in clip_groups(self.plain_network, self.recipe):
            nn.utils.clip_grad_norm_(parameters, self.recipe.max_grad_norm)

    def _autocast(self) -> AbstractContextManager:
        """Where nnU-Net's own steps have it."""
        return autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context()

    def on_validation_epoch_start(self) -> None:
        """nnU-Net's; the clicks of its validation begin, too."""
        super().on_validation_epoch_start()
        if self.clicks is not None:
            self.clicks.begin(self.current_epoch)

    def validation_step(self, batch: dict) -> dict:
        """nnU-Net's automatic one, with the Dice loss alone; what clicks would make of it is noted apart."""
        self.loss.eval()
        with self._autocast():
            self.adapter_log.measure(self.plain_network, batch["data"], self.device)
        if self.clicks is not None:  # first, since nnU-Net's changes the target
            data, target = (batch[key].to(self.device, non_blocking=True) for key in ("data", "target"))
            # not the training's loss: that waits for other processes, which may have crops without target
            loss = DiceCELoss(self.label_manager, self.configuration_manager.batch_dice).eval()
            with self._autocast():
                self.clicks.validate(self.plain_network, loss, data, target)
        return super().validation_step(batch)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """nnU-Net's; the losses with and without clicks go into its log under names of their own."""
        super().on_validation_epoch_end(val_outputs)
        logging = self.logger.local_logger.my_fantastic_logging
        self.adapter_log.write(logging, self.current_epoch, self.print_to_log_file)
        if self.clicks is None:
            return
        losses = self.clicks.mean_losses(self.is_ddp)
        for name, loss in losses.items():
            # a training that was resumed may have begun without
            values = logging.setdefault(name, [])
            values += [np.nan] * (self.current_epoch - len(values))
            self.logger.log(name, loss, self.current_epoch)
        count = self.clicks.simulated.training.validation_clicks
        self.print_to_log_file(
            f"Dice loss of validation crops with {self.clicks.simulated.target.name}: {losses[AUTOMATIC_LOSSES]:.4f} "
            f"automatic, {losses[CLICKED_LOSSES]:.4f} with {count} click{'s' if count > 1 else ''}"
        )

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint with the network's sizes and provenance, written whole or not at all."""
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        assert self.start is not None
        network = self.plain_network
        write_checkpoint(
            {
                "network_weights": network.state_dict(),
                "optimizer_state": self.optimizer.state_dict(),
                "grad_scaler_state": self.grad_scaler.state_dict() if self.grad_scaler is not None else None,
                "logging": self.logger.get_checkpoint(),
                "_best_ema": self._best_ema,
                "current_epoch": self.current_epoch + 1,
                "init_args": self.my_init_kwargs,
                "trainer_name": type(self).__name__,
                "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
                METADATA_KEY: {
                    "format": FORMAT_VERSION,
                    "network": network.config.to_dict(),
                    "outputs": self.start.outputs.to_dict() if self.start.outputs else None,
                    "provenance": self.start.provenance,
                    "trained": [name for name, parameter in network.named_parameters() if parameter.requires_grad],
                    "repeat": self.settings.repeat,
                    "seed": self.seed,
                },
            },
            filename,
        )
        self.has_final_weights = Path(filename).name == FINAL

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """nnU-Net's, after a check that the checkpoint is this network's.

        Raises:
            WeightsError: for a damaged file or another network, naming both.
        """
        weights = read_weights(cast(str, filename_or_checkpoint))
        if not self.was_initialized:
            self.resumed_from = weights
            self.initialize()
        if weights.config is not None and weights.config.adapter == self.plain_network.config.adapter:
            self.plain_network.set_adapter_plane(weights.config.adapter_plane)  # its start may have brought it
        check_same_network(weights, self.plain_network)
        super().load_checkpoint(filename_or_checkpoint)
        self.has_final_weights = Path(cast(str, filename_or_checkpoint)).name == FINAL

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's, with a note of the checkpoint that it is of."""
        super().perform_actual_validation(save_probabilities)
        if self.local_rank == 0 and self.has_final_weights:
            note_validated(Path(self.output_folder), self.validation_conditions())

    def validation_conditions(self) -> dict[str, str]:
        """All that decides the masks of the validation, each as a hash or in words."""
        return {
            "weights": state_hash(self.plain_network.state_dict()),
            "network": json_hash(self.plain_network.config.to_dict()),
            "plans and settings": json_hash([self.plans_manager.plans, self.configuration_name]),
            "dataset.json": json_hash(self.dataset_json),
            "cases": json_hash(sorted(self.do_split()[1])),
            "mirroring": str(self.inference_allowed_mirroring_axes),
            "device": f"{self.device.type} {torch.backends.cpu.get_cpu_capability()}",
            "versions": f"nnunetv2_sam3d {__version__}, nnunetv2 {version('nnunetv2')}, torch {torch.__version__}",
        }
