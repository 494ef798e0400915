"""How each trainer trains, as data: what is frozen, what is clipped together, where its weights may come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the names of trainers are wanted where PyTorch is not
    from torch import nn

ADAPTERS = "encoder.blocks.*.adapter.*"
PROMPT_ENCODER = "prompt_encoder.*"
MASK_DECODER = "mask_decoder.*"
ENCODER_TRAINED = (
    "encoder.depth_embed",
    "encoder.stem.slice_embed.*",
    "encoder.blocks.*.norm1.*",
    "encoder.blocks.*.norm2.*",
    "encoder.blocks.*.attn.rel_pos_d",
    "encoder.neck_3d.*",
    ADAPTERS,
)


@dataclass(frozen=True)
class Recipe:
    """One trainer's recipe.

    Attributes:
        adapter: name of an adapter, see :data:`~nnunetv2_sam3d.network_architecture.adapters.ADAPTERS`.
        groups: name patterns of the trained parameters, one tuple for each group of the optimizer.
        clip_groups: name patterns whose gradients are clipped together to ``max_grad_norm``; others are not clipped.
        starts_from: trainers whose finished model of the same fold is the start, the first that exists.
        adapter_start: how adapters begin that differ from the start's, see :class:`~nnunetv2_sam3d.settings.Settings`;
            ``None`` leaves it to the plans.
        control: short name of the trainer that this one is compared with; it differs in what ``question`` asks.
        question: what the comparison with the control answers.
        asks_about: what differs from the control because the question is about it: ``steps``, ``trained parameters``.
        max_grad_norm: norm that every clip group is limited to.
        weight_decay: of AdamW.
    """

    adapter: str
    groups: tuple[tuple[str, ...], ...]
    clip_groups: tuple[tuple[str, ...], ...] = ()
    starts_from: tuple[str, ...] = ()
    adapter_start: str | None = None
    control: str | None = None
    question: str = ""
    asks_about: tuple[str, ...] = ()
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0


# The reference has three AdamW of equal settings; one AdamW with three groups is the same arithmetic.
ORIGINAL = Recipe(
    adapter="original",
    groups=(ENCODER_TRAINED, (PROMPT_ENCODER,), (MASK_DECODER,)),
    clip_groups=(("encoder.*",), (MASK_DECODER,), (PROMPT_ENCODER,)),
    question="What does 3DSAM-adapter reach as published?",
)
FULL = Recipe(
    adapter="original",
    groups=(("encoder.*",), (PROMPT_ENCODER,), (MASK_DECODER,)),
    clip_groups=(("encoder.*",), (MASK_DECODER,), (PROMPT_ENCODER,)),
    question="What does training everything reach?",
)
STARTS = ("nnUNetTrainer_SAM3DOriginal", "nnUNetTrainer_SAM3DFull")
ORIGINAL_EVAL = Recipe(
    adapter="original",
    groups=(),
    starts_from=STARTS,
    question="What did the start reach, without further training?",
)
DUALPATH = Recipe(
    adapter="dualpath",
    groups=(ENCODER_TRAINED,),
    clip_groups=((ADAPTERS,),),
    starts_from=STARTS,
    control="OriginalContinued",
    question="Does the DualPath adapter do better than the original one, all else equal?",
)
# The controls and ablations are DualPath's recipe with one thing changed.
ORIGINAL_CONTINUED = replace(
    DUALPATH,
    adapter="original",
    control="OriginalEval",
    question="Is it only the longer training?",
    asks_about=("steps", "trained parameters"),
)
ORIGINAL_WIDE = replace(
    DUALPATH,
    adapter="original_wide",
    control="OriginalContinued",
    question="Is it only the number of trained parameters?",
    asks_about=("trained parameters",),
)


def _evaluation(adapter: str) -> Recipe:
    return Recipe(adapter, groups=(), question="What does a trained model of these adapters reach, without training?")


def _ablation(question: str, **changes: Any) -> Recipe:
    return replace(DUALPATH, control="DualPath", question=question, **changes)


# By the trainers' short names; what others start from comes first.
RECIPES: dict[str, Recipe] = {
    "Original": ORIGINAL,
    "Full": FULL,
    "OriginalEval": ORIGINAL_EVAL,
    "OriginalContinued": ORIGINAL_CONTINUED,
    "OriginalWide": ORIGINAL_WIDE,
    "DualPath": DUALPATH,
    "DualPathCold": _ablation("What is the warm start of the adapters worth?", adapter_start="cold"),
    "DualPathNoGate": _ablation("What is the gate worth?", adapter="dualpath_no_gate"),
    "DualPathLocalOnly": _ablation("What is the global path worth?", adapter="dualpath_local_only"),
    "DualPathConv": _ablation("What is UNet++ worth against two convolutions?", adapter="dualpath_conv"),
    "DualPathFFT": _ablation("What is UNet++ worth against amplified high frequencies?", adapter="dualpath_fft"),
    "DualPathEval": _evaluation("dualpath"),
    "DualPathConvEval": _evaluation("dualpath_conv"),
    "DualPathFFTEval": _evaluation("dualpath_fft"),
}


def select(names: Iterable[str], patterns: Iterable[str], *, optional: Iterable[str] = ()) -> list[str]:
    """Names that fit any of the patterns, in their order.

    Args:
        names: parameter names.
        patterns: shell-style patterns; ``*`` also spans dots.
        optional: patterns that may fit nothing.

    Raises:
        ValueError: if a pattern fits no name: a part was renamed, and the policy would silently miss it.
    """
    names, patterns, optional = list(names), list(patterns), set(optional)
    for pattern in patterns:
        if pattern not in optional and not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"the pattern {pattern!r} fits no parameter of the network; "
                f"its parameters are {names[:3]} and {len(names) - 3} more"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def absent_parts(network: nn.Module) -> tuple[str, ...]:
    """Patterns that may fit nothing: those of the prompt encoder in a network without one."""
    return (
        () if any(name.startswith("prompt_encoder.") for name, _ in network.named_parameters()) else (PROMPT_ENCODER,)
    )


def apply_freezing(network: nn.Module, recipe: Recipe) -> list[list[nn.Parameter]]:
    """Sets ``requires_grad`` of every parameter by the recipe.

    Returns:
        the trained parameters of each group; groups of absent parts are left out.

    Raises:
        ValueError: if a pattern fits nothing, or a parameter falls into two groups.
    """
    parameters = dict(network.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    groups: list[list[nn.Parameter]] = []
    seen = set[str]()
    for patterns in recipe.groups:
        names = select(parameters, patterns, optional=absent_parts(network))
        if seen & set(names):
            raise ValueError(f"the groups of the recipe overlap in {sorted(seen & set(names))[:3]}")
        seen.update(names)
        if names:
            for name in names:
                parameters[name].requires_grad_(True)
            groups.append([parameters[name] for name in names])
    return groups


def clip_groups(network: nn.Module, recipe: Recipe) -> list[list[nn.Parameter]]:
    """Trained parameters whose gradients are clipped together, for each clip group that the network has."""
    parameters = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    groups = [select(parameters, patterns, optional=absent_parts(network)) for patterns in recipe.clip_groups]
    return [[parameters[name] for name in names] for names in groups if names]
