"""A random abdomen as painted layers of implicit solids, in millimetres.

The body frame is LPS (x to the patient's left, y to the back, z to the head) with its origin in the middle of the
vertebral body at the height of the kidneys. Points are float arrays of shape (3, ...) in x, y, z order; a solid is a
signed distance in mm, negative inside. Nothing here knows about voxels, so the same abdomen can be scanned on any grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

BACKGROUND, KIDNEY, TUMOUR, CYST = 0, 1, 2, 3

Distance = Callable[[np.ndarray], np.ndarray]
Value = float | Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Solid:
    """A signed distance `(3, ...) mm -> (...) mm` and a sphere that holds all of its inside."""

    distance: Distance
    centre_mm: np.ndarray
    reach_mm: float


@dataclass(frozen=True)
class Layer:
    """A solid painted with a value in HU (constant or per point), and a label where it is of interest."""

    solid: Solid
    hu: Value
    label: int | None = None


@dataclass(frozen=True)
class Anatomy:
    """One patient: layers from back to front, and boxes (2, 3) in x, y, z around body and labelled tissue."""

    layers: tuple[Layer, ...]
    body_box_mm: np.ndarray
    renal_box_mm: np.ndarray


# ---------------------------------------------------------------------------------------------------------- solids


def _ellipsoid_distance(q: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """First-order distance to an ellipsoid at the origin; exact on the surface, which is all that painting needs."""
    scale = radii.reshape(3, *[1] * (q.ndim - 1)).astype(q.dtype)
    scaled = q / scale
    level = np.sqrt((scaled**2).sum(0))
    return level * (level - 1) / np.maximum(np.sqrt(((scaled / scale) ** 2).sum(0)), 1e-4)


def local(p: np.ndarray, centre: np.ndarray, axes: np.ndarray | None) -> np.ndarray:
    """Points relative to `centre`, in the frame whose axes are the columns of `axes`."""
    q = p - centre.reshape(3, *[1] * (p.ndim - 1)).astype(p.dtype)
    return q if axes is None else np.tensordot(axes.T.astype(p.dtype), q, axes=1)


def ellipsoid(centre: ArrayLike, radii: ArrayLike, axes: np.ndarray | None = None) -> Solid:
    """An ellipsoid with half axes `radii` in mm along the columns of `axes`."""
    c, r = np.asarray(centre, float), np.asarray(radii, float)
    return Solid(lambda p: _ellipsoid_distance(local(p, c, axes), r), c, float(r.max()))


def bean(centre: np.ndarray, axes: np.ndarray, radii: np.ndarray, bend_mm: float) -> Solid:
    """An ellipsoid whose ends along the third of `axes` are bent backwards along the first by `bend_mm`."""

    def distance(p: np.ndarray) -> np.ndarray:
        q = local(p, centre, axes)
        q[0] += bend_mm * (q[2] / radii[2]) ** 2
        return _ellipsoid_distance(q, radii)

    return Solid(distance, centre, float(radii.max()) + bend_mm)


def tube(start: ArrayLike, end: ArrayLike, start_radius: float, end_radius: float | None = None) -> Solid:
    """A round-ended tube between two points; its radius in mm changes linearly."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    end_radius = start_radius if end_radius is None else end_radius

    def distance(p: np.ndarray) -> np.ndarray:
        q, axis = local(p, a, None), (b - a).astype(p.dtype)
        t = np.clip(np.tensordot(axis, q, axes=1) / (axis @ axis), 0, 1)
        foot = axis.reshape(3, *[1] * (p.ndim - 1)) * t
        return np.sqrt(((q - foot) ** 2).sum(0)) - (start_radius + (end_radius - start_radius) * t)

    return Solid(distance, (a + b) / 2, float(np.linalg.norm(b - a)) / 2 + max(start_radius, end_radius))


def prism(centre_y: float, half_width: float, half_depth: float, power: float = 2.5) -> Solid:
    """An endless superelliptic column along z: trunk cross-sections are squarer than an ellipse."""

    def distance(p: np.ndarray) -> np.ndarray:
        x, y = np.abs(p[0]) / half_width, np.abs(p[1] - centre_y) / half_depth
        gx, gy = x ** (power - 1), y ** (power - 1)
        total = np.maximum(gx * x + gy * y, 1e-6)
        slope = np.sqrt((gx / half_width) ** 2 + (gy / half_depth) ** 2) * total ** (1 / power - 1)
        return (total ** (1 / power) - 1) / np.maximum(slope, 1e-4)

    return Solid(distance, np.zeros(3), np.inf)


def combine(pick: np.ufunc, *solids: Solid) -> Solid:
    """Union (`np.minimum`, bounded by all) or intersection (`np.maximum`, bounded by the first solid)."""

    def distance(p: np.ndarray) -> np.ndarray:
        out = solids[0].distance(p)
        for solid in solids[1:]:
            out = pick(out, solid.distance(p))
        return out

    first = solids[0]
    if pick is np.maximum:
        return Solid(distance, first.centre_mm, first.reach_mm)
    reach = max(np.linalg.norm(s.centre_mm - first.centre_mm) + s.reach_mm for s in solids)
    return Solid(distance, first.centre_mm, float(reach))


def outside(solid: Solid) -> Solid:
    """The complement."""
    return Solid(lambda p: -solid.distance(p), solid.centre_mm, np.inf)


def grown(solid: Solid, margin_mm: float) -> Solid:
    """The solid with its surface moved outwards (inwards if negative)."""
    return Solid(lambda p: solid.distance(p) - margin_mm, solid.centre_mm, solid.reach_mm + max(margin_mm, 0.0))


def waves(rng: np.random.Generator, wavelength_mm: float, count: int = 5) -> Callable[[np.ndarray], np.ndarray]:
    """A smooth random field of unit variance: a few plane waves in random directions."""
    k = rng.normal(size=(count, 3))
    k *= 2 * np.pi / (wavelength_mm * rng.uniform(0.7, 1.4, (count, 1)) * np.linalg.norm(k, axis=1, keepdims=True))
    phase = rng.uniform(0, 2 * np.pi, count)

    def field(p: np.ndarray) -> np.ndarray:
        out = np.zeros(p.shape[1:], p.dtype)
        for wave, shift in zip(k.astype(p.dtype), phase, strict=True):
            out += np.sin(np.tensordot(wave, p, axes=1) + p.dtype.type(shift))
        return out * p.dtype.type(np.sqrt(2 / count))

    return field


def rippled(solid: Solid, rng: np.random.Generator, height_mm: float, wavelength_mm: float) -> Solid:
    """The solid with an irregular surface; `height_mm` is the standard deviation of the displacement."""
    field = waves(rng, wavelength_mm)
    return Solid(lambda p: solid.distance(p) + height_mm * field(p), solid.centre_mm, solid.reach_mm + 2.5 * height_mm)


def texture(rng: np.random.Generator, mean_hu: float, sd_hu: float, wavelength_mm: float) -> Value:
    """HU that wander around a mean."""
    field = waves(rng, wavelength_mm)
    return lambda p: mean_hu + sd_hu * field(p)


def _turn(rng: np.random.Generator, spread_deg: float) -> np.ndarray:
    """Axes turned by a random rotation of about `spread_deg` about each axis."""
    return Rotation.from_euler("xyz", rng.normal(0, spread_deg, 3), degrees=True).as_matrix()


# ------------------------------------------------------------------------------------------------------------ trunk


@dataclass(frozen=True)
class Trunk:
    """The nested columns that everything else has to fit into; `front_mm` is the y of the cavity's front."""

    skin: Solid
    wall: Solid
    cavity: Solid
    half_width_mm: float
    front_mm: float
    box_mm: np.ndarray


def random_trunk(rng: np.random.Generator) -> Trunk:
    """A trunk of random width, depth, fat and muscle, in mm; the cavity ends 38 mm behind the origin."""
    half_width = rng.uniform(138, 178)
    half_depth = half_width * rng.uniform(0.66, 0.75)
    fat_side, fat_front, fat_back = rng.uniform(8, 24), rng.uniform(9, 26), rng.uniform(9, 20)
    back = 58 + fat_back + rng.uniform(0, 6)
    front = back - 2 * half_depth
    wall_front, wall_back = front + fat_front, back - fat_back
    cavity_front, cavity_back = wall_front + rng.uniform(8, 11), 38.0
    cavity_width = half_width - fat_side - rng.uniform(9, 13)

    def column(y0: float, y1: float, width: float, power: float) -> Solid:
        return prism((y0 + y1) / 2, width, (y1 - y0) / 2, power)

    return Trunk(
        skin=column(front, back, half_width, 2.4),
        wall=column(wall_front, wall_back, half_width - fat_side, 2.5),
        cavity=column(cavity_front, cavity_back, cavity_width, 2.6),
        half_width_mm=cavity_width,
        front_mm=cavity_front,
        box_mm=np.array([[-half_width, front, -np.inf], [half_width, back, np.inf]]),
    )


def _ribs(rng: np.random.Generator, trunk: Trunk, bone_hu: float) -> Layer:
    """Ribs run inside the wall and slope down to the front; below a line from back to side there are none."""
    pitch, lowest, slope = 27.0, rng.uniform(5, 25), rng.uniform(0.5, 0.75)

    def distance(p: np.ndarray) -> np.ndarray:
        height = p[2] - slope * (p[1] - 40)  # 0 along the course of a rib
        number = np.maximum(np.round((height - lowest) / pitch), 0)
        off_course = (height - lowest - pitch * number) * 0.8
        depth = trunk.cavity.distance(p) - 5
        # The front of the belly has no ribs, and close to the spine the wall is too far back to carry them.
        missing = np.maximum(-60 - p[1], 34 - np.abs(p[0]))
        return np.maximum(np.sqrt(depth**2 + (0.75 * off_course) ** 2) - 4.2, missing)

    return Layer(Solid(distance, np.zeros(3), np.inf), bone_hu)


def _spine(rng: np.random.Generator, bone_hu: float) -> list[Layer]:
    """Vertebrae repeat along z: body with a hard shell, disc, canal with its arch, and processes."""
    pitch, shift, size = 34.0, rng.uniform(-17, 17), rng.uniform(0.92, 1.08)

    def folded(p: np.ndarray) -> np.ndarray:
        return np.stack([p[0], p[1], (p[2] - shift + pitch / 2) % pitch - pitch / 2])

    def repeated(solid: Solid) -> Solid:
        # The column is narrow, so a box of its own would save nothing over the height it spans anyway.
        return Solid(lambda p: solid.distance(folded(p)), np.zeros(3), 130.0)

    column = prism(0, 23 * size, 17 * size, 2.2)
    body = combine(np.maximum, column, Solid(lambda p: np.abs(p[2]) - 13.5, np.zeros(3), np.inf))
    ring = combine(np.maximum, prism(25, 15, 13, 2), Solid(lambda p: np.abs(p[2]) - 11, np.zeros(3), np.inf))
    arms = [tube((side * 14, 22, 3), (side * 40, 27, 3), 5, 3.5) for side in (-1, 1)]
    spine = tube((0, 36, -2), (0, 56, -5), 4, 5)
    shell = texture(rng, bone_hu, 60, 12)
    return [
        Layer(repeated(column), rng.uniform(75, 100)),
        Layer(repeated(combine(np.minimum, ring, spine, *arms)), bone_hu * 0.85),
        Layer(repeated(body), shell),
        Layer(repeated(grown(body, -3.0)), texture(rng, rng.uniform(150, 230), 25, 10)),
        Layer(repeated(prism(25, 9, 7.5, 2)), rng.uniform(20, 40)),
    ]


def _back_muscles(rng: np.random.Generator, trunk: Trunk, muscle: Value) -> list[Layer]:
    layers = []
    for side in (-1, 1):
        psoas = tube((side * 27, 8, 65), (side * 43, 2, -95), rng.uniform(6, 8), rng.uniform(17, 21))
        quadratus = combine(np.maximum, ellipsoid((side * 62, 34, -40), (22, 9, 120)), trunk.wall)
        layers += [Layer(rippled(solid, rng, 0.8, 30), muscle) for solid in (psoas, quadratus)]
    return layers


# ----------------------------------------------------------------------------------------------------------- organs


def _vessels(rng: np.random.Generator, aorta_hu: float, vein_hu: float) -> list[Layer]:
    aorta_x, cava_x = rng.uniform(6, 12), -rng.uniform(16, 20)
    aorta = tube((aorta_x, -26, 130), (aorta_x - 4, -28, -130), rng.uniform(8.5, 11))
    cava = combine(np.minimum, *(tube((cava_x + dx, -28, 130), (cava_x + dx, -26, -130), 9) for dx in (-2.5, 2.5)))
    superior = tube((aorta_x, -35, 25), (aorta_x - 3, -52, -70), 3.5)
    return [Layer(cava, vein_hu), Layer(aorta, aorta_hu), Layer(superior, aorta_hu)]


def _gas_over_fluid(rng: np.random.Generator, level_y: float) -> Value:
    """Lumen of a patient on their back: gas in front (low y), fluid behind."""
    fluid, gas = rng.uniform(5, 45), rng.uniform(-950, -800)
    return lambda p: np.where(p[1] < level_y, gas, fluid).astype(p.dtype)


def _loop(rng: np.random.Generator, centre: np.ndarray, radius: float) -> list[Layer]:
    """A piece of bowel: collapsed or fluid-filled ones are as dense as many tumours, which makes them distractors."""
    stretch = rng.uniform(0.8, 1.9)
    outer = ellipsoid(centre, (radius * stretch, radius, radius * rng.uniform(0.8, 1.2)), _turn(rng, 45))
    outer = rippled(outer, rng, 0.1 * radius, 2.2 * radius)
    layers = [Layer(outer, texture(rng, rng.uniform(55, 110), 8, 15))]
    kind = rng.uniform()
    if kind > 0.45:
        level = centre[1] + radius * (rng.uniform(-0.8, 0.3) if kind > 0.75 else -2)
        layers.append(Layer(grown(outer, -3.0), _gas_over_fluid(rng, level)))
    return layers


def _bowel(rng: np.random.Generator, trunk: Trunk) -> list[Layer]:
    layers: list[Layer] = []
    half_width, front = trunk.half_width_mm, trunk.front_mm
    for _ in range(rng.integers(60, 85)):
        radius = rng.uniform(8, 16)
        low, high = (-half_width + radius, front + radius + 4, -105), (half_width - radius, -38, 55)
        centre = rng.uniform(low, high)
        if trunk.cavity.distance(centre) < -radius - 2:
            layers += _loop(rng, centre, radius)
    for side in (-1, 1):  # ascending and descending colon, with sacculations
        for z in np.arange(-110, 15 if side < 0 else 35, 17.0):
            radius = rng.uniform(11, 18)
            layers += _loop(rng, np.array([side * (half_width - radius - 6), rng.uniform(-30, -14), z]), radius)
    stomach_y = front + rng.uniform(38, 48)
    stomach = rippled(ellipsoid((half_width * 0.5, stomach_y, 75), (42, 30, 40), _turn(rng, 12)), rng, 2, 40)
    stomach = combine(np.maximum, stomach, grown(trunk.cavity, -3))
    layers.append(Layer(stomach, rng.uniform(70, 100)))
    layers.append(Layer(grown(stomach, -5), _gas_over_fluid(rng, stomach_y - rng.uniform(5, 22))))
    pancreas = (tube((-25, -50, 5), (15, -56, 20), 11, 9), tube((15, -56, 20), (75, -30, 45), 9, 7))
    pancreas_hu = texture(rng, rng.uniform(85, 115), 8, 10)
    layers.append(Layer(rippled(combine(np.minimum, *pancreas), rng, 1.5, 15), pancreas_hu))
    for _ in range(rng.integers(25, 45)):  # mesenteric vessels
        start = rng.uniform((-60, front + 12, -100), (60, -45, 30))
        layers.append(Layer(tube(start, start + rng.normal(0, 14, 3), rng.uniform(1.2, 2.2)), rng.uniform(90, 190)))
    return layers


def _liver_and_spleen(rng: np.random.Generator, trunk: Trunk) -> list[Layer]:
    """Liver on the right (negative x) with vessels and perhaps a cyst, gall bladder, spleen on the left."""
    width, room = trunk.half_width_mm, grown(trunk.cavity, -2)
    liver_hu, tip = rng.uniform(90, 110), rng.uniform(-30, 10)
    right = ellipsoid((-width * 0.62, -38, 60), (width * 0.52, 75, 60 - tip), _turn(rng, 5))
    left = ellipsoid((-width * 0.1, trunk.front_mm + 38, 75), (width * 0.5, 36, 50), _turn(rng, 5))
    liver = combine(np.maximum, rippled(combine(np.minimum, right, left), rng, 2, 60), room)
    layers = [Layer(liver, texture(rng, liver_hu, 4, 40))]
    root = np.array([-width * 0.3, -52, 48])
    for _ in range(9):
        end = root + rng.uniform((-65, -30, 0), (15, 30, 50))
        branch = combine(np.maximum, tube(root, end, 4, 2), grown(liver, -6))
        layers.append(Layer(branch, liver_hu + rng.uniform(20, 45)))
    for _ in range(rng.integers(0, 3)):  # a cyst outside the kidneys is not to be labelled
        spot = ellipsoid(root + rng.uniform((-60, -15, 0), (-10, 15, 40)), rng.uniform(5, 12) * np.ones(3))
        layers.append(Layer(combine(np.maximum, spot, grown(liver, -4)), rng.uniform(0, 15)))
    gall_y = trunk.front_mm + rng.uniform(30, 40)
    layers.append(Layer(ellipsoid((-width * 0.42, gall_y, 12), (14, 17, 24), _turn(rng, 12)), rng.uniform(5, 20)))
    spleen = ellipsoid((width * 0.78, -5, 62), (24, 46, rng.uniform(38, 50)), _turn(rng, 8))
    spleen = combine(np.maximum, rippled(spleen, rng, 1.5, 40), room)
    return [*layers, Layer(spleen, texture(rng, rng.uniform(110, 140), 6, 25))]


def _lungs(trunk: Trunk) -> Layer:
    """The lowest parts of the lungs, behind and around the domes of the diaphragm."""
    domes = [ellipsoid((side * 65, -35, -20), (trunk.half_width_mm * 0.62, 82, 150)) for side in (-1, 1)]
    middle = tube((0, -30, -130), (0, -45, 150), 42)
    base = Solid(lambda p: 72 - p[2], np.zeros(3), np.inf)
    return Layer(combine(np.maximum, base, grown(trunk.cavity, 2), *map(outside, (*domes, middle))), -840.0)


def abdomen(rng: np.random.Generator, trunk: Trunk, renal: Sequence[Solid], fat_hu: float) -> list[Layer]:
    """Everything but the kidneys, from back to front, with a bed of fat left free around each solid of `renal`."""
    muscle = texture(rng, rng.uniform(50, 62), 4, 12)
    bone_hu, aorta_hu = rng.uniform(420, 700), rng.uniform(190, 230)
    fat = texture(rng, fat_hu, 4, 30)
    beds = [Layer(rippled(grown(solid, rng.uniform(3, 10)), rng, 2.0, 35), fat) for solid in renal]
    # Muscle may come closer than bowel and liver do, but a film of fat stays visible in most places.
    films = [Layer(combine(np.maximum, grown(solid, 2.5), trunk.cavity), fat) for solid in renal]
    return [
        Layer(trunk.skin, 20.0),
        Layer(grown(trunk.skin, -2.0), fat),
        Layer(trunk.wall, muscle),
        Layer(trunk.cavity, fat),
        _lungs(trunk),
        *_bowel(rng, trunk),
        *_liver_and_spleen(rng, trunk),
        *beds,
        *_back_muscles(rng, trunk, muscle),
        *films,
        _ribs(rng, trunk, bone_hu),
        *_spine(rng, bone_hu),
        *_vessels(rng, aorta_hu, rng.uniform(115, 160)),
    ]
