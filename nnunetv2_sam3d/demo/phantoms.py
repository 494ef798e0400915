"""Phantoms that look like late arterial abdominal CT with kidney tumours.

They stand in for patients where no real data may be used: small enough for a demonstration without a GPU, yet with
organs, bowel and muscle in the same HU range as the tumours, so that thresholds alone do not find them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from nnunetv2_sam3d.demo.anatomy import (
    CYST,
    KIDNEY,
    TUMOUR,
    Anatomy,
    Layer,
    Solid,
    Trunk,
    abdomen,
    bean,
    combine,
    ellipsoid,
    grown,
    local,
    outside,
    random_trunk,
    rippled,
    texture,
    tube,
)

LARGEST_MATRIX, MOST_SLICES = 128, 60


@dataclass(frozen=True)
class PhantomCase:
    """One CT with its labels.

    `image_hu` is int16 and `labels` uint8, both (D, H, W) in z, y, x order with `spacing_mm` in the same order.
    `origin_mm` (x, y, z) and `direction` (nine numbers, row by row) are as SimpleITK takes them, in LPS.
    """

    image_hu: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: tuple[float, ...]


@dataclass(frozen=True)
class _Kidney:
    """`axes` has the columns: outwards from the hilum, sideways, along the length; `radii` (3,) in mm go with them."""

    side: int
    centre_mm: np.ndarray
    axes: np.ndarray
    radii_mm: np.ndarray
    body: Solid
    sinus: Solid


def _random_kidney(rng: np.random.Generator, trunk: Trunk, side: int) -> _Kidney:
    """A kidney beside the spine; `side` is +1 for the patient's left, where it also sits a little higher."""
    radii = np.array([rng.uniform(25, 30), rng.uniform(21, 26), rng.uniform(47, 58)])
    tilt, lean, roll = rng.uniform(6, 18), rng.uniform(2, 12), rng.uniform(15, 45)
    # Upper pole towards the spine and the back; hilum turned to the front. Mirrored on the right by `side`.
    turn = Rotation.from_euler("ZYX", [side * roll, -side * tilt, lean], degrees=True).as_matrix()
    axes = turn @ np.diag([side, 1.0, 1.0])
    centre = np.array([side * rng.uniform(60, 68), rng.uniform(0, 8), 5 * side + rng.uniform(-8, 8)])
    unit = np.random.default_rng(0).normal(size=(3, 300))
    surface = axes @ (radii[:, None] * unit / np.linalg.norm(unit, axis=0))
    for _ in range(40):  # forwards while it sticks in the wall of the back or the flank
        if trunk.cavity.distance(centre[:, None] + surface).max() < -1.5:
            break
        centre[1] -= 1.0
    body = rippled(bean(centre, axes, radii, rng.uniform(5, 10)), rng, rng.uniform(0.4, 1.0), 30)
    hollow = centre + axes @ (radii * (-0.75, 0, 0))
    sinus = ellipsoid(hollow, radii * (rng.uniform(0.7, 0.9), rng.uniform(0.3, 0.42), rng.uniform(0.38, 0.5)), axes)
    return _Kidney(side, centre, axes, radii, body, rippled(sinus, rng, 1.2, 14))


def _kidney_layers(rng: np.random.Generator, kidney: _Kidney, cortex_hu: float, medulla_hu: float) -> list[Layer]:
    """Sinus fat with the collecting system and vessels, and the parenchyma around it."""
    hilum = kidney.centre_mm + kidney.axes @ (kidney.radii_mm * (-0.55, 0, 0))
    pelvis = ellipsoid(hilum, kidney.radii_mm * (0.38, 0.17, 0.24), kidney.axes)
    artery_start, vein_start = np.array([8 * kidney.side, -24, 2.0]), np.array([-18 + 8 * kidney.side, -30, 0.0])
    vessels = [Layer(tube(vein_start, hilum, 5, 3.5), rng.uniform(120, 165))]
    vessels.append(Layer(tube(artery_start, hilum + (0, 3, 3), 3, 2.5), rng.uniform(180, 220)))
    for _ in range(5):
        spread = kidney.axes @ (kidney.radii_mm * rng.uniform((0, -0.25, -0.45), (0.6, 0.25, 0.45)))
        vessels.append(Layer(combine(np.maximum, tube(hilum, hilum + spread, 2.2), kidney.body), rng.uniform(110, 190)))

    row_mm, phase = rng.uniform(17, 22), rng.uniform(0, 2 * np.pi, 2)

    def parenchyma_hu(p: np.ndarray) -> np.ndarray:
        q = local(p, kidney.centre_mm, kidney.axes)
        around = np.arctan2(q[1], q[0])
        # Pyramids of medulla, parted by columns of cortex that reach down to the sinus.
        columns = np.cos(2 * np.pi * q[2] / row_mm + phase[0]) * np.cos(3 * around + phase[1])
        depth = -kidney.body.distance(p) - 6.5 - 3.5 * columns
        return cortex_hu + (medulla_hu - cortex_hu) * np.clip(depth / 3 + 0.5, 0, 1)

    parenchyma = combine(np.maximum, kidney.body, outside(kidney.sinus))
    return [Layer(pelvis, rng.uniform(5, 30)), *vessels, Layer(parenchyma, parenchyma_hu, KIDNEY)]


def _place(
    rng: np.random.Generator, trunk: Trunk, kidney: _Kidney, taken: list[Solid], radius: float, depth: float
) -> tuple[np.ndarray, float]:
    """Centre (3,) and radius in mm of a ball on the kidney's surface, sunk in by `depth` of its radius.

    It keeps clear of the body wall, the spine with its vessels, the hilum and all lesions in `taken`. If there is no
    such place, the ball shrinks.
    """
    for attempt in range(3000):
        if attempt % 100 == 99:
            radius *= 0.9
        unit = rng.normal(size=3)
        unit /= np.linalg.norm(unit)
        if unit[0] < -0.25:  # the hilum
            continue
        normal = unit / kidney.radii_mm
        point = unit * kidney.radii_mm - depth * radius * normal / np.linalg.norm(normal)
        centre = kidney.centre_mm + kidney.axes @ point
        from_spine = np.hypot(centre[0], centre[1] + 8) - 38
        apart = all(np.linalg.norm(centre - s.centre_mm) > radius + s.reach_mm + 2 for s in taken)
        if apart and from_spine > radius and trunk.cavity.distance(centre) < -1.1 * radius:
            return centre, radius
    raise RuntimeError("no place for a lesion on the kidney: the sampled trunk is too small for its kidneys")


def _tumour_layers(rng: np.random.Generator, centre: np.ndarray, radius: float, cortex_hu: float) -> list[Layer]:
    """A lobulated mass that enhances less than cortex and unevenly; larger ones may be necrotic inside."""
    axes = Rotation.from_rotvec(rng.normal(size=3)).as_matrix()
    mass = rippled(ellipsoid(centre, radius * rng.uniform(0.88, 1.08, 3), axes), rng, 0.055 * radius, 1.4 * radius)
    hu = min(rng.uniform(55, 108), cortex_hu - 60)
    layers = [Layer(mass, texture(rng, hu, rng.uniform(6, 14), rng.uniform(9, 18)), TUMOUR)]
    if radius > 12 and rng.uniform() < 0.6:
        core = ellipsoid(centre + rng.normal(0, 0.1 * radius, 3), radius * rng.uniform(0.3, 0.6, 3), axes)
        core = combine(np.maximum, rippled(core, rng, 0.1 * radius, radius), grown(mass, -3))
        layers.append(Layer(core, texture(rng, rng.uniform(20, 38), 5, 12)))
    return layers


def _lesions(rng: np.random.Generator, trunk: Trunk, kidneys: Sequence[_Kidney], cortex_hu: float) -> list[Layer]:
    """One tumour, or two in two fifths of the patients, and up to two cysts in about half of them."""
    tumours: list[Layer] = []
    cysts: list[Layer] = []
    taken: list[Solid] = []
    for _ in range(1 + (rng.uniform() < 0.4)):
        radius = np.exp(rng.uniform(np.log(17), np.log(33)))
        centre, radius = _place(rng, trunk, kidneys[int(rng.integers(2))], taken, radius, rng.uniform(-0.35, 0.6))
        tumours += _tumour_layers(rng, centre, radius, cortex_hu)
        taken.append(tumours[-1].solid if tumours[-1].label else tumours[-2].solid)
    for _ in range(rng.choice(3, p=(0.48, 0.36, 0.16))):
        radius = rng.uniform(7, 18)
        centre, radius = _place(rng, trunk, kidneys[int(rng.integers(2))], taken, radius, rng.uniform(-0.4, 0.5))
        ball = ellipsoid(centre, radius * rng.uniform(0.94, 1.04, 3))
        cysts.append(Layer(ball, rng.uniform(0, 15), CYST))
        taken.append(ball)
    return [*tumours, *cysts]


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """A random patient with two kidneys, at least one tumour and perhaps cysts."""
    trunk = random_trunk(rng)
    cortex_hu, medulla_hu, fat_hu = rng.uniform(172, 208), rng.uniform(112, 138), rng.uniform(-108, -94)
    kidneys = [_random_kidney(rng, trunk, side) for side in (-1, 1)]
    lesions = _lesions(rng, trunk, kidneys, cortex_hu)
    labelled = [*(k.body for k in kidneys), *(layer.solid for layer in lesions if layer.label)]
    inner = [layer for kidney in kidneys for layer in _kidney_layers(rng, kidney, cortex_hu, medulla_hu)]
    spans = np.array([[s.centre_mm - s.reach_mm, s.centre_mm + s.reach_mm] for s in labelled])
    box = np.stack([spans[:, 0].min(0), spans[:, 1].max(0)])
    layers = (*abdomen(rng, trunk, labelled, fat_hu), *inner, *lesions)
    return Anatomy(layers, trunk.box_mm, box)


@dataclass(frozen=True)
class Scan:
    """Where and how a patient is scanned.

    `shape` and `spacing_mm` are (z, y, x); `start_mm` is the voxel with the smallest LPS coordinates and `patient_mm`
    the body's origin (both x, y, z); `turn` (3, 3) takes the body frame to LPS. Axes named in `flipped` (z, y, x) are
    stored backwards, with origin and direction to match. `blur_voxels` is the PSF's sigma, `noise_hu` that of noise.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    start_mm: np.ndarray
    patient_mm: np.ndarray
    turn: np.ndarray
    flipped: tuple[bool, bool, bool]
    blur_voxels: float
    noise_hu: float


def sample_scan(rng: np.random.Generator, anatomy: Anatomy) -> Scan:
    """Random settings with which the whole body section and all labelled tissue are in the image."""
    size = anatomy.body_box_mm[1] - anatomy.body_box_mm[0]
    height = anatomy.renal_box_mm[1, 2] - anatomy.renal_box_mm[0, 2]
    in_plane = rng.uniform(max(2.6, (size[0] + 16) / LARGEST_MATRIX), 3.4)
    between = rng.uniform(max(3.0, (height + 30) / MOST_SLICES), 5.0)
    matrix = int(np.clip(4 * np.ceil((size[0] + 24) / in_plane / 4), 96, LARGEST_MATRIX))
    slices = int(np.clip(np.ceil((height + rng.uniform(20, 50)) / between), 36, MOST_SLICES))
    turn = Rotation.from_euler("xyz", rng.uniform((-3, -3, -7), (3, 3, 7)), degrees=True).as_matrix()
    patient = np.array([*rng.uniform((-25, -170), (25, -130)), rng.uniform(-900, 300)])
    middle_xy = anatomy.body_box_mm[:, :2].mean(0) + rng.uniform(-4, 4, 2)
    middle = patient + turn @ np.array([*middle_xy, anatomy.renal_box_mm[:, 2].mean()])
    spacing = (round(between, 3), round(in_plane, 4), round(in_plane, 4))
    shape = (slices, matrix, matrix)
    start = middle - (np.array(shape[::-1]) - 1) / 2 * spacing[::-1]
    z, yx = rng.uniform(size=2) < (0.25, 0.25)
    blur, noise = rng.uniform((0.45, 8), (0.65, 18))
    return Scan(shape, spacing, start.round(3), patient, turn, (bool(z), bool(yx), bool(yx)), blur, noise)


def _paint(anatomy: Anatomy, scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """HU and labels on the scan's grid, before blur and noise; edges are one voxel wide ramps (partial volume)."""
    hu = np.full(scan.shape, -1000, np.float32)
    labels = np.zeros(scan.shape, np.uint8)
    start, spacing = scan.start_mm[::-1], np.array(scan.spacing_mm)
    lines = [start[a] + spacing[a] * np.arange(scan.shape[a]) for a in range(3)]
    zyx = np.stack(np.meshgrid(*lines, indexing="ij")) - scan.patient_mm[::-1].reshape(3, 1, 1, 1)
    points = np.tensordot(scan.turn.T, zyx[::-1], axes=1).astype(np.float32)
    edge = float(np.prod(spacing) ** (1 / 3))

    # A table of 5 mm, its sides bent up, below the patient, in the scanner's frame.
    table_y = scan.patient_mm[1] + anatomy.body_box_mm[1, 1] + 6 - 0.0012 * (lines[2] - scan.patient_mm[0]) ** 2
    cover = np.clip((2.5 + edge / 2 - np.abs(lines[1][:, None] - table_y)) / edge, 0, 1)
    hu += (cover * 950).astype(np.float32)

    for layer in anatomy.layers:
        solid = layer.solid
        where: tuple[slice, ...] = (slice(None),) * 3
        if np.isfinite(solid.reach_mm):
            centre = (scan.patient_mm + scan.turn @ solid.centre_mm)[::-1]
            reach = solid.reach_mm + edge
            low = np.clip(np.ceil((centre - reach - start) / spacing), 0, scan.shape).astype(int)
            high = np.clip(np.floor((centre + reach - start) / spacing) + 1, 0, scan.shape).astype(int)
            if (high <= low).any():
                continue
            where = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        every_axis = (slice(None), *where)
        p = points[every_axis]
        distance = solid.distance(p)
        share = np.clip(0.5 - distance / edge, 0, 1).astype(np.float32)
        value = layer.hu(p) if callable(layer.hu) else layer.hu
        hu[where] += (value - hu[where]) * share
        if layer.label is not None:
            labels[where][distance < 0] = layer.label
    return hu, labels


def acquire(anatomy: Anatomy, scan: Scan, rng: np.random.Generator) -> PhantomCase:
    """Scan a patient: paint, blur, add correlated noise, round to int16 and store in the scan's orientation."""
    hu, labels = _paint(anatomy, scan)
    hu = gaussian_filter(hu, (0.4, scan.blur_voxels, scan.blur_voxels))
    noise = gaussian_filter(rng.standard_normal(scan.shape, np.float32), (0.3, 0.6, 0.6))
    hu += noise * (scan.noise_hu / noise.std())
    image = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)

    order = tuple(slice(None, None, -1 if flip else 1) for flip in scan.flipped)
    signs = np.array([-1.0 if flip else 1.0 for flip in scan.flipped[::-1]])
    length = (np.array(scan.shape[::-1]) - 1) * scan.spacing_mm[::-1]
    origin = scan.start_mm + np.where(signs < 0, length, 0)
    return PhantomCase(
        image_hu=np.ascontiguousarray(image[order]),
        labels=np.ascontiguousarray(labels[order]),
        spacing_mm=scan.spacing_mm,
        origin_mm=tuple(origin.round(4).tolist()),
        direction=tuple(np.diag(signs).ravel().tolist()),
    )


def make_phantom(seed: int) -> PhantomCase:
    """The phantom of a seed (an int >= 0); the same seed always gives the same bytes."""
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}; pass a non-negative int")
    # Streams of their own, so that a change to the scanner leaves the patients as they are.
    patient, scanner, noise = np.random.default_rng(seed).spawn(3)
    anatomy = sample_anatomy(patient)
    return acquire(anatomy, sample_scan(scanner, anatomy), noise)
