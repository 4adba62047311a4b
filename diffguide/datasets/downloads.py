"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, downloaded and verified by torchvision.

The validation split is the last `validation` training examples in the order of the files; the test split is the data set's.
"""

from http.client import HTTPException
from pathlib import Path

import torch

from .base import Dataset, Split, check_dataset_facts

__all__ = ["CIFAR10", "CIFAR100", "FashionMNIST", "MNIST"]


class Downloaded(Dataset):
    """A data set of torchvision, as bytes in memory.

    Arguments:
        path: folder of the files, or to download them to.
        download: whether to download missing files.
        channels, size, num_classes, quantization_levels: checked against the data; quantization_levels is 256 (bytes).
        flip: whether training mirrors every second image, left to right.
        validation: number of validation examples, the last ones of the training examples; 0 = none.

    Raises:
        ValueError: no files and no network, arguments that the data contradict, or too many validation examples.
    """

    name: str  # of the class in torchvision
    subfolder: str  # of `path`, where torchvision looks for the archives before it downloads
    archives: str

    def __init__(
        self,
        path: str = "data",
        download: bool = True,
        channels: int = 1,
        size: int = 28,
        num_classes: int = 10,
        flip: bool = False,
        validation: int = 5000,
        quantization_levels: int = 256,
    ):
        from torchvision import datasets  # takes seconds

        read, folder = getattr(datasets, self.name), Path(path).expanduser()
        try:
            train, test = (read(str(folder), train=train, download=download) for train in (True, False))
        except (OSError, RuntimeError, ValueError, AssertionError, HTTPException) as error:
            reason = " ".join(str(error).split()) or "a damaged file"
            raise ValueError(
                f"dataset.path is {path}, where {self.name} cannot be read ({reason}): set dataset.download=true with a "
                f"network, or put {self.archives} into {folder / self.subfolder}, which it then unpacks"
            ) from error
        x, test_x = (torch.as_tensor(part.data) for part in (train, test))
        x, test_x = (x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous() for x in (x, test_x))
        y, test_y = (torch.as_tensor(part.targets, dtype=torch.long) for part in (train, test))
        check_dataset_facts(
            self.name,
            channels=(channels, x.shape[1]),
            size=(size, x.shape[2]),
            num_classes=(num_classes, len(train.classes)),
            quantization_levels=(quantization_levels, 256),
        )
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

    name, subfolder = "MNIST", "MNIST/raw"
    archives = "the four *-ubyte.gz"


class FashionMNIST(Downloaded):
    """Articles of clothing, 28 x 28, grey: Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747."""

    name, subfolder = "FashionMNIST", "FashionMNIST/raw"
    archives = "the four *-ubyte.gz"


class CIFAR10(Downloaded):
    """Ten classes of objects, 32 x 32, RGB: Krizhevsky, "Learning multiple layers of features from tiny images", 2009."""

    name, subfolder = "CIFAR10", ""
    archives = "cifar-10-python.tar.gz"

    def __init__(
        self,
        path: str = "data",
        download: bool = True,
        channels: int = 3,
        size: int = 32,
        num_classes: int = 10,
        flip: bool = True,
        validation: int = 5000,
        quantization_levels: int = 256,
    ):
        super().__init__(path, download, channels, size, num_classes, flip, validation, quantization_levels)


class CIFAR100(CIFAR10):
    """A hundred classes of objects (the fine labels), 32 x 32, RGB: Krizhevsky 2009, as CIFAR10."""

    name = "CIFAR100"
    archives = "cifar-100-python.tar.gz"

    def __init__(
        self,
        path: str = "data",
        download: bool = True,
        channels: int = 3,
        size: int = 32,
        num_classes: int = 100,
        flip: bool = True,
        validation: int = 5000,
        quantization_levels: int = 256,
    ):
        super().__init__(path, download, channels, size, num_classes, flip, validation, quantization_levels)
