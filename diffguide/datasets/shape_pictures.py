"""Pictures of equal shapes, drawn by arithmetic: shape x colour x size x count x background x position.

A combination is one value of each attribute, as indices [6] in the order of `ATTRIBUTES`. Lengths are in units of the side
of the picture, so that 32 x 32 pixels show the same as 16 x 16.
"""

from collections.abc import Mapping

import numpy
from numpy.typing import NDArray

__all__ = ["ATTRIBUTES", "BACKGROUNDS", "CENTRES", "COLOURS", "INKS", "PAPERS", "PLACEMENTS", "RADII", "SHIFT", "SIDES",
           "SIZE_SCALES", "WOBBLE", "centre_of_mass", "cover", "draw_pictures", "is_held_out", "list_combinations"]  # fmt: skip

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
CENTRES = {  # (x, y) of the mean of all objects of a picture
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
RADII = {"circle": 2.9 / 16, "square": 2.6 / 16, "triangle": 2.9 / 16, "cross": 2.9 / 16}  # half the height of a large one
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


def is_held_out(combinations: Indices) -> NDArray[numpy.bool_]:
    """Which of the combinations [..., 6] are never shown in training, [...].

    Three rules, each of which alone suffices; every single value is shown with others:
        shape k has colour k + 1: green circles, blue squares, yellow triangles, purple crosses;
        three triangles;
        two crosses.
    """
    shape, colour, count = combinations[..., 0], combinations[..., 1], combinations[..., 3]
    return (colour == shape + 1) | ((shape == 2) & (count == 2)) | ((shape == 3) & (count == 1))


def cover(shape: Indices, scale: Floats, centre: Floats, side: int) -> Floats:
    """The share of each pixel that one object covers, [M, side, side], to first order: clamp(1/2 - d, 0, 1).

    d is the signed distance of the middle of a pixel from the nearest edge, in pixels, negative inside.

    Arguments:
        shape: index of the shape [M].
        scale: [M], 1 = large.
        centre: (x, y) of the middle of the bounding box [M, 2], in sides; y points downwards.
    """
    middles = (numpy.arange(side) + 0.5) / side
    dx = numpy.abs(middles[None, None, :] - centre[:, 0, None, None])  # all shapes are symmetric from left to right
    dy = middles[None, :, None] - centre[:, 1, None, None]
    radius = (numpy.array([*RADII.values()])[shape] * scale)[:, None, None]
    base, arm = ((half * scale)[:, None, None] for half in (TRIANGLE_BASE, CROSS_WIDTH))
    height = 2 * radius
    distances = (
        numpy.hypot(dx, dy) - radius,
        numpy.maximum(dx, numpy.abs(dy)) - radius,
        numpy.maximum(dy - radius, (dx * height - (dy + radius) * base) / numpy.hypot(height, base)),
        numpy.minimum(
            numpy.maximum(dx - radius, numpy.abs(dy) - arm), numpy.maximum(dx - arm, numpy.abs(dy) - radius)
        ),
    )
    found = numpy.choose(shape[:, None, None], distances)
    return numpy.clip(0.5 - found * side, 0.0, 1.0)


def centre_of_mass(shape: Indices, scale: Floats) -> Floats:
    """How far the centre of mass lies below the middle of the bounding box, in sides, [M]: a third of the triangle's half height."""
    return numpy.where(shape == 2, RADII["triangle"] * scale / 3, 0.0)


def draw_pictures(combinations: Indices, jitter: Floats, side: int) -> NDArray[numpy.uint8]:
    """Pictures of combinations [N, 6], uint8 [N, 3, side, side].

    Arguments:
        jitter: [N, 4, 2] uniform numbers in [0, 1): (x, y) of the common shift, then of the three objects.
        side: pixels.
    """
    shape, colour, size, count, background, position = combinations.T
    scales = numpy.array([*SIZE_SCALES.values()])
    moves = 2 * jitter - 1
    covered = numpy.zeros((len(combinations), side, side))
    for number in range(3):
        rows = numpy.flatnonzero(count >= number)
        names = [(ATTRIBUTES["count"][c], ATTRIBUTES["position"][p]) for c, p in zip(count[rows], position[rows])]
        place = numpy.array([PLACEMENTS[name][number] for name in names]).reshape(-1, 2)
        centre = place + SHIFT * moves[rows, 0] + WOBBLE * moves[rows, 1 + number]
        covered[rows] += cover(shape[rows], scales[size[rows]], centre, side)
    paper = PAPERS[background][:, :, None, None]
    picture = paper + covered[:, None] * (INKS[colour][:, :, None, None] - paper)
    return numpy.floor(picture + 0.5).astype(numpy.uint8)
