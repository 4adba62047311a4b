"""Captioned pictures of shapes, drawn by arithmetic: a text-to-image problem whose truth is known."""

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from .base import Column, ColumnSplit, Dataset, check_dataset_facts, check_draws
from .captions import describe_captions
from .fingerprints import Fingerprint, fingerprint_tensors
from .shape_captions import DRAWS, write_caption
from .shape_pictures import (
    ATTRIBUTES,
    SIDES,
    draw_pictures,
    is_held_out,
    list_combinations,
    place_objects,
    weigh_combinations,
)

__all__ = ["ATTRIBUTE_NAMES", "Shapes", "prompts"]

ATTRIBUTE_NAMES = tuple(f"{attribute} {value}" for attribute, values in ATTRIBUTES.items() for value in values)
SPLITS = ("train", "validation", "test")
PICTURES, CAPTIONS, PROMPTS = range(3)  # purposes of the random numbers
WEIGHTS = {
    "one": 1 / 5,
    "two": 1 / 5,
    "three": 1,
}  # of a combination: counts are equally frequent, and so are positions
CHUNK = 2000  # pictures drawn at a time


class Shapes(Dataset):
    """Pictures of one to three equal shapes with captions: shape x colour x size x count x background x position.

    Training and validation have the combinations that are seen, test those that are never shown
    (`shape_pictures.is_held_out`). Shape, colour, size, background and count are drawn uniformly, the position uniformly
    among those of the count, without the combinations of the other splits. Example i of a split is a function of
    (seed, split, i): a larger split begins with the smaller one. The class is the shape.

    Columns: `captions`, of which the first says every attribute in plain words; `attributes` [N, 23], 1 or 0 in the order of
    `ATTRIBUTE_NAMES`; `numbers` [N, 2], the mean (x, y) of the objects in [-1, 1], y downwards.

    Arguments:
        channels, num_classes, quantization_levels: 3, 4 and 256; checked.
        size: side of the pictures, 16 or 32 pixels.
        captions: captions of each picture, at least 1.
        train, validation, test: number of pictures in each split, 1 to 10^7.
        seed: of the pictures and the captions, at least 0.
    """

    synthetic = True

    def __init__(
        self,
        channels: int = 3,
        size: int = 16,
        num_classes: int = 4,
        captions: int = 4,
        train: int = 20000,
        validation: int = 1000,
        test: int = 1000,
        seed: int = 0,
        quantization_levels: int = 256,
    ):
        check_dataset_facts(
            "shapes",
            channels=(channels, 3),
            num_classes=(num_classes, len(ATTRIBUTES["shape"])),
            quantization_levels=(quantization_levels, 256),
        )
        if size not in SIDES:
            raise ValueError(f"dataset.size is {size}, but must be 16 or 32 for shapes")
        if not 1 <= captions <= 100:
            raise ValueError(f"dataset.captions is {captions}, but must be 1 to 100")
        check_draws("shapes", (train, validation, test), seed)
        counts = zip(SPLITS, (train, validation, test))
        first, second, third = (draw_split(name, n, size, captions, seed) for name, n in counts)
        super().__init__(first, second, third, class_names=ATTRIBUTES["shape"])

    def summary(self) -> list[str]:
        combinations, held_out = list_combinations(), is_held_out(list_combinations())
        captions = [texts for split in (self.train, self.validation, self.test) for texts in split.columns["captions"]]
        return [
            *super().summary(),
            f"combinations: {int((~held_out).sum())} in train and validation, {int(held_out.sum())} others in test, of "
            f"{len(combinations)}",
            *describe_captions("a grammar", captions),
        ]

    def fingerprint(self) -> Fingerprint:
        """The hash of what is drawn and of its captions; pixels at edges may differ by rounding between processors."""
        splits = self.train, self.validation, self.test
        text = "\n".join(text for split in splits for texts in split.columns["captions"] for text in texts)
        columns = [torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)]
        columns += [torch.as_tensor(split.columns["attributes"]) for split in splits]
        return fingerprint_tensors(columns, sum(len(split.y) for split in splits))


def uniform_numbers(seed: int, purpose: int, split: str, shape: tuple[int, ...]) -> numpy.ndarray:
    """Uniform numbers in [0, 1) whose row i does not depend on the number of rows."""
    key = (seed, len(SPLITS) * purpose + SPLITS.index(split))
    return numpy.random.Generator(numpy.random.Philox(key=key)).random(shape)


def pick_combinations(split: str, draws: numpy.ndarray) -> numpy.ndarray:
    """Combinations [N, 6] of a split, by uniform numbers [N]."""
    combinations = list_combinations()
    combinations = combinations[is_held_out(combinations) == (split == "test")]
    weights = weigh_combinations(combinations)
    edges = numpy.cumsum(weights) / weights.sum()
    return combinations[numpy.minimum(numpy.searchsorted(edges, draws, side="right"), len(edges) - 1)]


def draw_split(split: str, n: int, size: int, captions: int, seed: int) -> ColumnSplit:
    """The first n examples of a split."""
    draws = uniform_numbers(seed, PICTURES, split, (n, 9))
    combinations = pick_combinations(split, draws[:, 0])
    middles = place_objects(combinations, draws[:, 1:].reshape(n, 4, 2))
    x = [
        draw_pictures(combinations[first : first + CHUNK], middles[first : first + CHUNK], size)
        for first in range(0, n, CHUNK)
    ]
    words = uniform_numbers(seed, CAPTIONS, split, (n, captions, DRAWS))
    columns: dict[str, Column] = {
        "captions": [
            [describe(row, draw, first=number == 0) for number, draw in enumerate(many)]
            for row, many in zip(combinations.tolist(), words.tolist())
        ],
        "attributes": mark_attributes(combinations),
        "numbers": torch.from_numpy(numpy.nanmean(2 * middles - 1, axis=1)).float(),
    }
    return ColumnSplit(torch.from_numpy(numpy.concatenate(x)), torch.from_numpy(combinations[:, 0].copy()), columns)


def describe(combination: Sequence[int], draws: Sequence[float], first: bool) -> str:
    """A caption of training; the first one of a picture is plain and complete."""
    text, _ = write_caption(combination, draws, "plain" if first else "trained", complete=first)
    return text


def mark_attributes(combinations: numpy.ndarray) -> Tensor:
    """1 for each value that a combination [N, 6] has, else 0, [N, 23] float32 in the order of `ATTRIBUTE_NAMES`."""
    columns = [numpy.eye(len(values))[combinations[:, k]] for k, values in enumerate(ATTRIBUTES.values())]
    return torch.from_numpy(numpy.concatenate(columns, axis=1)).float()


def prompts(
    split: str = "test", seed: int = 0, n: int = 100, wording: str = "plain", complete: bool = True
) -> list[tuple[str, dict[str, str]]]:
    """Prompts, each with the values that it asks for, by attribute.

    The combinations are those of a split: seen ones for train and validation, ones that are never shown for test. They are
    drawn like those of the pictures, with random numbers of their own; prompt i is a function of (split, seed, i).

    Arguments:
        split: train, validation or test.
        seed: at least 0.
        n: number of prompts.
        wording: plain, trained, order or synonyms, as for `shape_captions.write_caption`; the last two are never in training.
        complete: whether each prompt says all six attributes; otherwise some are left out as in training captions.

    Raises:
        ValueError: an unknown split or wording, or a number out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be train, validation or test, got {split!r}")
    check_draws("prompts", (n,), seed)
    draws = uniform_numbers(seed, PROMPTS, split, (n, 1 + DRAWS))
    combinations = pick_combinations(split, draws[:, 0]).tolist()
    return [write_caption(row, many[1:], wording, complete) for row, many in zip(combinations, draws.tolist())]
