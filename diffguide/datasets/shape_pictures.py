"""Pictures of equal shapes, drawn by arithmetic: shape x colour x size x count x background x position.

A combination is one value of each attribute, as indices [6] in the order of `ATTRIBUTES`. Lengths are in units of the side
of the picture, so that 32 x 32 pixels show the same as 16 x 16.
"""

from collections.abc import Mapping

import numpy
from numpy.typing import NDArray

__all__ = [
    "ATTRIBUTES", "CENTRES", "INKS", "PAPERS", "SIDES", "SIZE_SCALES", "centre_of_mass", "cover", "draw_pictures",
    "is_held_out", "list_combinations", "place_objects", "weigh_combinations",
]  # fmt: skip

Floats = NDArray[numpy.float64]
Indices = NDArray[numpy.int64]

COLOURS = {  # RGB, at least 110 apart from each other and from the backgrounds
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 40, 190),
    "cyan": (40, 190, 200),
}
BACKGROUNDS = {"white": (245, 245, 245), "grey": (128, 128, 128), "black": (12, 12, 12)}
CENTRES = {  # (x, y) of the middle of the box around the objects
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
    "middle": (0.5, 0.5),
}
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "shape": ("circle", "square", "triangle", "cross"),
    "colour": tuple(COLOURS),
    "size": ("small", "large"),
    "count": ("one", "two", "three"),
    "background": tuple(BACKGROUNDS),
    "position": tuple(CENTRES),
}
SIDES = (16, 32)  # pixels
NEAR, HALF, FAR = 0.25, 0.5, 0.75
PLACEMENTS: Mapping[tuple[str, str], tuple[tuple[float, float], ...]] = {  # (count, position): (x, y) of each object
    **{("one", position): (centre,) for position, centre in CENTRES.items()},
    ("two", "left"): ((NEAR, NEAR), (NEAR, FAR)),
    ("two", "right"): ((FAR, NEAR), (FAR, FAR)),
    ("two", "top"): ((NEAR, NEAR), (FAR, NEAR)),
    ("two", "bottom"): ((NEAR, FAR), (FAR, FAR)),
    ("two", "middle"): ((NEAR, HALF), (FAR, HALF)),
    ("three", "middle"): ((NEAR, NEAR), (FAR, NEAR), (HALF, FAR)),
}
SHIFT = 0.6 / 16  # all objects of a picture move together by up to this, along each axis
WOBBLE = 0.35 / 16  # each object moves by up to this besides; two neighbours keep 1.5 / 16 of a gap
RADII = {
    "circle": 2.9 / 16,
    "square": 2.6 / 16,
    "triangle": 2.9 / 16,
    "cross": 2.9 / 16,
}  # half the height of a large one
TRIANGLE_BASE, CROSS_WIDTH = 3.1 / 16, 1.05 / 16  # half of the base, half the width of an arm
SIZE_SCALES = {"small": 0.65, "large": 1.0}
INKS = numpy.array([*COLOURS.values()], dtype=numpy.float64)
PAPERS = numpy.array([*BACKGROUNDS.values()], dtype=numpy.float64)


def list_combinations() -> Indices:
    """Every combination that can be drawn, [1584, 6]: all values, but three objects only in the middle."""
    lengths = [len(values) for values in ATTRIBUTES.values()]
    every = numpy.stack(numpy.unravel_index(numpy.arange(numpy.prod(lengths)), lengths), axis=1)
    counts, positions = ATTRIBUTES["count"], ATTRIBUTES["position"]
    drawn = [(counts[count], positions[position]) in PLACEMENTS for count, position in every[:, [3, 5]]]
    return every[drawn].astype(numpy.int64)


def weigh_combinations(combinations: Indices) -> Floats:
    """The relative frequency of combinations [N, 6]: counts are equally frequent, and so are the positions of a count."""
    positions = [sum(count == other for other, _ in PLACEMENTS) for count in ATTRIBUTES["count"]]
    return 1 / numpy.array(positions, dtype=numpy.float64)[combinations[:, 3]]


def is_held_out(combinations: Indices) -> NDArray[numpy.bool_]:
    """Which of the combinations [..., 6] are never shown in training, [...].

    Three rules, each of which alone suffices; every single value is shown with others:
        shape k has colour k + 1: green circles, blue squares, yellow triangles, purple crosses;
        three triangles;
        two crosses.
    """
    shape, colour, count = combinations[..., 0], combinations[..., 1], combinations[..., 3]
    return (colour == shape + 1) | ((shape == 2) & (count == 2)) | ((shape == 3) & (count == 1))


def circle_distance(dx: Floats, dy: Floats, scale: Floats) -> Floats:
    """The signed distance of points from the edge of a circle of radius 2.9/16, in sides; negative inside."""
    return numpy.hypot(dx, dy) - RADII["circle"] * scale


def square_distance(dx: Floats, dy: Floats, scale: Floats) -> Floats:
    """The same of a square of half the side 2.6/16, by the larger coordinate."""
    return numpy.maximum(dx, numpy.abs(dy)) - RADII["square"] * scale


def triangle_distance(dx: Floats, dy: Floats, scale: Floats) -> Floats:
    """The same of a triangle with its tip at the top, by the larger distance from the base and from a leg."""
    radius, base = RADII["triangle"] * scale, TRIANGLE_BASE * scale
    return numpy.maximum(dy - radius, (dx * 2 * radius - (dy + radius) * base) / numpy.hypot(2 * radius, base))


def cross_distance(dx: Floats, dy: Floats, scale: Floats) -> Floats:
    """The same of an upright cross, the union of two bars."""
    radius, arm, dy = RADII["cross"] * scale, CROSS_WIDTH * scale, numpy.abs(dy)
    return numpy.minimum(numpy.maximum(dx - radius, dy - arm), numpy.maximum(dx - arm, dy - radius))


DISTANCES = dict(zip(ATTRIBUTES["shape"], (circle_distance, square_distance, triangle_distance, cross_distance)))


def cover(shape: Indices, scale: Floats, centre: Floats, side: int) -> Floats:
    """The share of each pixel that one object covers, [M, side, side], to first order: clamp(1/2 - d, 0, 1).

    d is the signed distance of the middle of a pixel from the nearest edge, in pixels, negative inside.

    Arguments:
        shape: index of the shape [M].
        scale: [M], 1 = large.
        centre: (x, y) of the middle of the bounding box [M, 2], in sides; y points downwards.
    """
    steps = (numpy.arange(side) + 0.5) / side
    covered = numpy.empty((len(shape), side, side))
    for kind, name in enumerate(ATTRIBUTES["shape"]):
        rows = shape == kind
        dx = numpy.abs(
            steps[None, None, :] - centre[rows, 0, None, None]
        )  # every shape is symmetric from left to right
        dy = steps[None, :, None] - centre[rows, 1, None, None]
        distance = DISTANCES[name](dx, dy, scale[rows, None, None])
        covered[rows] = numpy.clip(0.5 - distance * side, 0.0, 1.0)
    return covered


def centre_of_mass(shape: Indices, scale: Floats) -> Floats:
    """How far the centre of mass lies below the middle of the bounding box, in sides [M]; h/6 for a triangle of height h."""
    return numpy.where(shape == 2, RADII["triangle"] * scale / 3, 0.0)


def place_objects(combinations: Indices, draws: Floats) -> Floats:
    """(x, y) of the middles of the objects of combinations [N, 6], in sides, [N, 3, 2]; NaN = no such object.

    Arguments:
        draws: [N, 4, 2] uniform numbers in [0, 1): (x, y) of the common shift, then of each object.
    """
    layouts = numpy.full((len(ATTRIBUTES["count"]), len(CENTRES), 3, 2), numpy.nan)
    for (count, position), places in PLACEMENTS.items():
        layouts[ATTRIBUTES["count"].index(count), ATTRIBUTES["position"].index(position), : len(places)] = places
    moves = 2 * draws - 1
    return layouts[combinations[:, 3], combinations[:, 5]] + SHIFT * moves[:, :1] + WOBBLE * moves[:, 1:]


def draw_pictures(combinations: Indices, middles: Floats, side: int) -> NDArray[numpy.uint8]:
    """Pictures of combinations [N, 6] with objects at middles [N, 3, 2], uint8 [N, 3, side, side]."""
    shape, colour, size, _, background, _ = combinations.T
    scales = numpy.array([*SIZE_SCALES.values()])
    covered = numpy.zeros((len(combinations), side, side))
    for number in range(middles.shape[1]):
        rows = numpy.flatnonzero(numpy.isfinite(middles[:, number, 0]))
        covered[rows] += cover(shape[rows], scales[size[rows]], middles[rows, number], side)
    paper = PAPERS[background][:, :, None, None]
    picture = paper + covered[:, None] * (INKS[colour][:, :, None, None] - paper)
    return numpy.floor(picture + 0.5).astype(numpy.uint8)
