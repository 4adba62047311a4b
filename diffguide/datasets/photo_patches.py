"""Crops of the two photographs in scikit-learn: natural colour images without a download."""

import torch

from .base import Dataset, Split, check_dataset_facts, check_draws

__all__ = ["PhotoPatches"]


class PhotoPatches(Dataset):
    """32 x 32 crops of china.jpg and flower.jpg, 427 x 640 pixels, RGB; the class is the photograph.

    Training crops lie in the left 70 % of the columns, validation crops in the next 15 %, test crops in the last 15 %, so
    that no pixel is in two splits. The positions are uniform; the photographs alternate.

    Arguments:
        channels, size, num_classes, quantization_levels: 3, 32, 2 and 256; checked.
        train, validation, test: number of crops in each split, 1 to 10^7.
        seed: seed of the positions, at least 0.
        flip: whether training mirrors every second crop, left to right.
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        num_classes: int = 2,
        train: int = 10000,
        validation: int = 1000,
        test: int = 1000,
        seed: int = 0,
        flip: bool = True,
        quantization_levels: int = 256,
    ):
        from sklearn.datasets import load_sample_images  # takes a second

        check_dataset_facts(
            "photo_patches",
            channels=(channels, 3),
            size=(size, 32),
            num_classes=(num_classes, 2),
            quantization_levels=(quantization_levels, 256),
        )
        check_draws("photo_patches", (train, validation, test), seed)
        photos = torch.stack([torch.tensor(photo) for photo in load_sample_images().images]).permute(0, 3, 1, 2)
        width, rng = photos.shape[3], torch.Generator().manual_seed(seed)
        edges = width * 70 // 100, width * 85 // 100
        splits = (
            cut_crops(photos[..., : edges[0]], size, train, rng),
            cut_crops(photos[..., edges[0] : edges[1]], size, validation, rng),
            cut_crops(photos[..., edges[1] :], size, test, rng),
        )
        super().__init__(*splits, class_names=("china", "flower"), flip=flip)


def cut_crops(photos: torch.Tensor, size: int, n: int, rng: torch.Generator) -> Split:
    """n crops of photos [K, C, H, W] at uniform positions, the photos in turn."""
    windows = photos.unfold(2, size, 1).unfold(3, size, 1)  # a view [K, C, rows, columns, size, size]
    y = torch.arange(n) % len(photos)
    row, column = (torch.randint(count, (n,), generator=rng) for count in windows.shape[2:4])
    return Split(windows[y, :, row, column].contiguous(), y)
