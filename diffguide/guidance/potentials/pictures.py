"""The data of inverse problems: pictures, clean or already measured, and masks of their known values."""

from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy
import torch
from torch import Tensor

from ...datasets.base import Dataset, Split
from ...datasets.decoding import Unreadable, read_header, read_image
from ...datasets.digits import Digits
from ...runtime.ranges import check_range, check_whole

__all__ = ["DEFAULT_BOX", "Box", "FileMask", "FilePicture", "Mask", "Picture", "RandomMask", "TestPicture"]

GREYSCALE_MODES = ("1", "L", "LA", "F", "I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes without colours


def read_array(path: str, channels: int | None) -> Tensor:
    """The values of a file: the only array of an .npz, or an image [C, H, W] as u / 127.5 - 1.

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
        if channels == 1:  # masks ignore transparency
            with Image.open(path) as image:
                array = numpy.array(image.convert("L"))
        else:
            array = numpy.array(read_image(Path(path), 1 if read_header(Path(path)).mode in GREYSCALE_MODES else 3))
    except (OSError, Unreadable) as error:
        raise ValueError(f"path must name an .npz or an image, got {path}: {error}") from error
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(array.copy()).double() / 127.5 - 1


class Picture:
    """A picture [C, H, W], or a vector [D].

    Attributes:
        values: float64, images in [-1, 1].
        measured: whether it is already a measurement.
    """

    values: Tensor
    measured: bool = False


class FilePicture(Picture):
    """A picture from an .npz with one array, or from an image.

    Arguments:
        path: of the file.
        measured: whether it holds a measurement, not a clean picture.

    Raises:
        ValueError: a file that cannot be read, values that are not finite, or a picture outside [-1, 1].
    """

    def __init__(self, path: str, measured: bool = False):
        self.values = read_array(path, None)
        self.measured = measured
        if not bool(self.values.isfinite().all()) or not self.values.numel():
            raise ValueError(f"{path} must hold finite numbers")
        if not measured and self.values.ndim == 3 and float(self.values.abs().max()) > 1.01:
            low, high = float(self.values.min()), float(self.values.max())
            raise ValueError(f"{path} must hold a picture with values in [-1, 1], has {low:.4g} to {high:.4g}")


class TestPicture(Picture):
    """A test example of a data set, the `index`-th of its class.

    Arguments:
        dataset: None = `Digits()`.
        label: its class, from 0; None = any.
        index: within the class, from 0.

    Raises:
        ValueError: no such example.
    """

    __test__ = False  # pytest must not collect it

    def __init__(self, dataset: Dataset | None = None, label: int | None = 0, index: int = 0):
        dataset = Digits() if dataset is None else dataset
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
    """mask(shape) -> bool, True = known, broadcastable to the shape of the picture."""

    def __call__(self, shape: Sequence[int]) -> Tensor:
        raise NotImplementedError


class Box(Mask):
    """A rectangle of an image is unknown.

    Arguments:
        top, left: its corner, pixels from 0.
        height, width: its sides, pixels, at least 1.

    Raises:
        ValueError: from a call: a rectangle outside the image, or no image.
    """

    def __init__(self, top: int = 0, left: int = 0, height: int = 4, width: int = 8):
        self.top, self.left = check_whole("top", top, 0), check_whole("left", left, 0)
        self.height, self.width = check_whole("height", height, 1), check_whole("width", width, 1)

    def __call__(self, shape: Sequence[int]) -> Tensor:
        bottom, right = self.top + self.height, self.left + self.width
        if len(shape) != 3 or bottom > shape[1] or right > shape[2]:
            raise ValueError(
                f"a box of rows {self.top} to {bottom} and columns {self.left} to {right} does not fit {list(shape)}"
            )
        known = torch.ones(shape[1:], dtype=torch.bool)
        known[self.top : bottom, self.left : right] = False
        return known


DEFAULT_BOX = Box()


class RandomMask(Mask):
    """Every pixel (of all channels), or every value of a vector, is unknown with a probability.

    Arguments:
        hidden: that probability, in (0, 1).
        seed: of the mask, at least 0.
    """

    def __init__(self, hidden: float = 0.5, seed: int = 0):
        self.hidden = check_range("hidden", hidden, "(0, 1)")
        self.seed = check_whole("seed", seed, 0)

    def __call__(self, shape: Sequence[int]) -> Tensor:
        size = tuple(shape[1:]) or tuple(shape)
        return torch.rand(size, generator=torch.Generator().manual_seed(self.seed)) >= self.hidden


class FileMask(Mask):
    """A mask from an .npz with one array, or a grey image: known where it is above 0 (white).

    Arguments:
        path: of the file.
    """

    def __init__(self, path: str):
        self.known = read_array(path, 1) > 0

    def __call__(self, shape: Sequence[int]) -> Tensor:
        return self.known
