"""Tables: Markdown, LaTeX and CSV in which text from data files becomes neither markup nor a formula."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import pandas as pd

# pandas escapes neither captions nor the last five
LATEX = str.maketrans(
    {letter: f"\\{letter}" for letter in "{}$&#%_"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "<": "$<$", ">": "$>$", "|": "$|$", "\n": " "}
)
MARKDOWN = str.maketrans(
    {letter: f"\\{letter}" for letter in "\\`*_[]|#~$!"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " "}
)
SMALL = r"\footnotesize\setlength{\tabcolsep}{3pt}"
WRAPPED = r">{\raggedright\arraybackslash}p{3.2cm}"
PAGE_ROWS = 40  # in small letters, beside a caption


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        name: of its files.
        caption: says what the numbers are.
        cells: text, in columns with titles.
        text: titles of the columns that hold text, set to the left.
        wrapped: titles of those that hold sentences.
    """

    name: str
    caption: str
    cells: pd.DataFrame
    text: Collection[str]
    wrapped: Collection[str] = ()

    @property
    def header(self) -> list[str]:
        """Column titles."""
        return list(self.cells)

    @property
    def lines(self) -> list[list[str]]:
        """Rows of cells."""
        return self.cells.to_numpy().tolist()

    @property
    def text_columns(self) -> set[int]:
        """Numbers of the columns that hold text."""
        return {self.header.index(title) for title in self.text}

    @property
    def wrapped_columns(self) -> set[int]:
        """Numbers of the columns that hold sentences."""
        return {self.header.index(title) for title in self.wrapped}

    @property
    def rules(self) -> list[int]:
        """Numbers of the rows that begin a new block: their first cell differs from the row above."""
        first = self.cells.iloc[:, 0]
        return [row for row in self.cells.index[first != first.shift()] if row]

    def markdown(self) -> str:
        """As GitHub's Markdown shows tables."""
        lines = [[cell.translate(MARKDOWN) for cell in line] for line in (self.header, *self.lines)]
        widths = [max(4, *map(len, column)) for column in zip(*lines, strict=True)]
        left = [title in {*self.text, *self.wrapped} for title in self.header]
        marks = [f":{'-' * (w - 1)}" if text else f"{'-' * (w - 1)}:" for w, text in zip(widths, left, strict=True)]
        padded = [
            [c.ljust(w) if text else c.rjust(w) for c, w, text in zip(line, widths, left, strict=True)]
            for line in lines
        ]
        rows = "".join(f"| {' | '.join(line)} |\n" for line in (padded[0], marks, *padded[1:]))
        return f"{self.caption.translate(MARKDOWN)}\n\n{rows}"

    def latex(self) -> str:
        """A ``table`` for booktabs, or where it may not fit a page, a ``longtable`` for that package and array."""
        long = len(self.cells) > PAGE_ROWS or bool(self.wrapped)
        style = self.cells.style.hide(axis="index").format(_latex).format_index(_latex, axis="columns")
        style.format(lambda cell: f"\\addlinespace\n{_latex(cell)}", subset=(self.rules, self.header[:1]))
        if not long:
            # pandas writes a selector as a command
            style.set_table_styles([{"selector": SMALL[1:], "props": ":;"}])
        text = style.to_latex(
            column_format="".join(
                WRAPPED if title in self.wrapped else "l" if title in self.text else "r" for title in self.header
            ),
            position_float=None if long else "centering",
            hrules=True,
            label=f"tab:{self.name}",
            caption=_latex(self.caption),
            environment="longtable" if long else "table",
        )
        return f"{{{SMALL}\\setlength{{\\LTcapwidth}}{{\\linewidth}}\n{text}}}\n" if long else text


def csv_text(cells: pd.DataFrame) -> str:
    """CSV with ten digits; an apostrophe goes before text that a spreadsheet would take for a formula.

    Some split lines at semicolons or tabs, too: what stands behind one begins a cell.
    """
    safe = cells.replace(r"(^|[;,|\t\r\n])(\s*[=+\-@\t\r＝＋－＠])", r"\1'\2", regex=True)
    return safe.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def number(value: float, digits: int = 3) -> str:
    """A figure, or a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


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


def _latex(text: str) -> str:
    """Escaped; what LaTeX would take for an argument of the row's end before it is in braces."""
    escaped = text.translate(LATEX)
    return f"{{{escaped}}}" if escaped.startswith(("[", "*")) else escaped
