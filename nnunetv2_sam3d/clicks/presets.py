"""How many clicks a training step gets, as data. Imports no PyTorch, for the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class ClickTraining:
    """How clicks are simulated in training.

    Attributes:
        automatic_share: share of the steps without clicks, so that one model serves both modes.
        max_clicks: clicks on the target of a sample in a step with clicks.
        fewer: whether a sample gets any number from 1 to ``max_clicks``, number n as likely as 1/n, since users give
            few clicks; otherwise always ``max_clicks``.
        random_points: voxels from anywhere in the crop that are given beside them, as if they were clicks.
        validation_clicks: clicks on the target in validation.
    """

    automatic_share: float = 0.5
    max_clicks: int = 10
    fewer: bool = True
    random_points: int = 0
    validation_clicks: int = 1


PRESETS: dict[str, ClickTraining | None] = {
    "mixed": ClickTraining(),
    # Gong et al., arXiv:2306.13465, and the behaviour of the public implementation
    "reference": ClickTraining(0.0, fewer=False, random_points=20, validation_clicks=10),
    "none": None,
}


def click_training(
    preset: str, automatic_share: float | None = None, max_clicks: int | None = None
) -> ClickTraining | None:
    """The preset of that name, changed where a value is given; ``None`` for training without clicks.

    Raises:
        ValueError: for an unknown preset, impossible values, and values that the preset does not have.
    """
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(f"clicks must be one of {list(PRESETS)}, got {preset!r}")
    training = PRESETS[preset]
    given: dict[str, Any] = {"automatic_share": automatic_share, "max_clicks": max_clicks}
    given = {name: value for name, value in given.items() if value is not None}
    if given and preset != "mixed":
        raise ValueError(f'{" and ".join(given)} can be chosen with clicks "mixed" only, not with {preset!r}')
    share = given.get("automatic_share", 0.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise ValueError(
            f'automatic_share must be at least 0 and less than 1, got {share!r} (clicks "none" is training without any)'
        )
    most = given.get("max_clicks", 1)
    if type(most) is not int or most < 1:
        raise ValueError(f"max_clicks must be a whole number of at least 1, got {most!r}")
    return None if training is None else replace(training, **given)
