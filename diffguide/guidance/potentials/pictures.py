"""What an inverse problem is given: pictures, clean or already measured, and masks of what is known of them."""

from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy
import torch
from torch import Tensor

from ...datasets.base import Dataset, Split
from ...datasets.decoding import Unreadable, read_header, read_image

__all__ = ["Box", "FileMask", "FilePicture", "Mask", "Picture", "RandomMask", "TestPicture"]

GREY = ("1", "L", "LA", "F", "I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes without colours


def read(path: str, channels: int | None) -> Tensor:
    """The numbers of a file: the only array of an .npz, as it is, or an image [C, H, W] as u / 127.5 - 1.

    Raises:
        ValueError: a file that cannot be read as either.
    """
    if Path(path).suffix == ".npz":
        try:
            with numpy.load(path, allow_pickle=False) as arrays:
                (name,) = arrays.files
                return torch.as_tensor(arrays[name]).double()
        except (OSError, ValueError, TypeError, EOFError, BadZipFile) as error:
            raise ValueError(f"path must name an .npz with one array of numbers, got {path}: {error}") from error
    from PIL import Image

    try:
        if channels == 1:  # of a mask, what is transparent counts by its colour
            with Image.open(path) as image:
                array = numpy.array(image.convert("L"))
        else:
            array = numpy.array(read_image(Path(path), 1 if read_header(Path(path)).mode in GREY else 3))
    except (OSError, Unreadable) as error:
        raise ValueError(f"path must name an .npz or an image, got {path}: {error}") from error
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(array.copy()).double() / 127.5 - 1


class Picture:
    """A picture [C, H, W], or a vector [D].

    Attributes:
        values: float64, images in [-1, 1].
        measured: whether it is a measurement already, and not what is to be measured.
    """

    values: Tensor
    measured: bool = False


class FilePicture(Picture):
    """A picture from an .npz with one array, or from an image.

    Arguments:
        path: of the file.
        measured: whether it holds the measurement itself, not a clean picture to be measured.

    Raises:
        ValueError: a file that cannot be read, or that holds numbers that are not finite, or no picture in [-1, 1].
    """

    def __init__(self, path: str, measured: bool):
        self.values, self.measured = read(path, None), measured
        if not bool(self.values.isfinite().all()) or not self.values.numel():
            raise ValueError(f"{path} must hold finite numbers")
        if not measured and self.values.ndim == 3 and float(self.values.abs().max()) > 1.01:
            low, high = float(self.values.min()), float(self.values.max())
            raise ValueError(f"{path} must hold a picture with values in [-1, 1], has {low:.4g} to {high:.4g}")


class TestPicture(Picture):
    """A test example of a data set, the `index`-th of its class.

    Arguments:
        dataset: where from.
        label: its class, from 0; None = any.
        index: among those, from 0.

    Raises:
        ValueError: there is no such example.
    """

    __test__ = False  # nothing for pytest to collect

    def __init__(self, dataset: Dataset, label: int | None, index: int):
        split = dataset.test
        rows = torch.arange(len(split.y)) if label is None else (split.y == label).nonzero()[:, 0]
        if not len(rows):
            raise ValueError(
                f"label: there is no test example of class {label}, the classes are 0 to {int(split.y.max())}"
            )
        if not 0 <= index < len(rows):
            what = "" if label is None else f" of class {label}"
            raise ValueError(f"index must be below {len(rows)}, the number of test examples{what}, got {index}")
        row = int(rows[index])
        stored = split.x[row] if isinstance(split, Split) else split[row][0]
        self.values = dataset.preprocess(stored[None])[0].double()


class Mask:
    """mask(shape) -> bool, True = known; of a shape that broadcasts over the picture's."""

    def __call__(self, shape: Sequence[int]) -> Tensor:
        raise NotImplementedError


class Box(Mask):
    """A rectangle of an image is unknown.

    Arguments:
        top, left: its corner, pixels from 0.
        height, width: its sides, pixels, at least 1.

    Raises:
        ValueError: such numbers out of range; later: a rectangle that leaves the image, or no image.
    """

    def __init__(self, top: int, left: int, height: int, width: int):
        if min(top, left) < 0 or min(height, width) < 1:
            raise ValueError(f"a box has top and left from 0, sides from 1, got {[top, left, height, width]}")
        self.top, self.left, self.height, self.width = top, left, height, width

    def __call__(self, shape: Sequence[int]) -> Tensor:
        bottom, right = self.top + self.height, self.left + self.width
        if len(shape) != 3 or bottom > shape[1] or right > shape[2]:
            raise ValueError(
                f"a box of rows {self.top} to {bottom} and columns {self.left} to {right} does not fit {list(shape)}"
            )
        known = torch.ones(shape[1:], dtype=torch.bool)
        known[self.top : bottom, self.left : right] = False
        return known


class RandomMask(Mask):
    """Every pixel (of all channels), or every value of a vector, is unknown with a probability.

    Arguments:
        hidden: that probability, in (0, 1).
        seed: of the choice, at least 0.

    Raises:
        ValueError: a probability or seed out of range.
    """

    def __init__(self, hidden: float, seed: int):
        if not 0 < hidden < 1 or seed < 0:
            raise ValueError(f"hidden must be in (0, 1) and seed at least 0, got {hidden} and {seed}")
        self.hidden, self.seed = float(hidden), seed

    def __call__(self, shape: Sequence[int]) -> Tensor:
        size = tuple(shape[1:]) or tuple(shape)
        return torch.rand(size, generator=torch.Generator().manual_seed(self.seed)) >= self.hidden


class FileMask(Mask):
    """A mask from an .npz with one array, or a grey image: known where it is above 0 (white, in an image).

    Arguments:
        path: of the file.

    Raises:
        ValueError: a file that cannot be read.
    """

    def __init__(self, path: str):
        self.known = read(path, 1) > 0

    def __call__(self, shape: Sequence[int]) -> Tensor:
        return self.known
