"""The settings of a run. They live in the plans, so that a saved model predicts as it was trained.

Imports no PyTorch, for the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.clicks.presets import PRESETS, ClickTraining, click_training
from nnunetv2_sam3d.network_architecture.config import PLANES, PRECISIONS, SLICE, VARIANTS, SAM3DConfig, as_token_stride
from nnunetv2_sam3d.weights.class_map import check_class_map, parse_class_map

PLANS_KEY = "sam3d"  # beside patch_size, spacing, ... in a configuration of the plans
ADAPTER_STARTS = ("published", "quiet", "cold")
DECIDED_ELSEWHERE = {
    "adapter",
    "adapter_plane",
    "in_channels",
    "num_classes",
    "token_stride",
    "adapter_dim",
    "prompt_encoder",
    "checkpointing",
}


def _setting(default: Any, help: str, **option: Any) -> Any:
    """A field with its meaning, which is the help of the option of its name, and that option's other arguments.

    Args:
        default: of the field.
        help: what it means, for people.
        option: of ``argparse``; ``read`` makes the setting of what the option gives. None: there is no such option.
    """
    return field(default=default, metadata={"help": help, "option": option})


@dataclass(frozen=True)
class Settings:
    """What ``plans["configurations"][NAME]["sam3d"]`` holds; stock plans without it get the defaults.

    Every field says what it means. :func:`setting_options` makes the command line of it.

    Raises:
        ValueError: for values that cannot work.
    """

    variant: str = _setting("vit_b", "size of the encoder (default: vit_b)", choices=sorted(VARIANTS))
    network: Mapping[str, Any] | None = _setting(
        None, "sizes that differ from the variant's, by their names in SAM3DConfig"
    )
    token_stride: int | tuple[int, int, int] = _setting(
        4,
        "voxels per token, one number or three for D H W; 1, 2, 4, 8 or 16 (default: 4)",
        type=int,
        nargs="+",
        metavar="S",
        read=lambda values: values[0] if len(values) == 1 else tuple(values),
    )
    adapter_start: str = _setting(
        "published",
        "how DualPath adapters begin on trained original ones: with a local path at random and at full strength, as "
        "published (default), or at a tenth of it (quiet), or with all of the adapter anew (cold)",
        choices=ADAPTER_STARTS,
    )
    adapter_plane: str = _setting(
        SLICE,
        "plane of the DualPath adapters' local path: H and W (slice, default), or W and D as in the public code "
        "(published); a start in DualPath's own weights brings its plane",
        choices=PLANES,
    )
    adapter_dim: int | None = _setting(None, "bottleneck of the adapters (default: half the width)", type=int)
    prompt_encoder: bool = _setting(
        True, "whether the network takes clicks; without, it is the reference's automatic one"
    )
    checkpointing: bool | str = _setting(
        "auto",
        "recompute activations in the backward pass: less memory, more time; auto is only where a training step would "
        "not fit into the device's memory otherwise (default: auto)",
        nargs="?",
        choices=("auto", "off", "on"),
        const="on",
        read=lambda word: {"auto": "auto", "off": False, "on": True}[word],
    )
    precision: str = _setting(
        "auto",
        "of matrix products on CPUs; auto is bfloat16 where it is faster (default: auto)",
        choices=PRECISIONS,
    )
    epochs: int = _setting(500, "of training, and of the learning rate's way down (default: 500)", type=int)
    continued_epochs: int | None = _setting(
        None,
        "of trainings that start from a finished model, such as DualPath's (default: as many as --epochs)",
        type=int,
    )
    iterations_per_epoch: int = _setting(250, "training steps (default: 250)", type=int)
    val_iterations_per_epoch: int = _setting(50, "validation steps (default: 50)", type=int)
    initial_lr: float = _setting(4e-4, "learning rate of the first epoch (default: 4e-4)", type=float)
    mirror_axes: tuple[int, ...] | None = _setting(
        None,
        "axes (0, 1, 2 for D, H, W) mirrored in training and prediction, none if nothing follows; for structures that "
        "only their place tells apart (default: nnU-Net's, all three)",
        type=int,
        nargs="*",
        metavar="AXIS",
        read=tuple,
    )
    max_seconds: float | None = _setting(
        None, "training time of nnUNetTrainer_TimeBudget; the SAM3D trainers count epochs", type=float
    )
    sam_checkpoint: str | None = _setting(
        None, "SAM's weights, noted in the plans; a file, or medsam once it is fetched", metavar="FILE"
    )
    clicks: str = _setting(
        "mixed",
        "simulated in training: mixed trains one model for both modes, half of the steps without clicks, the others "
        "with one to ten on the target; reference is 3DSAM-adapter's ten on the target and twenty anywhere in every "
        "step; none is automatic training (default: mixed)",
        choices=tuple(PRESETS),
    )
    click_targets: tuple[str, ...] | None = _setting(
        None,
        "labels or regions that are clicked on, as one (default: those called tumour, lesion or the like, or else the "
        "whole foreground)",
        nargs="+",
        metavar="NAME",
        read=tuple,
    )
    automatic_share: float | None = _setting(
        None, "share of steps without clicks in mixed (default: 0.5)", type=float, metavar="S"
    )
    max_clicks: int | None = _setting(None, "most clicks in mixed (default: 10)", type=int, metavar="N")
    map_class: Mapping[str, int] | None = _setting(
        None,
        "where the data set has other classes than the model it starts from: take the last convolution of label or "
        "region NAME from this channel of the model (1 is the tumour of a binary one); without it, none is taken",
        nargs="+",
        metavar="NAME=CHANNEL",
        read=parse_class_map,
    )
    repeat: int = _setting(1, "which repeat of the training these plans are for, from 1; crossval writes it")

    def __post_init__(self) -> None:
        if not isinstance(self.variant, str) or self.variant not in VARIANTS:
            raise ValueError(f"unknown variant {self.variant!r}; choose one of {sorted(VARIANTS)}")
        as_token_stride(self.token_stride)
        for name in (
            "epochs", "continued_epochs", "iterations_per_epoch", "val_iterations_per_epoch", "adapter_dim", "repeat"
        ):  # fmt: skip
            value = getattr(self, name)
            if value is None and name in ("adapter_dim", "continued_epochs"):
                continue
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name, known in (("adapter_plane", PLANES), ("adapter_start", ADAPTER_STARTS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if not isinstance(self.prompt_encoder, bool):
            raise ValueError(f"prompt_encoder must be true or false, got {self.prompt_encoder!r}")
        self._check_clicks()
        if not isinstance(self.checkpointing, bool) and self.checkpointing != "auto":
            raise ValueError(f'checkpointing must be true, false or "auto", got {self.checkpointing!r}')
        for name in ("initial_lr", "max_seconds"):
            if not isinstance(getattr(self, name), int | float | None):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)!r}")
        if isinstance(self.mirror_axes, list):
            object.__setattr__(self, "mirror_axes", tuple(self.mirror_axes))
        axes = self.mirror_axes
        if axes is not None and (
            not isinstance(axes, tuple) or not set(axes) <= {0, 1, 2} or len(set(axes)) < len(axes)
        ):
            raise ValueError(f"mirror_axes must be some of 0, 1, 2, each once, got {axes!r}")
        if not isinstance(self.network, Mapping | None):
            raise ValueError(f"network must be a table of sizes, got {self.network!r}")
        if decided := sorted(DECIDED_ELSEWHERE & set(self.network or {})):
            raise ValueError(
                f"network may not hold {decided}: settings of their own, the trainer or the data decide them"
            )
        check_class_map(self.map_class or {})
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be positive, got {self.max_seconds!r}")
        if not 0 < self.initial_lr < 1:
            raise ValueError(f"initial_lr must lie between 0 and 1, got {self.initial_lr!r}")

    def _check_clicks(self) -> None:
        if isinstance(self.click_targets, list):
            object.__setattr__(self, "click_targets", tuple(self.click_targets))
        targets = self.click_targets
        if targets is not None and (
            not isinstance(targets, tuple) or not targets or not all(isinstance(name, str) for name in targets)
        ):
            raise ValueError(f"click_targets must be names of labels or regions, got {targets!r}")
        click_training(self.clicks, self.automatic_share, self.max_clicks)
        beyond = [name for name in ("signed_clicks", "click_maps") if self._network_has(name)]
        if beyond and self.clicks == "none":
            raise ValueError(f'{" and ".join(beyond)} would never be trained with clicks "none"; choose "mixed"')
        if self.signed_clicks and self.clicks == "reference":
            raise ValueError('the reference\'s clicks have no signs, so signed_clicks needs clicks "mixed"')

    def _network_has(self, name: str) -> bool:
        return isinstance(self.network, Mapping) and self.network.get(name) is True

    def epochs_of(self, starts_from: Sequence[str]) -> int:
        """Epochs of a training.

        Args:
            starts_from: trainers whose finished model is its start, as in a recipe; none if it begins anew.
        """
        return self.continued_epochs if starts_from and self.continued_epochs is not None else self.epochs

    @property
    def signed_clicks(self) -> bool:
        """Whether the network tells background clicks from foreground clicks."""
        return self._network_has("signed_clicks")

    def click_preset(self) -> ClickTraining | None:
        """How clicks are simulated in training; ``None`` without, and for a network that takes none."""
        return click_training(self.clicks, self.automatic_share, self.max_clicks) if self.prompt_encoder else None

    def network_config(self, *, adapter: str, in_channels: int, num_classes: int) -> SAM3DConfig:
        """The network that these settings describe; without checkpointing where the trainer has yet to decide."""
        sizes = {**VARIANTS[self.variant].to_dict(), **(self.network or {})}
        return replace(
            SAM3DConfig.from_dict(sizes),
            adapter=adapter,
            in_channels=in_channels,
            num_classes=num_classes,
            token_stride=as_token_stride(self.token_stride),
            adapter_dim=self.adapter_dim,
            adapter_plane=self.adapter_plane,
            prompt_encoder=self.prompt_encoder,
            checkpointing=self.checkpointing is True,
        )

    def to_dict(self) -> dict[str, Any]:
        """For the plans: plain types, only what differs from the defaults, and the variant."""
        defaults = asdict(Settings())
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if key == "variant" or value != defaults[key]}

    @classmethod
    def from_plans(cls, configuration: Mapping[str, Any], file: Path | None = None) -> Settings:
        """Settings of one configuration of the plans (``ConfigurationManager.configuration``).

        Args:
            configuration: with all that it inherits.
            file: of the plans, for errors.

        Raises:
            ValueError: for unknown or impossible settings, naming them.
        """
        try:
            return cls._from_plans(configuration)
        except (ValueError, TypeError) as error:  # a comparison of what has no order, for instance
            where = f"{file}: " if file else ""
            raise ValueError(f"{where}{error}. Write the settings with: nnUNetv2_sam3d plan") from error

    @classmethod
    def _from_plans(cls, configuration: Mapping[str, Any]) -> Settings:
        values = dict(configuration.get(PLANS_KEY, {}))
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"the plans hold unknown settings {unknown} under {PLANS_KEY!r}; known: {known}")
        if isinstance(values.get("token_stride"), list):
            values["token_stride"] = tuple(values["token_stride"])
        return cls(**values)


def setting_options() -> dict[str, dict[str, Any]]:
    """The settings that have an option of their own on the command line, with the arguments of ``argparse``."""
    return {
        setting.name: {"help": setting.metadata["help"], **_without_read(setting.metadata["option"])}
        for setting in fields(Settings)
        if setting.metadata["option"]
    }


def from_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that options give; what was not given is left out.

    Args:
        given: values of the options by the names of the settings.

    Raises:
        ValueError: for values that cannot be read.
    """
    values = {}
    for setting in fields(Settings):
        value = given.get(setting.name)
        if setting.metadata["option"] and value is not None:
            values[setting.name] = setting.metadata["option"].get("read", lambda value: value)(value)
    return values


def _without_read(option: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in option.items() if name != "read"}
