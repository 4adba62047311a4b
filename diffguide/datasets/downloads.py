"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, downloaded and checked by torchvision.

The last `validation` training examples, in the order of the files, validate; the set's own test set tests.
"""

from http.client import HTTPException
from pathlib import Path

import torch

from .base import Dataset, Split, check_dataset_facts

__all__ = ["CIFAR10", "CIFAR100", "FashionMNIST", "MNIST"]


class Downloaded(Dataset):
    """A data set of torchvision's, as bytes in memory.

    Arguments:
        path: folder where the files lie or are downloaded to.
        download: whether to download them where they are missing.
        channels, size, num_classes, quantization_levels: facts, checked against the data; quantization_levels = 256 for bytes.
        flip: whether training mirrors every second image, left to right.
        validation: number of training examples, the last ones, that validate; 0 = none.

    Raises:
        ValueError: no files, no network, other facts, or too many examples to validate.
    """

    name: str  # of torchvision's class
    place: str  # where in `path` its archives are looked for before anything is downloaded
    archives: str

    def __init__(
        self, path: str = "data", download: bool = True, channels: int = 1, size: int = 28, num_classes: int = 10,
        flip: bool = False, validation: int = 5000, quantization_levels: int = 256,
    ):  # fmt: skip
        from torchvision import datasets  # seconds to import

        known, folder = getattr(datasets, self.name), Path(path).expanduser()
        try:
            train, test = (known(str(folder), train=train, download=download) for train in (True, False))
        except (OSError, RuntimeError, ValueError, AssertionError, HTTPException) as error:
            reason = " ".join(str(error).split()) or "a damaged file"
            raise ValueError(
                f"dataset.path is {path}, where {self.name} cannot be read ({reason}): set dataset.download=true with a "
                f"network, or put {self.archives} into {folder / self.place}, where dataset.download=true unpacks without"
            ) from error
        x, test_x = (torch.as_tensor(part.data) for part in (train, test))
        x, test_x = (x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous() for x in (x, test_x))
        y, test_y = (torch.as_tensor(part.targets, dtype=torch.long) for part in (train, test))
        found = {
            "channels": x.shape[1],
            "size": x.shape[2],
            "num_classes": len(train.classes),
            "quantization_levels": 256,
        }
        stated = {
            "channels": channels,
            "size": size,
            "num_classes": num_classes,
            "quantization_levels": quantization_levels,
        }
        check_dataset_facts(self.name, stated, found)
        if not 0 <= validation < len(x):
            raise ValueError(
                f"dataset.validation is {validation}, but must be at least 0 and below the {len(x)} training examples"
            )
        cut = len(x) - validation
        splits = Split(x[:cut], y[:cut]), Split(x[cut:], y[cut:]), Split(test_x, test_y)
        self.folder = folder
        super().__init__(*splits, class_names=train.classes, flip=flip)


class MNIST(Downloaded):
    """Handwritten digits, 28 x 28, grey: LeCun, Bottou, Bengio & Haffner, Proceedings of the IEEE 86 (1998)."""

    name, place = "MNIST", "MNIST/raw"
    archives = "the four *-ubyte.gz"


class FashionMNIST(Downloaded):
    """Articles of clothing, 28 x 28, grey: Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747."""

    name, place = "FashionMNIST", "FashionMNIST/raw"
    archives = "the four *-ubyte.gz"


class CIFAR10(Downloaded):
    """Ten kinds of things, 32 x 32, RGB: Krizhevsky, "Learning multiple layers of features from tiny images", 2009."""

    name, place = "CIFAR10", ""
    archives = "cifar-10-python.tar.gz"

    def __init__(
        self, path: str = "data", download: bool = True, channels: int = 3, size: int = 32, num_classes: int = 10,
        flip: bool = True, validation: int = 5000, quantization_levels: int = 256,
    ):  # fmt: skip
        super().__init__(path, download, channels, size, num_classes, flip, validation, quantization_levels)


class CIFAR100(CIFAR10):
    """A hundred kinds of things, the fine labels, 32 x 32, RGB: Krizhevsky 2009, as CIFAR10."""

    name, place = "CIFAR100", ""
    archives = "cifar-100-python.tar.gz"

    def __init__(
        self, path: str = "data", download: bool = True, channels: int = 3, size: int = 32, num_classes: int = 100,
        flip: bool = True, validation: int = 5000, quantization_levels: int = 256,
    ):  # fmt: skip
        super().__init__(path, download, channels, size, num_classes, flip, validation, quantization_levels)
