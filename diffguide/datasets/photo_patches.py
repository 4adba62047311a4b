"""Crops of the two photographs that ship with scikit-learn: natural colour images without a download."""

import torch

from .base import Dataset, Split, check_dataset_facts

__all__ = ["PhotoPatches"]


class PhotoPatches(Dataset):
    """32 x 32 crops of china.jpg and flower.jpg, 427 x 640 pixels, RGB; the class is the photograph.

    Training crops lie in the left 70 % of the columns, validation crops in the next 15 %, test crops in the last 15 %, so
    that no pixel is in two splits. Their places are uniform, a function of `seed` alone; the photographs alternate.

    Arguments:
        channels, size, num_classes, quantization_levels: the facts 3, 32, 2 and 256, checked.
        train, validation, test: number of crops in each split.
        seed: of the places.
        flip: whether training mirrors every second crop, left to right.
    """

    def __init__(
        self, channels: int = 3, size: int = 32, num_classes: int = 2, train: int = 10000, validation: int = 1000,
        test: int = 1000, seed: int = 0, flip: bool = True,
        quantization_levels: int = 256,
    ):  # fmt: skip
        from sklearn.datasets import load_sample_images  # a second to import

        found = {"channels": 3, "size": 32, "num_classes": 2, "quantization_levels": 256}
        stated = {
            "channels": channels,
            "size": size,
            "num_classes": num_classes,
            "quantization_levels": quantization_levels,
        }
        check_dataset_facts("photo_patches", stated, found)
        if min(train, validation, test) < 1 or seed < 0:
            raise ValueError(
                f"photo_patches needs a crop per split and seed >= 0, got {train}, {validation}, {test}, seed {seed}"
            )
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
    """n crops of photos [K, C, H, W] at uniform places, the photos in turn."""
    windows = photos.unfold(2, size, 1).unfold(3, size, 1)  # a view [K, C, rows, columns, size, size]
    y = torch.arange(n) % len(photos)
    row, column = (torch.randint(places, (n,), generator=rng) for places in windows.shape[2:4])
    return Split(windows[y, :, row, column].contiguous(), y)
