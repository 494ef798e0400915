"""What the names in 3D Slicer's markups mean: Slicer knows points and their names, but neither labels nor signs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nnunetv2_sam3d.clicks.click import BACKGROUND, FOREGROUND, ClickError

BACKGROUND_WORDS = {"background", "bg", "negative", "outside"}
FOREGROUND_WORDS = {"foreground", "fg", "positive", "inside"}
# What Slicer's versions call lists of points that nobody has named: they say nothing about the label.
DEFAULT_NAMES = {"f", "p", "point", "points", "point list", "pointlist", "fiducial", "fiducials", "markupsfiducial"}


def understand(names: Sequence[str], labels: Sequence[str]) -> tuple[str | None, int]:
    """Label and sign of a control point.

    A name is ``[-|+] [background|foreground] [LABEL] [numbers]``, its words divided by ``-``, ``_`` or spaces, in
    capitals or not: ``tumour``, ``tumour-2``, ``-tumour-2``, ``bg``, ``background tumour 3``. Slicer's own names
    (``F-1``) say nothing. The first name that says what the label is counts, and the first that says what the sign is.

    Args:
        names: of the point, its description, and the name of its list.
        labels: names in ``dataset.json``.

    Returns:
        label, ``None`` if no name has one, and sign.

    Raises:
        ClickError: if the point has a name of another form.
    """
    known = {_key(label): label for label in labels}
    label, sign = None, None
    for place, name in enumerate(names):
        understood = _understand(name, known)
        if understood is None:
            if place == 0:
                raise ClickError(
                    f"its name is {name!r:.60}, which is no label of the data set ({', '.join(labels)}). Name it "
                    'after one of them, with a "-" in front for a background click, or leave Slicer\'s (F-1) for none'
                )
            continue  # descriptions and names of lists may be about something else
        label = label or understood[0]
        sign = sign or understood[1]
    return label, sign or FOREGROUND


def _understand(name: str, known: dict[str, str]) -> tuple[str | None, int | None] | None:
    name, sign = name.strip(), None
    if name[:1] in ("-", "+"):
        sign = BACKGROUND if name[0] == "-" else FOREGROUND
        name = name[1:].strip()
    words = _words(name)
    for numbers in range(3):  # of the point, and of its list where Slicer has two of that name (F_1-3)
        if numbers:
            if not words or not words[-1].isdecimal():
                return None
            words = words[:-1]
        for rest, word_sign in _without_sign_words(words):
            if word_sign and sign and word_sign != sign:
                return None
            key = " ".join(rest)
            if key in known:
                return known[key], sign or word_sign
            if not rest or key in DEFAULT_NAMES:
                return None, sign or word_sign
    return None


def _without_sign_words(words: list[str]) -> list[tuple[list[str], int | None]]:
    """The words as they are, which may be a label that contains such a word, and without one at either end."""
    found: list[tuple[list[str], int | None]] = [(words, None)]
    for word, rest in ((words[:1], words[1:]), (words[-1:], words[:-1])):
        for known, sign in ((BACKGROUND_WORDS, BACKGROUND), (FOREGROUND_WORDS, FOREGROUND)):
            if set(word) & known:
                found.append((rest, sign))
    return found


def _words(name: str) -> list[str]:
    return [word.casefold() for word in re.split(r"[\s_]*-[\s_]*|[\s_]+", name)] if name else []


def _key(label: str) -> str:
    return " ".join(_words(label))
