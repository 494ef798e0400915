"""From a file's weights into a network: across adapters and classes, complete or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from nnunetv2_sam3d.network_architecture.adapters import ADAPTERS, Adapter3d, DualPathAdapter3d
from nnunetv2_sam3d.network_architecture.config import SAM3DConfig, variant_of
from nnunetv2_sam3d.network_architecture.prompt_encoder import is_addition
from nnunetv2_sam3d.network_architecture.sam3d import SAM3D
from nnunetv2_sam3d.weights.channels import OutputChannels, map_channels
from nnunetv2_sam3d.weights.errors import WeightsError
from nnunetv2_sam3d.weights.reading import Weights
from nnunetv2_sam3d.weights.sam import IN_SAM
from nnunetv2_sam3d.weights.sources import SAM_FILES, command
from nnunetv2_sam3d.weights.state_dict import (
    LAST_CONVOLUTION,
    encoder_sizes,
    in_short,
    misfits,
)

ADAPTER = re.compile(r"encoder\.blocks\.\d+\.adapter\.")


# Sizes that decide whether weights fit; the others leave no trace in the shapes or are handled below.
STRUCTURAL = (
    "embed_dim",
    "depth",
    "num_heads",
    "global_attn_indexes",
    "out_channels",
    "decoder_channels",
    "decoder_scale",
    "prompt_mlp_dim",
    "position_grid",
)


@dataclass
class Loaded:
    """What a file gave to a network.

    Attributes:
        names: parameters and buffers that now have the file's values; the last convolution only if all of it has.
        mapped: channel of the file for each class whose part of the last convolution was mapped.
        adapter_start: how adapters began that the file has in another kind; empty if it has none.
        notes: sentences for the log about what was left out, converted or differs.
    """

    names: set[str] = field(default_factory=set)
    mapped: dict[str, int] = field(default_factory=dict)
    adapter_start: str = ""
    notes: list[str] = field(default_factory=list)


def load_into(
    network: SAM3D,
    weights: Weights,
    *,
    outputs: OutputChannels | None = None,
    class_map: Mapping[str, int] | None = None,
    adapter_start: str = "published",
) -> Loaded:
    """Puts a file's weights into a network of the same sizes.

    SAM's files fill the pretrained part of the encoder. Whole models fill everything, with exceptions that are
    reported: what other adapters do not give, such as the local path of DualPath adapters when the file has original
    ones, the last convolution when the classes differ, the prompt encoder when the network has none, and what goes
    beyond the reference's prompt encoder when only one of the two has it.

    Args:
        network: is changed.
        weights: from :func:`read_weights`.
        outputs: meaning of the network's channels, where known.
        class_map: channel of the file for labels or regions of the data set; by default what ``weights convert
            --map-class`` noted in the file. Needs ``outputs``.
        adapter_start: how adapters begin that the file has in another kind, see
            :class:`~nnunetv2_sam3d.settings.Settings`.

    Raises:
        WeightsError: if sizes differ, or the file cannot give what the network needs; the network is then unchanged.
    """
    loaded = Loaded()
    state = dict(weights.state)
    target = network.state_dict()
    if weights.config is None:
        check_encoder_fits(weights, network.config)
    else:
        _check_sizes(weights, weights.config, network.config)
        _match_adapters(state, weights, weights.config, network, adapter_start, loaded)
        if weights.config.prompt_encoder and not network.config.prompt_encoder:
            state = {key: value for key, value in state.items() if not key.startswith("prompt_encoder.")}
            loaded.notes.append("the file's prompt encoder was left out, the plans ask for a network without one")
        elif network.prompt_encoder is not None:
            state = _match_additions(state, target, loaded)
        if weights.config.token_stride != network.config.token_stride and weights.stride_known:
            loaded.notes.append(
                f"the file was trained with token stride {list(weights.config.token_stride)}, "
                f"this network has {list(network.config.token_stride)}"
            )
    missing = _missing(state, target, weights, network)  # before the last convolution is exchanged
    fresh_last = (
        weights.config is not None
        and not missing
        and not _match_classes(state, weights, target[LAST_CONVOLUTION], outputs, class_map, loaded)
    )
    if wrong := misfits(state, target):
        raise WeightsError(
            f"{weights.describe()} does not fit the network: {in_short(wrong)}. It needs a network of the same "
            f"size; the plans choose one with nnUNetv2_sam3d plan --variant."
        )
    _refuse_incomplete(weights, missing)
    network.load_state_dict(state, strict=False)
    if weights.config is not None and weights.config.adapter == network.config.adapter:
        network.set_adapter_plane(weights.config.adapter_plane)
    elif weights.config is not None and adapter_start == "quiet":
        for module in network.modules():
            if isinstance(module, Adapter3d):
                module.quieten()
    loaded.names = set(state) - ({LAST_CONVOLUTION} if fresh_last else set())
    return loaded


def check_same_network(weights: Weights, network: SAM3D) -> None:
    """Refuses a checkpoint that does not belong to exactly this network (for resuming and validating).

    Raises:
        WeightsError: naming what differs.
    """
    if weights.kind != "trained" or weights.config is None:
        raise WeightsError(
            f"{weights.describe()} is no checkpoint of a training that could be continued. To start from "
            f"it: nnUNetv2_train ... -pretrained_weights {weights.path}"
        )
    source, target = weights.config.to_dict(), network.config.to_dict()
    different = [
        f"{key} is {source[key]} in the file and {target[key]} here"
        for key in target
        if source[key] != target[key] and key not in ("checkpointing", "adapter_dim")
    ]
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    if not different and shapes != {key: value.shape for key, value in weights.state.items()}:
        different = ["its weights are not those of the network it describes"]
    if different:
        raise WeightsError(
            f"{weights.describe()} belongs to another network: {'; '.join(different)}. The plans, the "
            f"data set's labels or the trainer changed since it was written. Train anew (without -c), or "
            f"restore what was changed."
        )


def check_encoder_fits(weights: Weights, target: SAM3DConfig) -> None:
    """Refuses SAM's encoder in another size than the network's, naming the size that it has and the remedy."""
    sizes = encoder_sizes(weights.state)
    different = [
        f"{name} is {value} in the file and {getattr(target, name)} in the plans"
        for name, value in sizes.items()
        if value != getattr(target, name)
    ]
    if different:
        own, wanted = variant_of(sizes), variant_of(target)
        raise WeightsError(
            f"{weights.describe()} is {own or 'no published size'}, the plans ask for {wanted or 'another size'}: "
            f"{'; '.join(different)}. "
            + (f"Give SAM's file of that size: {command(wanted)}" if wanted in SAM_FILES else "Give a file that fits")
            + (f", or plan for this one: nnUNetv2_sam3d plan --variant {own}" if own else "; see plan --variant")
        )


def _check_sizes(weights: Weights, source: SAM3DConfig, target: SAM3DConfig) -> None:
    different = [
        f"{name} is {getattr(source, name)} in the file and {getattr(target, name)} in the plans"
        for name in (*STRUCTURAL, "bottleneck")
        if getattr(source, name) != getattr(target, name)
        and not (name == "prompt_mlp_dim" and not (source.prompt_encoder and target.prompt_encoder))
    ]
    if different:
        raise WeightsError(
            f"{weights.describe()} is a network of another size: {'; '.join(different)}. Choose the plans' "
            f"size to match it: nnUNetv2_sam3d plan --variant NAME, or --like FILE."
        )
    if target.prompt_encoder and not source.prompt_encoder:
        raise WeightsError(
            f"{weights.describe()} is an automatic network without prompt encoder, the plans ask for one. "
            f"Make plans without it: nnUNetv2_sam3d plan --no-prompt-encoder."
        )


def _match_adapters(
    state: dict[str, Tensor], weights: Weights, source: SAM3DConfig, network: SAM3D, start: str, loaded: Loaded
) -> None:
    """Turns the file's adapters into the network's, as far as they give any; the others start at random."""
    target = network.config.adapter
    if source.adapter == target:
        if source.adapter_plane != network.config.adapter_plane and issubclass(ADAPTERS[target], DualPathAdapter3d):
            loaded.notes.append(
                f"the local path works in the file's plane, {source.adapter_plane!r}: its weights mean that plane"
            )
        return
    if source.adapter not in ADAPTERS[target].starts_from:
        raise WeightsError(
            f"{weights.describe()} has {source.adapter} adapters, which give nothing to this trainer's {target} ones. "
            f"Use a file with {' or '.join((target, *ADAPTERS[target].starts_from))} adapters, or a trainer of "
            f"{source.adapter} adapters."
        )
    _check_adapters(state, weights, source)
    loaded.adapter_start = start
    given: dict[str, dict[str, Tensor]] = {}
    for key in [key for key in state if ADAPTER.match(key)]:
        prefix = ADAPTER.match(key)[0]  # type: ignore[index]
        given.setdefault(prefix, {})[key.removeprefix(prefix)] = state.pop(key)
    if start == "cold":
        loaded.notes.append(f"the file's {source.adapter} adapters were left out: all of the {target} ones start anew")
        return
    new: set[str] = set()
    for prefix, tensors in given.items():
        adapter = cast(Adapter3d, network.get_submodule(prefix.removesuffix(".")))
        taken = adapter.from_other(tensors)
        state.update({prefix + name: value for name, value in taken.items()})
        new |= {name.split(".")[0] for name, _ in adapter.named_parameters()} - {name.split(".")[0] for name in taken}
    rest = f"; their {', '.join(sorted(new))} start at random" if new else ""
    quietly = ", the local path at a tenth of its strength" if new and start == "quiet" else ""
    loaded.notes.append(f"the file's {source.adapter} adapters were taken into the {target} ones{rest}{quietly}")


def _check_adapters(state: Mapping[str, Tensor], weights: Weights, source: SAM3DConfig) -> None:
    """Refuses a file that lacks weights of its adapters, before they are turned into others."""
    names = [name for name, _ in ADAPTERS[source.adapter](1, 1).named_parameters()]
    wanted = [f"encoder.blocks.{block}.adapter.{name}" for block in range(source.depth) for name in names]
    _refuse_incomplete(weights, [key for key in wanted if key not in state])


def _refuse_incomplete(weights: Weights, missing: Sequence[str]) -> None:
    if missing:
        raise WeightsError(
            f"{weights.describe()} lacks {len(missing)} weights that the network needs, the first is "
            f"{missing[0]!r}; the file is incomplete or of another kind."
        )


def _match_additions(state: dict[str, Tensor], target: Mapping[str, Tensor], loaded: Loaded) -> dict[str, Tensor]:
    """Leaves out what the file's prompt encoder has beyond the network's, and says what it lacks."""
    names = {"background": "the vector of background clicks", "click_maps": "the layer of click maps"}
    for key in sorted({key for key in [*state, *target] if is_addition(key)}):
        name = names[key.split(".")[1]]
        if key not in state:
            loaded.notes.append(
                f"{name} starts at zero, the file has none: clicks act as in the file until it is trained"
            )
        elif key not in target:
            loaded.notes.append(f"{name} of the file was left out, the plans ask for a network without it")
    return {key: value for key, value in state.items() if key in target or not is_addition(key)}


def _match_classes(
    state: dict[str, Tensor],
    weights: Weights,
    fresh: Tensor,
    target: OutputChannels | None,
    class_map: Mapping[str, int] | None,
    loaded: Loaded,
) -> bool:
    """Takes the last convolution over, as far as the classes allow. Returns whether all of it."""
    source, given = weights.outputs, state[LAST_CONVOLUTION]
    if given.ndim != fresh.ndim or given.shape[1:] != fresh.shape[1:]:
        return True  # as little as any other weight of another shape, see misfits
    chosen = class_map or weights.metadata.get("map_class")
    if chosen and target is not None and source != target:
        if source is None:
            raise WeightsError(
                f"{weights.describe()} does not say what its channels mean, so --map-class cannot be applied to it"
            )
        state[LAST_CONVOLUTION], still_fresh = map_channels(given, fresh, source, target, chosen)
        loaded.mapped = dict(chosen)
        pairs = ", ".join(f"{name!r} from channel {channel}" for name, channel in chosen.items())
        rest = f"; {', '.join(map(repr, still_fresh))} start at random" if still_fresh else ""
        loaded.notes.append(f"the last convolution was mapped as asked: {pairs} of the file{rest}")
        return not still_fresh
    if len(given) != len(fresh):
        why = f"the file has {len(given)} output channels, this data set {len(fresh)}"
    elif source is not None and target is not None and source.regions != target.regions:
        kinds = {True: "regions (sigmoid)", False: "labels (softmax)"}
        why = f"the file's channels are {kinds[source.regions]}, this data set has {kinds[target.regions]}"
    else:
        if source is not None and target is not None and source.names and source.names != target.names:
            loaded.notes.append(
                f"the file's channels {list(source.names)} are taken as this data set's {list(target.names)}, in order"
            )
        return True
    del state[LAST_CONVOLUTION]
    loaded.notes.append(
        f"{why}: the last convolution was not taken and starts at random (to take a class over: weights convert or "
        f"plan --map-class NAME=CHANNEL)"
    )
    return False


def _missing(state: Mapping[str, Tensor], target: Mapping[str, Tensor], weights: Weights, network: SAM3D) -> list[str]:
    """What a file lacks: a whole model gives everything but new parts of its adapters, SAM its whole encoder."""
    warm_start = weights.config is not None and weights.config.adapter != network.config.adapter
    return [
        key
        for key in target
        if key not in state
        and (weights.config is not None or IN_SAM.fullmatch(key))
        and not (warm_start and ADAPTER.match(key))
        and not is_addition(key)
    ]
