"""Files exactly as 3D Slicer 5.6 writes them (vtkMRMLMarkupsJsonStorageNode, vtkMRMLMarkupsFiducialStorageNode)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
DISPLAY = {
    "visibility": True,
    "opacity": 1.0,
    "color": [0.4, 1.0, 1.0],
    "selectedColor": [1.0, 0.5000076295109483, 0.5000076295109483],
    "activeColor": [0.4, 1.0, 0.0],
    "propertiesLabelVisibility": False,
    "pointLabelsVisibility": True,
    "textScale": 3.0,
    "glyphType": "Sphere3D",
    "glyphScale": 3.0,
    "glyphSize": 5.0,
    "useGlyphScale": True,
    "sliceProjection": False,
    "sliceProjectionUseFiducialColor": True,
    "sliceProjectionOutlinedBehindSlicePlane": False,
    "sliceProjectionColor": [1.0, 1.0, 1.0],
    "sliceProjectionOpacity": 0.6,
    "lineThickness": 0.2,
    "lineColorFadingStart": 1.0,
    "lineColorFadingEnd": 10.0,
    "lineColorFadingSaturation": 1.0,
    "lineColorFadingHueOffset": 0.0,
    "handlesInteractive": False,
    "translationHandleVisibility": True,
    "rotationHandleVisibility": True,
    "scaleHandleVisibility": False,
    "interactionHandleScale": 3.0,
    "snapMode": "toVisibleSurface",
}
Point = tuple[str, Sequence[float]]


def markups(points: Sequence[Point], *, undefined: Sequence[str] = (), system: str = "LPS") -> dict:
    """Content of a ``.mrk.json``: labels and positions, and labels of points that were deleted or never placed."""
    control_points = [
        {
            "id": str(number),
            "label": label,
            "description": "",
            "associatedNodeID": "vtkMRMLScalarVolumeNode1",
            "position": list(position) if position else "",
            "orientation": [-1.0, -0.0, -0.0, -0.0, -1.0, -0.0, 0.0, 0.0, 1.0],
            "selected": True,
            "locked": False,
            "visibility": True,
            "positionStatus": "defined" if position else "undefined",
        }
        for number, (label, position) in enumerate([*points, *((label, ()) for label in undefined)], 1)
    ]
    markup = {
        "type": "Fiducial",
        "coordinateSystem": system,
        "coordinateUnits": "mm",
        "locked": False,
        "fixedNumberOfControlPoints": False,
        "labelFormat": "%N-%d",
        "lastUsedControlPointNumber": len(control_points),
        "controlPoints": control_points,
        "measurements": [],
        "display": DISPLAY,
    }
    return {"@schema": SCHEMA, "markups": [markup]}


def mrk_json(content: dict) -> str:
    """As text: four spaces, numbers of a list in one line."""
    return re.sub(r"\[\s+([-\d][^\[\]{}]*?)\s+\]", lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]",
                  json.dumps(content, indent=4)) + "\n"  # fmt: skip


def fcsv(points: Sequence[Point], *, version: str = "4.11", system: str = "LPS", extra: str = "") -> str:
    """A ``.fcsv``; before 4.11 the coordinate system is a number, since 5.2 lines end in two more values."""
    lines = [
        f"# Markups fiducial file version = {version}",
        f"# CoordinateSystem = {system}",
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID",
    ]
    for number, (label, (x, y, z)) in enumerate(points, 1):
        quoted = f'"{label}"' if "," in label else label
        lines.append(f"{number},{x},{y},{z},0,0,0,1,1,1,0,{quoted},,vtkMRMLScalarVolumeNode1{extra}")
    return "\n".join(lines) + "\n"
