"""The settings of a run. They live in the plans, so that a saved model predicts as it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from nnunetv2_sam3d.clicks.simulation import ClickTraining, click_training
from nnunetv2_sam3d.network_architecture.config import PLANES, SLICE, VARIANTS, SAM3DConfig, as_token_stride
from nnunetv2_sam3d.network_architecture.cpu import cpu_precision
from nnunetv2_sam3d.weights.channels import check_class_map

PLANS_KEY = "sam3d"  # beside patch_size, spacing, ... in a configuration of the plans
DEFAULT_EPOCHS = 500
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


@dataclass(frozen=True)
class Settings:
    """What ``plans["configurations"][NAME]["sam3d"]`` holds; stock plans without it get the defaults.

    Args:
        variant: ``vit_b``, ``vit_l``, ``vit_h`` or ``vit_tiny``.
        network: sizes that differ from the variant's, by their names in ``SAM3DConfig``.
        token_stride: voxels per token, one number or three (D, H, W).
        adapter_dim: bottleneck of the adapters, half the width by default.
        adapter_plane: plane of the DualPath adapters' local path, ``slice`` or ``published``, see
            :class:`~nnunetv2_sam3d.network_architecture.adapters.DualPathAdapter3d`; a start in DualPath's own weights
            brings its plane.
        adapter_start: how adapters begin that are of another kind than the start's: ``published``, what the start's
            adapters give and the rest at random; ``quiet``, the same with the rest at a tenth of its strength;
            ``cold``, all of them at random.
        prompt_encoder: whether the network has one; without it, it is the reference's automatic variant.
        clicks: simulated in training (:mod:`nnunetv2_sam3d.clicks.simulation`): ``mixed`` (half of the steps have
            one to ten on the target, few more often than many), ``reference`` (the ten of the authors on the target
            and twenty anywhere, in every step) or ``none``.
        automatic_share: share of the steps without clicks that ``mixed`` has.
        max_clicks: most clicks of a sample in ``mixed``.
        click_targets: labels or regions that are clicked on, as one; by default those called tumour, lesion or the
            like, or else the whole foreground.
        checkpointing: trade time for memory in training: ``True``, ``False``, or ``"auto"``, only where a training step
            would not fit into the memory of the device otherwise.
        precision: of matrix products on CPUs: ``auto`` (bfloat16 where the processor has it), ``float32`` or
            ``bfloat16``. On GPUs nnU-Net decides.
        epochs: number of epochs, and the length of the learning rate's way down.
        iterations_per_epoch: training steps per epoch.
        val_iterations_per_epoch: validation steps per epoch.
        initial_lr: learning rate of the first epoch.
        max_seconds: training time of ``nnUNetTrainer_TimeBudget``; the SAM3D trainers count epochs.
        mirror_axes: axes (0, 1, 2 for D, H, W) that are mirrored in training and prediction; nnU-Net's choice by
            default (all of them), none if empty, for structures that are told apart by where they lie.
        sam_checkpoint: SAM's weights; before the variable ``nnUNet_sam_checkpoint`` and the cache.
        map_class: for labels or regions of the data set the channel of the start that knows them, if it was trained
            for other classes.
        repeat: which repeat of the training these plans are for, from 1; see :mod:`nnunetv2_sam3d.nnunet.layout`.

    Raises:
        ValueError: for values that cannot work.
    """

    variant: str = "vit_b"
    network: Mapping[str, Any] | None = None
    token_stride: int | tuple[int, int, int] = 4
    adapter_dim: int | None = None
    adapter_plane: str = SLICE
    adapter_start: str = "published"
    prompt_encoder: bool = True
    clicks: str = "mixed"
    automatic_share: float | None = None
    max_clicks: int | None = None
    click_targets: tuple[str, ...] | None = None
    checkpointing: bool | str = "auto"
    precision: str = "auto"
    epochs: int = DEFAULT_EPOCHS
    iterations_per_epoch: int = 250
    val_iterations_per_epoch: int = 50
    initial_lr: float = 4e-4
    max_seconds: float | None = None
    mirror_axes: tuple[int, ...] | None = None
    sam_checkpoint: str | None = None
    map_class: Mapping[str, int] | None = None
    repeat: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.variant, str) or self.variant not in VARIANTS:
            raise ValueError(f"unknown variant {self.variant!r}; choose one of {sorted(VARIANTS)}")
        as_token_stride(self.token_stride)
        cpu_precision(self.precision)
        for name in ("epochs", "iterations_per_epoch", "val_iterations_per_epoch", "adapter_dim", "repeat"):
            value = getattr(self, name)
            if value is None and name == "adapter_dim":
                continue
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name, known in (("adapter_plane", PLANES), ("adapter_start", ADAPTER_STARTS)):
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
    def from_plans(cls, configuration: Mapping[str, Any]) -> Settings:
        """Settings of one configuration of the plans (``ConfigurationManager.configuration``).

        Raises:
            ValueError: for unknown or impossible settings, naming them.
        """
        values = dict(configuration.get(PLANS_KEY, {}))
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(
                f"the plans hold unknown settings {unknown} under {PLANS_KEY!r}; known: {known}. "
                f"Write them with: nnUNetv2_sam3d plan"
            )
        if isinstance(values.get("token_stride"), list):
            values["token_stride"] = tuple(values["token_stride"])
        return cls(**values)
