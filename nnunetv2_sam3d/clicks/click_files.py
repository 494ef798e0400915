"""Which format a click file has, and which file belongs to which case."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nnunetv2_sam3d.clicks.click import ClickError, ClickFile, FileClick
from nnunetv2_sam3d.clicks.csv_format import read_csv
from nnunetv2_sam3d.clicks.json_format import read_own_json, write_clicks
from nnunetv2_sam3d.clicks.slicer import read_fcsv, read_markups
from nnunetv2_sam3d.messages import shown

__all__ = ["RECORD_SUFFIX", "SUFFIXES", "case_of", "find_clicks", "read_clicks", "write_clicks"]

RECORD_SUFFIX = "_clicks.json"  # of what predictions leave beside their segmentations
SUFFIXES = (RECORD_SUFFIX, ".mrk.json", ".json", ".fcsv", ".csv", ".tsv")
MAX_BYTES = 8 << 20
# What nnU-Net puts into folders of predictions.
_NNUNET_FILES = {"dataset.json", "plans.json", "predict_from_raw_data_args.json"}


def read_clicks(file: str | os.PathLike[str]) -> ClickFile:
    """Reads a file of clicks: our JSON, a table (``.csv``, ``.tsv``), or 3D Slicer's ``.mrk.json`` and ``.fcsv``.

    Raises:
        ClickError: for a file that is absent, damaged, or something else; it names the file and what helps.
    """
    path = Path(file)
    try:
        text = _read_text(path)
        if path.name.lower().endswith(".fcsv"):
            return read_fcsv(path, text)
        if path.name.lower().endswith((".csv", ".tsv")):
            return read_csv(path, text)
        if path.name.lower().endswith(".json"):
            content = _parse_json(text)
            if isinstance(content, dict) and "markups" in content:
                return read_markups(path, content)
            return read_own_json(path, content)
        raise ClickError(f"expected a file that ends in {', '.join(SUFFIXES)}")
    except csv.Error as error:
        raise ClickError(f"{path}: it is no table ({error}); save the clicks again") from error
    except ClickError as error:
        raise ClickError(f"{path}: {error}") from error


def find_clicks(
    path: str | os.PathLike[str], cases: Iterable[str], output: str | os.PathLike[str] | None = None
) -> dict[str, ClickFile]:
    """The clicks of each case; cases without clicks are left out.

    In a folder, what a prediction left there gives way to another file of that case.

    Args:
        path: a folder with ``CASE.mrk.json``, ``CASE.json``, ``CASE.fcsv``, ``CASE.csv`` or ``CASE.tsv`` (or the same
            with ``CASE_0000``), a table with a column ``case``, or a file of the only case or of the case that it is
            named after.
        cases: names of all cases.
        output: folder for segmentations; what earlier predictions left in it is no input, unless it is ``path`` itself.

    Raises:
        ClickError: for files that cannot be read or fit no case, and for two files of one case.
    """
    path, cases = Path(path), list(cases)
    if path.is_dir():
        return _find_in_folder(path, cases, output is not None and path.resolve() == Path(output).resolve())
    content = read_clicks(path)
    if content.has_cases:
        grouped: dict[str, list[FileClick]] = {}
        for click in content.clicks:
            assert click.case is not None  # the reader wants all or none
            grouped.setdefault(click.case, []).append(click)
        for case in grouped:
            if case not in cases:
                raise ClickError(
                    f"{path}: {grouped[case][0]}: {_unknown(case, cases)}. Correct the name, or remove the lines of "
                    "images that are not predicted"
                )
        return {case: replace(content, clicks=tuple(clicks)) for case, clicks in grouped.items()}
    case = cases[0] if len(cases) == 1 else case_of(path, cases)
    if case not in cases:
        raise ClickError(
            f"{path} is of one case, but there are {len(cases)} cases, and none is called {case!r}. Name it "
            "after its case, give a folder of such files, or a table with a column case"
        )
    return {case: content}


def _find_in_folder(folder: Path, cases: list[str], is_output: bool) -> dict[str, ClickFile]:
    found: dict[str, ClickFile] = {}
    strangers: list[tuple[Path, str]] = []
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.name in _NNUNET_FILES:
            continue
        if not file.is_file() or not file.name.lower().endswith(SUFFIXES):
            continue
        content = read_clicks(file)
        if is_output and content.of_prediction:
            continue
        case = case_of(file, cases)
        if case not in cases:
            strangers.append((file, case))
        elif case in found and found[case].of_prediction == content.of_prediction:
            raise ClickError(f"{found[case].file} and {file} are both of the case {case}: keep one of them")
        elif case not in found or found[case].of_prediction:
            found[case] = content
    _refuse(folder, strangers, found, cases)
    if not found:
        raise ClickError(
            f"{folder} holds no clicks{' but those of earlier predictions' if is_output else ''}; name their files "
            f"after the cases: CASE + {', '.join(SUFFIXES)}"
        )
    for case, content in found.items():
        for click in content.clicks:
            if click.case not in (None, case):
                raise ClickError(
                    f"{content.file}: {click} is of the case {click.case}, but the file is named after {case}: give a "
                    "table of several cases by itself, not in a folder"
                )
    return found


def case_of(file: Path, cases: Sequence[str]) -> str:
    """The case that a file is named after, also with the number of the image's channel behind it."""
    suffix = next((suffix for suffix in SUFFIXES if file.name.lower().endswith(suffix)), "")
    name = file.name[: len(file.name) - len(suffix)]
    without_channel = re.sub(r"_\d{4}\Z", "", name)
    return without_channel if name not in cases and without_channel in cases else name


def _refuse(folder: Path, strangers: list[tuple[Path, str]], found: dict[str, ClickFile], cases: list[str]) -> None:
    """ClickError for files in a folder that are of no case."""
    if not strangers:
        return
    file, stranger = strangers[0]
    if len(cases) == 1 and found:
        raise ClickError(
            f"{folder} holds clicks of other images than {cases[0]}, for instance {file.name}. Give the file of that "
            f"image itself: --clicks {found[cases[0]].file}"
        )
    elsewhere = (
        "of a single image, --clicks takes the file itself, of any name"
        if len(cases) == 1
        else "clicks of images that are not predicted belong into another folder"
    )
    raise ClickError(
        f"{file}: {_unknown(stranger, cases)}. Name it after its image, without the channel (_0000) and the file "
        f"ending; {elsewhere}"
    )


def _unknown(case: str, cases: list[str]) -> str:
    near = get_close_matches(case[:200], cases, n=3) or sorted(cases)[:3]
    return f"there is no case {shown(case)} among the {len(cases)} images; similar names: {', '.join(near)}"


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise ClickError("there is no such file; give a file of clicks")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ClickError(f"it has {size} bytes, too many for a file of clicks (at most {MAX_BYTES})")
    text = _decoded(path.read_bytes(), is_table=path.name.lower().endswith((".csv", ".tsv", ".fcsv")))
    if not text.strip():
        raise ClickError("it is empty; save the clicks again, or remove the file for a prediction without clicks")
    return text


def _decoded(content: bytes, is_table: bool) -> str:
    """Text in UTF-8; in UTF-16 if it begins as such; tables also in what spreadsheets on Windows write (cp1252)."""
    encodings = ["utf-16"] if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else ["utf-8-sig"]
    for encoding in encodings + ["cp1252"] * is_table:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if not any(letter < " " and letter not in "\t\n\r\f\v" for letter in set(text)):
            return text
    if any(byte < 32 and byte not in b"\t\n\r\f\v" for byte in set(content)):
        raise ClickError("it is no text; give a file of clicks, not an image or an archive")
    raise ClickError("it is text, but not in UTF-8, which files of clicks are in; save it with this encoding")


def _parse_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ClickError(f"it holds {constant} where a number is expected")

    try:
        return json.loads(text, parse_constant=refuse)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ClickError(f"it is no JSON ({error}); save the clicks again") from error
    except ValueError as error:
        if isinstance(error, ClickError):
            raise
        raise ClickError(f"it holds a number that is none ({error})") from error
