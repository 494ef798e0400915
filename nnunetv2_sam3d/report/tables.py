"""A table of text, and its Markdown and LaTeX forms; text from data files cannot become markup in any of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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

PAGE_ROWS = 40  # in small letters, beside a caption


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
        """A ``table`` for booktabs, or where it may not fit a page, a ``longtable`` for that package and array."""
        columns = "".join(
            r">{\raggedright\arraybackslash}p{3.2cm}"
            if column in self.wrapped_columns
            else "l"
            if column in self.text_columns
            else "r"
            for column in range(len(self.header))
        )
        lines = []
        for number, line in enumerate(self.lines):
            lines += [r"\addlinespace"] if number in self.rules else []
            lines.append(" & ".join(_replaced(cell, LATEX) for cell in line) + r" \\")
        head = [r"\toprule", " & ".join(_replaced(cell, LATEX) for cell in self.header) + r" \\", r"\midrule"]
        caption, label = rf"\caption{{{_replaced(self.caption, LATEX)}}}", rf"\label{{tab:{self.name}}}"
        small = r"\footnotesize\setlength{\tabcolsep}{3pt}"
        if len(self.lines) > PAGE_ROWS or self.wrapped_columns:
            begin = [
                "{" + small + r"\setlength{\LTcapwidth}{\linewidth}",
                rf"\begin{{longtable}}{{{columns}}}",
                caption + label + r" \\",
                *head,
            ]
            begin += [r"\endfirsthead", *head, r"\endhead", r"\bottomrule", r"\endfoot"]
            return "\n".join([*begin, *lines, r"\end{longtable}", "}", ""])
        begin = [r"\begin{table}", r"\centering", caption, label, small, rf"\begin{{tabular}}{{{columns}}}"]
        return "\n".join([*begin, *head, *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def interval(mean: float, low: float, high: float, digits: int = 3) -> str:
    """``0.812 [0.790, 0.835]``."""
    if math.isnan(mean) or math.isnan(low):
        return number(mean, digits)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def p_value(p: float) -> str:
    """Three digits, never 0; a dash where no test was made."""
    return "<0.001" if p < 0.001 else number(p)


def duration(hours: float, spread: float = math.nan) -> str:
    """``4.2 min`` or ``4.2 ± 0.3 min``, in the unit that fits."""
    if math.isnan(hours):
        return "-"
    seconds_of = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
    unit = "s" if hours * 3600 < 90 else "min" if hours < 1.5 else "h" if hours < 48 else "d"
    values = [f"{value * 3600 / seconds_of[unit]:.3g}" for value in (hours, spread) if not math.isnan(value)]
    return f"{' ± '.join(values)} {unit}"


def counted(count: int, thing: str) -> str:
    """``1 fold``, ``3 folds``."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def listed(names: Iterable[str], limit: int = 3) -> str:
    """``a, b and c``, or ``a, b, c and 4 more``."""
    found = list(names)
    shown, rest = (found, []) if len(found) <= limit else (found[:limit], found[limit:])
    if rest:
        return f"{', '.join(shown)} and {len(rest)} more"
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))


def csv_text(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" and text else text


def _replaced(text: str, table: dict[str, str]) -> str:
    return "".join(table.get(letter, letter) for letter in text)
