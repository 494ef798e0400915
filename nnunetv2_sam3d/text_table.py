"""Text tables."""

from __future__ import annotations

from collections.abc import Sequence

_PLAIN = str.maketrans({"|": r"\|", "<": "&lt;", "\n": " ", "\r": " "})


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up in a terminal; names in it are neither cells nor HTML."""
    header, *rows = [[cell.translate(_PLAIN) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
