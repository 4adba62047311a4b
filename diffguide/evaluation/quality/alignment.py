"""Alignment of pictures of shapes with their prompts, by the judge that reads every attribute off the pixels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from ...datasets.shape_captions import parse_caption, said_values
from ...datasets.shape_pictures import ATTRIBUTES, is_held_out, list_combinations, weigh_combinations
from ..results import Figure, mean
from .shape_judge import read_pictures

__all__ = [
    "Judgement",
    "chance_share",
    "check_words",
    "diversity_figures",
    "judge_pictures",
    "prompt_values",
    "share_figures",
]


class Judgement(NamedTuple):
    """What pictures show, and what their prompts ask for.

    Attributes:
        found: the value of each attribute that a picture shows, as indices [N, 6]; -1 = not recognised.
        asked: the value that its prompt asks for [N, 6]; -1 = the prompt does not say.
    """

    found: Tensor
    asked: Tensor

    @property
    def right(self) -> Tensor:
        """Whether each attribute that is asked for is shown, [N, 6] bool; False where none is asked for."""
        return (self.asked >= 0) & (self.found == self.asked)

    @property
    def all_right(self) -> Tensor:
        """Whether a picture shows all that its prompt asks for, [N] bool."""
        return (self.right | (self.asked < 0)).all(1)

    @property
    def recognised(self) -> Tensor:
        """Whether the judge recognises anything, [N] bool."""
        return (self.found >= 0).any(1)

    @property
    def never_shown(self) -> Tensor:
        """Whether every combination that fits the prompt is held out from training, [N] bool."""
        combinations = list_combinations()
        held_out = torch.from_numpy(is_held_out(combinations))
        rows, inverse = self.asked.unique(dim=0, return_inverse=True)
        every = [bool(held_out[find_matches(row, combinations)].all()) for row in rows]
        return torch.tensor(every, dtype=torch.bool)[inverse]


def judge_pictures(x: Tensor, prompts: Sequence[str]) -> Judgement:
    """What pictures show, against their prompts.

    Arguments:
        x: uint8 [N, 3, side, side], side 16 or 32.
        prompts: one per picture, in words of `dataset=shapes`; attributes that a prompt does not say are not judged.

    Raises:
        ValueError: another dtype or shape, another number of prompts, or a prompt with other words.
    """
    if len(x) != len(prompts):
        raise ValueError(f"there must be a prompt for each picture, got {len(x)} pictures and {len(prompts)} prompts")
    return Judgement(read_pictures(x), prompt_values(prompts))


def prompt_values(prompts: Sequence[str]) -> Tensor:
    """The value of each attribute that the prompts ask for, as indices [N, 6]; -1 = not said.

    Raises:
        ValueError: a prompt with words that `dataset=shapes` does not have, or with two values of one attribute.
    """
    known = {text: said_values(text) for text in dict.fromkeys(prompts)}
    rows = [
        [values.index(known[text][name]) if name in known[text] else -1 for name, values in ATTRIBUTES.items()]
        for text in prompts
    ]
    return torch.tensor(rows, dtype=torch.long).reshape(-1, len(ATTRIBUTES))


def check_words(found: Sequence[int] | Tensor, prompt: str) -> list[tuple[str, bool]]:
    """Each phrase of a prompt that says something, and whether a picture that shows found [6] satisfies it."""
    shown = dict(zip(ATTRIBUTES, map(int, found)))
    return [
        (phrase.text, shown[phrase.attribute] == ATTRIBUTES[phrase.attribute].index(phrase.value))
        for phrase in parse_caption(prompt)
    ]


def find_matches(asked: Tensor, combinations: numpy.ndarray) -> numpy.ndarray:
    """Which combinations [K, 6] have all values that are asked for [6]; all of them if none has."""
    values = asked.numpy()
    fits = ((values < 0) | (combinations == values)).all(1)
    return fits if fits.any() else numpy.ones(len(combinations), dtype=bool)


def chance_share(asked: Tensor) -> float:
    """The share of pictures that would show all that their prompts ask for [N, 6] if they ignored them.

    Such pictures are drawn like those of the training split. The share is 0 for combinations that are never shown.
    """
    combinations = list_combinations()
    weights = weigh_combinations(combinations) * ~is_held_out(combinations)
    rows, counts = asked.unique(dim=0, return_counts=True)
    fits = ((rows[:, None] < 0) | (rows[:, None] == torch.from_numpy(combinations))).all(-1)
    shares = fits.double() @ torch.from_numpy(weights / weights.sum())
    return float((shares * counts).sum() / counts.sum())


def share_figures(judgement: Judgement) -> dict[str, Figure]:
    """Shares of pictures: all attributes right, each attribute right, and anything recognised.

    alignment counts the prompts that ask for something; alignment_seen and alignment_held_out divide them by
    `Judgement.never_shown`, and are there if both kinds occur.
    """
    asks = (judgement.asked >= 0).any(1)
    held_out = judgement.never_shown
    groups = {"alignment": asks}
    if bool((asks & held_out).any()) and bool((asks & ~held_out).any()):
        groups |= {"alignment_seen": asks & ~held_out, "alignment_held_out": asks & held_out}
    figures = {name: mean(judgement.all_right[rows], "share") for name, rows in groups.items() if bool(rows.any())}
    for column, name in enumerate(ATTRIBUTES):
        rows = judgement.asked[:, column] >= 0
        if bool(rows.any()):
            figures[f"alignment_{name}"] = mean(judgement.right[rows, column], "share")
    return figures | {"recognised": mean(judgement.recognised, "share")}


def diversity_figures(x: Tensor, judgement: Judgement) -> dict[str, Figure]:
    """How much the pictures of one prompt differ, averaged over the prompts with several pictures; {} without any.

    diversity: of the attributes that the prompt leaves open, the share of pairs of pictures that show different values,
    divided by that of pictures drawn as the data set draws them; 1 = as diverse as the data. Only recognised values count.
    pixel_diversity: root mean square difference of two pictures, in units of white.

    Arguments:
        x: uint8 [N, 3, side, side].
    """
    combinations = list_combinations()
    rows, group = judgement.asked.unique(dim=0, return_inverse=True)
    open_shares, pixels = [], []
    for number, asked in enumerate(rows):
        members = (group == number).nonzero()[:, 0]
        if len(members) < 2:
            continue
        variance = (x[members].double() / 255).var(0)
        pixels.append(float((2 * variance.mean()).sqrt()))
        fits = find_matches(asked, combinations)
        weights = weigh_combinations(combinations[fits])
        ratios = []
        for column, values in enumerate(ATTRIBUTES.values()):
            law = numpy.bincount(combinations[fits, column], weights, len(values)) / weights.sum()
            shown = judgement.found[members, column]
            share = differing_share(shown[shown >= 0].bincount(minlength=len(values)))
            if int(asked[column]) < 0 and (expected := 1 - float((law**2).sum())) > 1e-9 and share is not None:
                ratios.append(share / expected)
        if ratios:
            open_shares.append(sum(ratios) / len(ratios))
    figures = {"diversity": (open_shares, "ratio"), "pixel_diversity": (pixels, "of white")}
    return {name: mean(torch.tensor(values), unit) for name, (values, unit) in figures.items() if values}


def differing_share(counts: Tensor) -> float | None:
    """The share of pairs with different values, from the count of each value [K]; None for less than two."""
    total = int(counts.sum())
    return None if total < 2 else 1 - float((counts * (counts - 1)).sum()) / (total * (total - 1))
