"""The HTML page: sections in, one file out that loads nothing and runs only its own script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from nnunetv2_sam3d.report.tables import Table

MEDIA = {"svg": "image/svg+xml", "png": "image/png"}


@dataclass(frozen=True)
class Picture:
    """An embedded figure.

    Attributes:
        content: of the file.
        kind: ``svg`` or ``png``.
        caption: below it, and for those who do not see it.
    """

    content: bytes
    kind: str
    caption: str

    @property
    def uri(self) -> str:
        """As data: address; inside an image, SVG can neither run scripts nor load anything."""
        return f"data:{MEDIA[self.kind]};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Scene:
    """Surfaces for the 3D viewer.

    Attributes:
        title: above it.
        data: of :func:`nnunetv2_sam3d.report.meshes.scene`.
    """

    title: str
    data: dict[str, Any]

    @property
    def structures(self) -> list[str]:
        """Names in their order."""
        return list(dict.fromkeys(mesh["structure"] for mesh in self.data["meshes"]))


@dataclass(frozen=True)
class Section:
    """A chapter of the page; all of its text is escaped.

    Attributes:
        anchor: for links.
        title: of the chapter.
        notes: warnings, set off from the text.
        texts: paragraphs before tables and pictures.
        tables: of the chapter.
        pictures: below the tables.
        scenes: of the 3D viewer.
        code: text as it is.
        lead: what the chapter says, in large letters.
        closing: a paragraph after everything else.
        folded: whether only the title shows until a reader opens the chapter.
    """

    anchor: str
    title: str
    notes: Sequence[str] = ()
    texts: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    scenes: Sequence[Scene] = ()
    code: Sequence[str] = ()
    lead: str = ""
    closing: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    subtitle: str
    sections: Sequence[Section] = field(default_factory=list)


def render(page: Page) -> str:
    """The HTML text.

    Its Content-Security-Policy allows the page's own style and script by their hashes and embedded images, no more.
    """
    folder = files(__package__)
    style = folder.joinpath("page.css").read_text(encoding="utf-8")
    needs_script = any(section.scenes for section in page.sections)
    script = folder.joinpath("viewer.js").read_text(encoding="utf-8") if needs_script else ""
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src {_quoted(script)}; base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(folder.joinpath("report.html.jinja").read_text(encoding="utf-8"))
    # style and script are this package's own files, the only text that is not escaped
    return template.render(report=page, policy=policy, style=Markup(style), script=Markup(script))


def _quoted(script: str) -> str:
    return f"'{_hash(script)}'" if script else "'none'"


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
