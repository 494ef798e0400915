"""How each trainer trains, as data: what is frozen, what is clipped together, where its weights may come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

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
        adapter: ``"original"`` or ``"dualpath"``.
        groups: name patterns of the trained parameters, one tuple for each group of the optimizer.
        clip_groups: name patterns whose gradients are clipped together to ``max_grad_norm``; others are not clipped.
        starts_from: trainers whose finished model of the same fold is the start, the first that exists.
        max_grad_norm: norm that every clip group is limited to.
        weight_decay: of AdamW.
    """

    adapter: str
    groups: tuple[tuple[str, ...], ...]
    clip_groups: tuple[tuple[str, ...], ...] = ()
    starts_from: tuple[str, ...] = ()
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0


# The reference has three AdamW of equal settings; one AdamW with three groups is the same arithmetic.
ORIGINAL = Recipe(
    adapter="original",
    groups=(ENCODER_TRAINED, (PROMPT_ENCODER,), (MASK_DECODER,)),
    clip_groups=(("encoder.*",), (MASK_DECODER,), (PROMPT_ENCODER,)),
)
DUALPATH = Recipe(
    adapter="dualpath",
    groups=(ENCODER_TRAINED,),
    clip_groups=((ADAPTERS,),),
    starts_from=("nnUNetTrainer_SAM3DOriginal", "nnUNetTrainer_SAM3DFull"),
)
FULL = Recipe(
    adapter="original",
    groups=(("encoder.*",), (PROMPT_ENCODER,), (MASK_DECODER,)),
    clip_groups=(("encoder.*",), (MASK_DECODER,), (PROMPT_ENCODER,)),
)
ORIGINAL_EVAL = Recipe(
    adapter="original",
    groups=(),
    starts_from=("nnUNetTrainer_SAM3DOriginal", "nnUNetTrainer_SAM3DFull"),
)
RECIPES = {"DualPath": DUALPATH, "Original": ORIGINAL, "Full": FULL}  # those that train, by their trainers' names


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
