"""A table of text, and its Markdown and LaTeX forms; text from data files cannot become markup in any of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "\n": " ",
}
MARKDOWN = {letter: f"\\{letter}" for letter in "\\`*_[]|#~$!"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " "}


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        name: of its files.
        caption: says what the numbers are.
        header: column titles.
        lines: rows of cells, as long as the header.
        text_columns: numbers of the columns that hold text, set to the left.
        wrapped_columns: numbers of those that hold sentences.
        rules: numbers of the rows that begin a new block.
    """

    name: str
    caption: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    text_columns: frozenset[int] = frozenset({0})
    wrapped_columns: frozenset[int] = field(default_factory=frozenset)

    @property
    def rules(self) -> frozenset[int]:
        """Rows whose first cell differs from the row above."""
        return frozenset(
            number
            for number, (above, line) in enumerate(zip(self.lines, self.lines[1:], strict=False), 1)
            if above[0] != line[0]
        )

    def markdown(self) -> str:
        """As GitHub's Markdown shows tables."""
        rows = [[_replaced(cell, MARKDOWN) for cell in line] for line in (self.header, *self.lines)]
        left = self.text_columns | self.wrapped_columns
        marks = [":---" if column in left else "---:" for column in range(len(self.header))]
        lines = [rows[0], marks, *rows[1:]]
        return f"{_replaced(self.caption, MARKDOWN)}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def latex(self) -> str:
        """A ``table`` for the booktabs package."""
        columns = "".join(
            "p{4cm}" if column in self.wrapped_columns else "l" if column in self.text_columns else "r"
            for column in range(len(self.header))
        )
        lines = [r"\midrule"]
        for number, line in enumerate(self.lines):
            lines += [r"\addlinespace"] if number in self.rules else []
            lines.append(" & ".join(_replaced(cell, LATEX) for cell in line) + r" \\")
        head = " & ".join(_replaced(cell, LATEX) for cell in self.header) + r" \\"
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_replaced(self.caption, LATEX)}}}",
                rf"\label{{tab:{self.name}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                head,
                *lines,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def interval(mean: float, low: float, high: float, digits: int = 3) -> str:
    """``0.812 [0.790, 0.835]``."""
    if math.isnan(mean) or math.isnan(low):
        return number(mean, digits)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def p_value(p: float) -> str:
    """Three digits, never 0."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def csv_text(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" and text else text


def _replaced(text: str, table: dict[str, str]) -> str:
    return "".join(table.get(letter, letter) for letter in text)
