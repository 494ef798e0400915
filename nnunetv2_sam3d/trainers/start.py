"""Where a run's weights come from, and the refusal to train around frozen random ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from nnunetv2_sam3d.network_architecture.config import variant_of
from nnunetv2_sam3d.network_architecture.prompt_encoder import is_addition
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.nnunet.labels import IGNORE, foreground, values_of
from nnunetv2_sam3d.nnunet.layout import FINAL, ModelName, fold_folder
from nnunetv2_sam3d.trainers.recipes import Recipe
from nnunetv2_sam3d.weights.channels import OutputChannels
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.reading import read_weights
from nnunetv2_sam3d.weights.sources import ENVIRONMENT, SAM_FILES, find_sam_checkpoint
from nnunetv2_sam3d.weights.state_dict import SEG_LAYERS, part_of
from nnunetv2_sam3d.weights.transfer import load_into

RANDOM = {"kind": "random"}


def outputs_of(labels: Mapping[str, Any], regions: bool) -> OutputChannels:
    """Meaning of the channels for a data set's ``labels`` (``dataset.json``), in nnU-Net's order."""
    if regions:
        return OutputChannels(tuple(foreground(labels)), True)
    values = {name: min(values_of(value)) for name, value in labels.items() if name != IGNORE}
    return OutputChannels(tuple(sorted(values, key=values.__getitem__)), False)


@dataclass(frozen=True)
class Run:
    """What identifies a run, as nnU-Net names it."""

    dataset: str
    plans: str
    configuration: str
    fold: int | str
    trainer: str
    results: Path

    def checkpoint_of(self, trainer: str) -> Path:
        """The finished model of another trainer on the same data set, plans, configuration and fold."""
        model = ModelName(trainer, self.plans, self.configuration)
        return fold_folder(self.results / self.dataset / str(model), self.fold) / FINAL

    def command(self, trainer: str, more: str = "") -> str:
        """The nnU-Net command that trains this run with another trainer."""
        return f"nnUNetv2_train {self.dataset} {self.configuration} {self.fold} -tr {trainer} -p {self.plans}{more}"


@dataclass(repr=False)
class Start:
    """The weights that a network has got so far.

    Attributes:
        outputs: meaning of the network's channels.
        class_map: channel of the file for classes of the data set, if the plans ask for it.
        adapter_start: how adapters of another kind than a file's begin.
        provenance: for each part of the network the record of its file, or ``RANDOM``.
        loaded: names of the weights that came from a file.
        files: that were taken, in their order.
    """

    network: SAM3D
    log: Callable[[str], None]
    outputs: OutputChannels | None = None
    class_map: Mapping[str, int] | None = None
    adapter_start: str = "published"
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.network.state_dict():
            self.provenance.setdefault(part_of(name), RANDOM)

    def take(self, path: str | os.PathLike[str]) -> None:
        """Loads a file into the network, logs what it gave and records where it came from.

        Raises:
            WeightsError: if the file cannot be used; the network is then unchanged.
        """
        weights = read_weights(path)
        given = load_into(
            self.network, weights, outputs=self.outputs, class_map=self.class_map, adapter_start=self.adapter_start
        )
        self.log(f"Weights from {weights.describe()}: {len(given.names)} tensors")
        for note in given.notes:
            self.log(f"  {note}")
        record = weights.provenance()
        for part in sorted({part_of(name) for name in given.names}):
            self.provenance[part] = record
        if given.adapter_start:
            self.provenance["adapters"] = self.provenance["adapters"] | {"adapter_start": given.adapter_start}
        if given.mapped:
            self.provenance["last convolution"] = record | {"channels": given.mapped}
        self.loaded |= given.names
        self.files.append(os.fspath(path))

    def find(self, run: Run, recipe: Recipe, sam_setting: str | None, variant: str) -> None:
        """Takes the finished model that the recipe starts from, or SAM's encoder, whichever there is.

        Only the same fold's model is looked at: another fold's has seen this fold's validation cases.
        """
        for trainer in recipe.starts_from:
            checkpoint = run.checkpoint_of(trainer)
            if checkpoint.is_file():
                self.log(f"Starting from the finished {trainer} of fold {run.fold}")
                self.take(checkpoint)
                return
        sam = find_sam_checkpoint(variant, sam_setting)
        if sam is not None:
            self.take(sam)

    def lacking(self) -> dict[str, nn.Parameter]:
        """What is frozen, but which the whole model that was loaded cannot give, by name.

        That is the last convolution of a model of other classes, and what goes beyond the reference's prompt encoder.
        Unlike everything else that is frozen it then has to be trained.
        """
        if "mask decoder" not in {part_of(name) for name in self.loaded}:
            return {}
        return {
            name: parameter
            for name, parameter in self.network.named_parameters()
            if (name.startswith(SEG_LAYERS) or is_addition(name))
            and not parameter.requires_grad
            and name not in self.loaded
        }

    def check(self, run: Run, recipe: Recipe) -> None:
        """Refuses a network with frozen parameters that no file has given and that would stay random.

        What goes beyond the reference's prompt encoder is zero then, and the network that of the file.

        Raises:
            WeightsError: naming the parts and the commands that help.
        """
        random = [
            name
            for name, parameter in self.network.named_parameters()
            if not parameter.requires_grad and name not in self.loaded and not is_addition(name)
        ]
        if random:
            parts = ", ".join(sorted({part_of(name) for name in random}))
            raise WeightsError(
                f"{run.trainer} keeps {parts} frozen, but no file has given "
                f"{'it' if ',' not in parts else 'them'} any weights: {len(random)} parameters would stay "
                f"random. {_remedies(run, recipe, variant_of(self.network.config))}"
            )


def _remedies(run: Run, recipe: Recipe, variant: str | None) -> str:
    lines = []
    full = f"    {run.command('nnUNetTrainer_SAM3DFull')}"
    if not recipe.groups and not recipe.starts_from:
        lines.append("It validates a trained model of the same adapters and classes. Give one:")
    elif recipe.starts_from:
        several = "one of the models" if len(recipe.starts_from) > 1 else "the model"
        lines.append(f"Train {several} that this trainer starts from, for the same fold:")
        lines += [f"    {run.command(trainer)}" for trainer in recipe.starts_from]
        lines.append("or give a whole model:")
    elif variant in SAM_FILES:
        lines += [
            "Get SAM's published encoder, or name a file that holds it:",
            f"    nnUNetv2_sam3d weights fetch {variant}",
            f"    export {ENVIRONMENT}=/path/to/{SAM_FILES[variant].official}",
            "or give a whole model:",
        ]
    else:
        lines += [
            "For an encoder of this size no weights are published. Train everything, which needs none:",
            full,
            "or name a file that holds such an encoder:",
            f"    export {ENVIRONMENT}=/path/to/encoder.pth",
            "or give a whole model:",
        ]
    lines += [
        "    nnUNetv2_sam3d weights convert best.pth.tar -o original.pth",
        f"    {run.command(run.trainer, ' -pretrained_weights original.pth')}",
    ]
    if recipe.groups and not recipe.starts_from and variant in SAM_FILES:
        lines += ["or train everything, which needs no pretrained weights:", full]
    return "\n".join(lines)
