"""The handwritten digits that ship with scikit-learn: 1797 grey images of 8 x 8 pixels, 17 grey values, 10 classes.

Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy
import torch

from .base import ColumnSplit, Dataset, check_dataset_facts

__all__ = ["Digits"]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = [[word, f"the digit {digit}", f"a handwritten {word}"] for digit, word in enumerate(WORDS)]


class Digits(Dataset):
    """x = u / 8 - 1 for grey values u in 0..16; 1000 training, 350 validation and 447 test images.

    The splits follow the order of the file, so that the test images have other writers. The column `captions` names each
    digit in three ways, "seven", "the digit 7" and "a handwritten seven".

    Arguments:
        channels, size, num_classes, quantization_levels: 1, 8, 10 and 17; checked against the data.
    """

    def __init__(self, channels: int = 1, size: int = 8, num_classes: int = 10, quantization_levels: int = 17):
        images, labels = read_digits()
        x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 8 - 1
        y = torch.from_numpy(labels).long()
        check_dataset_facts(
            "digits",
            channels=(channels, 1),
            size=(size, 8),
            num_classes=(num_classes, 10),
            quantization_levels=(quantization_levels, 17),
        )

        def select(rows: slice) -> ColumnSplit:
            return ColumnSplit(x[rows], y[rows], {"captions": [CAPTIONS[label] for label in y[rows]]})

        splits = select(slice(0, 1000)), select(slice(1000, 1350)), select(slice(1350, None))
        super().__init__(*splits, class_names=tuple("0123456789"))


def read_digits() -> tuple[numpy.ndarray, numpy.ndarray]:
    """Grey values 0..16 [1797, 64] and labels [1797], as `sklearn.datasets.load_digits` returns them.

    They are read from scikit-learn's file, since importing scikit-learn takes a second.
    """
    found = find_spec("sklearn")
    file = Path((found and found.origin) or "").parent / "datasets" / "data" / "digits.csv.gz"
    if not file.is_file():  # another scikit-learn keeps it elsewhere
        from sklearn.datasets import load_digits

        return load_digits(return_X_y=True)
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        table = numpy.loadtxt(lines, delimiter=",")
    return table[:, :-1], table[:, -1].astype(int)
