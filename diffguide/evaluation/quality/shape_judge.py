"""The judge of `dataset=shapes`: reads shape, colour, size, count, background and position off the pixels of a picture.

It knows how the pictures are drawn and learns nothing. The background is the median colour. Every pixel is a mixture of the
background and one ink; connected pixels with at least half of an ink are an object. Each object is compared with every
shape and size, drawn at its centre of mass; the nearest one is read, unless all are far away.

On drawn pictures with independent normal noise of standard deviation 8 of 255 levels every attribute is read exactly; at 16,
a few in a thousand small shapes are misread on 16 x 16 pixels; from 20 on some backgrounds are not plain enough.
"""

from typing import NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...datasets.shape_pictures import (
    ATTRIBUTES,
    CENTRES,
    INKS,
    PAPERS,
    SIDES,
    SIZE_SCALES,
    centre_of_mass,
    cover,
)

__all__ = ["read_pictures"]

Floats = NDArray[numpy.float64]
Indices = NDArray[numpy.int64]

MAX_COLOUR_ERROR = 55.0  # distance in RGB up to which a colour is recognised; two colours are at least 110 apart
MIN_COVERAGE = 0.5  # share of ink from which a pixel belongs to an object
MIN_MASS = 0.3  # of an object, in masses of the smallest shape; smaller specks are ignored
MAX_MISFIT = 0.25  # |pixels - drawn|^2 / |drawn|^2 of an object, up to which its shape is recognised
MIN_PLAIN = 0.9  # share of the pixels outside the objects that must have the colour of the background
MAX_OFFSET = 0.15  # distance in sides from the centre of a position
REACH = 1.5  # pixels around an object that belong to it
CHUNK = 500  # pictures at a time
CANDIDATES = numpy.array(
    [(shape, size) for shape in range(len(ATTRIBUTES["shape"])) for size in range(len(SIZE_SCALES))]
)
CANDIDATE_SCALES = numpy.array([*SIZE_SCALES.values()])[CANDIDATES[:, 1]]


class Objects(NamedTuple):
    """The objects on a chunk of N pictures, numbered from 0.

    Attributes:
        owner: the object of each pixel, also within REACH of it; -1 = none [N, H, W].
        picture: the picture of each object [M].
        colour, shape, size: what each object is; -1 = not recognised [M].
        centre: (x, y) of the middle of its bounding box, in sides [M, 2].
    """

    owner: Indices
    picture: Indices
    colour: Indices
    shape: Indices
    size: Indices
    centre: Floats


class Windows:
    """Equal windows around objects, large enough for the largest shape.

    Arguments:
        picture: the picture of each object [M].
        middle: (row, column) of a pixel near its middle [M, 2].
        side: of the pictures, pixels.
    """

    def __init__(self, picture: Indices, middle: Floats, side: int):
        self.side, self.width = side, side // 2 + 3
        self.corner = numpy.rint(middle).astype(numpy.int64) - self.width // 2
        grid = self.corner[:, :, None] + numpy.arange(self.width)
        self.within = ((grid >= 0) & (grid < side))[:, 0, :, None] & ((grid >= 0) & (grid < side))[:, 1, None, :]
        rows, columns = numpy.clip(grid, 0, side - 1).transpose(1, 0, 2)
        self.index = picture[:, None, None], rows[:, :, None], columns[:, None, :]

    def draw(self, shape: Indices, scale: Floats, centre: Floats) -> Floats:
        """The pictures of `cover` in the windows, [M, width, width]."""
        zoom = self.side / self.width
        return cover(shape, scale * zoom, centre * zoom - self.corner[:, ::-1] / self.width, self.width) * self.within


def read_pictures(x: Tensor) -> Tensor:
    """The value of every attribute of pictures, as indices [N, 6] in the order of `ATTRIBUTES`; -1 = not recognised.

    An attribute of objects is recognised if all objects of a picture agree in it. The position is the middle of the box
    around the objects. A picture has -1 everywhere if its background is not plain, or less than half of its objects
    have a known shape and colour.

    Arguments:
        x: uint8 [N, 3, side, side], side 16 or 32.

    Raises:
        ValueError: another dtype or shape.
    """
    if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[1:] not in [(3, side, side) for side in SIDES]:
        raise ValueError(
            f"the judge of shapes reads uint8 [N, 3, 16, 16] or [N, 3, 32, 32], got {x.dtype} {list(x.shape)}"
        )
    parts = [read_chunk(part.permute(0, 2, 3, 1).double().cpu().numpy()) for part in x.split(CHUNK) if len(part)]
    return torch.from_numpy(numpy.concatenate([numpy.empty((0, len(ATTRIBUTES)), dtype=numpy.int64), *parts]))


def read_chunk(pixels: Floats) -> Indices:
    """As `read_pictures`, of pixels [N, H, W, 3]."""
    paper = numpy.median(pixels, axis=(1, 2))
    background, error = nearest(paper, PAPERS)
    plain = numpy.linalg.norm(pixels - paper[:, None, None], axis=-1) <= MAX_COLOUR_ERROR
    objects = find_objects(pixels, paper)
    outside = objects.owner < 0
    plain_share = (plain & outside).sum((1, 2)) / numpy.maximum(outside.sum((1, 2)), 1)
    known = numpy.bincount(objects.picture, (objects.shape >= 0) & (objects.colour >= 0), len(pixels))
    count = numpy.bincount(objects.picture, minlength=len(pixels))
    position, offset = nearest(box_middles(objects, len(pixels)), numpy.array([*CENTRES.values()]))
    found = numpy.stack(
        [
            agree(objects.picture, objects.shape, len(pixels)),
            agree(objects.picture, objects.colour, len(pixels)),
            agree(objects.picture, objects.size, len(pixels)),
            numpy.where(count <= len(ATTRIBUTES["count"]), count - 1, -1),
            background,
            numpy.where(offset <= MAX_OFFSET, position, -1),
        ],
        axis=1,
    )
    found[(known == 0) | (2 * known < count) | (error > MAX_COLOUR_ERROR) | (plain_share < MIN_PLAIN)] = -1
    return found


def nearest(points: Floats, known: Floats) -> tuple[Indices, Floats]:
    """The index of the nearest of the known points [K, D] to each of the points [N, D], and its distance."""
    distance = numpy.linalg.norm(points[:, None] - known, axis=-1)
    return distance.argmin(1), distance.min(1)


def agree(picture: Indices, values: Indices, count: int) -> Indices:
    """The value that all objects of a picture have, [count]; -1 = they differ, or there are none."""
    low, high = numpy.full(count, len(CANDIDATES)), numpy.full(count, -1)
    numpy.minimum.at(low, picture, values)
    numpy.maximum.at(high, picture, values)
    return numpy.where(low == high, high, -1)


def box_middles(objects: Objects, count: int) -> Floats:
    """The middle of the box around the middles of all objects of a picture, [count, 2]; far away without objects."""
    low, high = numpy.full((count, 2), numpy.inf), numpy.full((count, 2), -numpy.inf)
    numpy.minimum.at(low, objects.picture, objects.centre)
    numpy.maximum.at(high, objects.picture, objects.centre)
    return numpy.where(low <= high, low, numpy.inf) / 2 + numpy.where(low <= high, high, numpy.inf) / 2


def unmix(pixels: Floats, paper: Floats) -> tuple[Floats, Indices]:
    """The share of each ink in every pixel [N, H, W, 6], clipped to 0 to 1.2, and the ink that explains the pixel best.

    With change d = pixel - paper and ink c = colour - paper, the share is a = d.c / |c|^2, the error |d - a c|^2.
    """
    ink = INKS - paper[:, None]
    change = pixels - paper[:, None, None]
    product = numpy.einsum("nhwd,nkd->nhwk", change, ink)
    squared = (ink**2).sum(-1)[:, None, None]
    share = numpy.clip(product / squared, 0, 1.2)
    return share, (share**2 * squared - 2 * share * product).argmin(-1)


def find_objects(pixels: Floats, paper: Floats) -> Objects:
    """The objects on pictures [N, H, W, 3] whose backgrounds have the colours paper [N, 3]."""
    side = pixels.shape[1]
    share, best = unmix(pixels, paper)
    coverage = numpy.take_along_axis(share, best[..., None], -1)[..., 0]
    body = label_bodies(coverage, MIN_MASS * smallest_mass(side))
    owner = grow(body)
    where = numpy.nonzero(body >= 0)
    label = body[where]
    number = int(label.max(initial=-1)) + 1
    picture, votes = numpy.zeros(number, dtype=numpy.int64), numpy.zeros((number, len(INKS)))
    picture[label] = where[0]
    numpy.add.at(votes, (label, best[where]), coverage[where])
    colour = votes.argmax(1)
    area = numpy.bincount(label, minlength=number)
    middle = numpy.stack([numpy.bincount(label, where[axis], number) / area for axis in (1, 2)], 1)
    windows = Windows(picture, middle, side)
    inside = (owner[windows.index] == numpy.arange(number)[:, None, None]) & windows.within
    own = share[(*windows.index, colour[:, None, None])] * inside
    seen = ((body[windows.index] == numpy.arange(number)[:, None, None]) & windows.within).sum((1, 2))
    shape, size, centre = fit(own, inside, windows, area - seen)
    # least squares of d = a c over the body, for c
    weight = share[(*where, colour[label])]
    change = pixels[where] - paper[where[0]]
    total = numpy.maximum(numpy.bincount(label, weight**2, number), 1e-9)
    ink = numpy.stack([numpy.bincount(label, weight * part, number) / total for part in change.T], 1)
    error = numpy.linalg.norm(paper[picture] + ink - INKS[colour], axis=-1)
    return Objects(owner, picture, numpy.where(error <= MAX_COLOUR_ERROR, colour, -1), shape, size, centre)


def label_bodies(coverage: Floats, min_mass: float) -> Indices:
    """The connected pixels [N, H, W] of coverage MIN_COVERAGE, numbered from 0 through all pictures; -1 = none, or a speck."""
    from scipy import ndimage  # here, since it takes long to import

    across = numpy.zeros((3, 3, 3), dtype=bool)
    across[1] = ndimage.generate_binary_structure(2, 1)  # neighbours within a picture only
    labels, number = ndimage.label(coverage >= MIN_COVERAGE, across)
    large = numpy.bincount(labels.ravel(), coverage.ravel(), number + 1) >= min_mass
    large[0] = False
    return numpy.where(large, numpy.cumsum(large) - 1, -1)[labels]


def grow(body: Indices) -> Indices:
    """The number of the nearest object within REACH of each pixel, -1 = none."""
    from scipy import ndimage  # here, since it takes long to import

    far = 10.0**6  # between two pictures
    distance, at = ndimage.distance_transform_edt(body < 0, sampling=(far, 1, 1), return_indices=True)
    return numpy.where(distance <= REACH, body[tuple(at)], -1)


def smallest_mass(side: int) -> float:
    """The mass of the smallest shape, in pixels."""
    middle = numpy.full((len(CANDIDATES), 2), 0.5)
    return float(cover(CANDIDATES[:, 0], CANDIDATE_SCALES, middle, side).sum((1, 2)).min())


def fit(
    own: Floats, inside: NDArray[numpy.bool_], windows: Windows, missed: Indices
) -> tuple[Indices, Indices, Floats]:
    """Shape, size and middle [M], [M], [M, 2] of the objects; shape and size -1 = like none of the candidates.

    Arguments:
        own: coverage in the windows [M, width, width], 0 outside of the object.
        inside: the pixels that belong to the object.
        missed: number of its pixels that lie outside the window [M].
    """
    number, mass = len(own), numpy.maximum(own.sum((1, 2)), 1e-9)
    steps = numpy.arange(windows.width) + 0.5
    mean = numpy.stack([(own * steps).sum((1, 2)), (own * steps[:, None]).sum((1, 2))], 1) / mass[:, None]
    centre = (windows.corner[:, ::-1] + mean) / windows.side
    below = centre_of_mass(CANDIDATES[:, 0], CANDIDATE_SCALES)
    misfit = numpy.empty((number, len(CANDIDATES)))
    for candidate, (shape, scale) in enumerate(zip(CANDIDATES[:, 0], CANDIDATE_SCALES)):
        middle = centre - [0.0, below[candidate]]
        drawn = windows.draw(numpy.full(number, shape), numpy.full(number, scale), middle)
        error = ((own - drawn * inside) ** 2).sum((1, 2)) + missed
        misfit[:, candidate] = error / numpy.maximum((drawn**2).sum((1, 2)), 1e-9)
    best = misfit.argmin(1)
    known = misfit.min(1) <= MAX_MISFIT
    shape, size = (numpy.where(known, CANDIDATES[best, axis], -1) for axis in (0, 1))
    return shape, size, centre - numpy.stack([numpy.zeros(number), below[best]], 1)
