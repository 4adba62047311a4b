"""Data sets: three splits, in memory or read by worker processes, with class names."""

from .base import Dataset, Split, Stream
from .captioned import Captioned
from .digits import Digits
from .downloads import CIFAR10, CIFAR100, MNIST, FashionMNIST
from .gmm2d import GMM2D
from .image_folder import ImageFolder
from .mixture import Mixture
from .photo_patches import PhotoPatches
from .shapes import Shapes
from .tree import Tree

__all__ = [
    "CIFAR10", "CIFAR100", "Captioned", "Dataset", "Digits", "FashionMNIST", "GMM2D", "ImageFolder", "MNIST", "Mixture",
    "PhotoPatches", "Shapes", "Split", "Stream", "Tree",
]  # fmt: skip
