"""One look for all figures, and files that are the same for the same input."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from nnunetv2_sam3d.files import write_bytes
from nnunetv2_sam3d.report.page import Picture

# Okabe and Ito's colours, which colour-blind readers can tell apart; every model has a marker and line style as well
MODEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MODEL_MARKERS = "osD^vP"
MODEL_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))
REFERENCE_COLOUR = "#F0E442"
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "nnunetv2_sam3d",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.parse_math": False,  # names may hold a dollar
    "axes.formatter.useoffset": False,
}


def new_figure(width: float, height: float) -> Figure:
    """A figure in inches, outside pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def colour(number: int) -> str:
    """Of the model with this number."""
    return MODEL_COLOURS[number % len(MODEL_COLOURS)]


def short(name: str, width: int = 22) -> str:
    """A name cut to what fits under an axis."""
    return textwrap.shorten(name, width, placeholder="...") if " " in name else name[:width]


def plot_style() -> AbstractContextManager[None]:
    """Context in which figures are built and saved."""
    return matplotlib.rc_context(SETTINGS)


def as_bytes(figure: Figure, kind: str, dpi: int) -> bytes:
    """A figure as ``svg`` or ``png``, without date and version."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def save(figure: Figure, folder: Path, name: str, dpi: int = 150, kinds: Sequence[str] = ("svg", "png")) -> None:
    """Writes ``NAME.svg`` and ``NAME.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    _settle(figure)
    for kind in kinds:
        write_bytes(folder / f"{name}.{kind}", as_bytes(figure, kind, dpi))


def picture(figure: Figure, folder: Path, name: str, caption: str, kind: str = "svg") -> Picture:
    """Saves a figure under a name made fit for files; returns it for the page."""
    file = "".join(letter if letter.isalnum() else "_" for letter in name)
    save(figure, folder, file)
    return Picture((folder / f"{file}.{kind}").read_bytes(), kind, caption)


def _settle(figure: Figure) -> None:
    """Ends the automatic layout at rounded places: its solver's last digits differ from run to run."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(float(value), 4) for value in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))
    for text in figure.get_children():
        if isinstance(text, Text):  # title and labels of the whole figure
            x, y = text.get_position()
            text.set_position((round(x, 4), round(y, 4)))
