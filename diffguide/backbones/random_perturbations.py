"""Perturbations with random numbers, which each row of a batch has of its own."""

import copy
from collections.abc import Callable, Sequence
from typing import Self

from torch import Tensor

from .perturbations import Perturbation

__all__ = ["Draw", "NoisyEmbedding", "RandomBlocks", "RandomPerturbation", "ShuffledTokens"]

Draw = Callable[[Sequence[int], int], Tensor]  # (shape, number) -> standard normals [B, *shape], independent by number


class RandomPerturbation(Perturbation):
    """Base of the perturbations with random numbers.

    Attributes:
        draw: the source of the numbers, for the rows of a batch.
    """

    draw: Draw

    def drawing(self, draw: Draw) -> Self:
        """A copy with these random numbers."""
        fresh = copy.copy(self)
        fresh.draw = draw
        return fresh


class ShuffledTokens(RandomPerturbation):
    """The tokens of the input of a transformer block change places, in a random order of each row and layer.

    Rajabi, Mehraban, Sadat, Taati, "Token Perturbation Guidance for Diffusion Models", 2025, arXiv 2506.10036, and its code:
    the tokens stay in their new places after the block. There one order serves the whole batch.
    """

    def replace_input(self, index: int, x: Tensor, channels: int) -> Tensor:
        if index not in self.layers:
            return x
        tokens = x.movedim(channels, -1)
        flat = tokens.flatten(1, -2)
        order = self.draw(flat.shape[1:2], index).argsort(1)
        shuffled = flat.gather(1, order[:, :, None].expand_as(flat))
        return self.replace_rows(x, shuffled.reshape(tokens.shape).movedim(-1, channels))


class RandomBlocks(RandomPerturbation):
    """Some blocks are skipped, drawn for each row without replacement.

    Chen et al., "S^2-Guidance: Stochastic Self Guidance for Training-Free Enhancement of Diffusion Models", 2025, arXiv
    2508.12880, algorithm 1. It does not say whether a batch shares its draw.

    Arguments:
        layers: indices of the blocks that may be skipped.
        count: number of blocks to skip in each row.

    Attributes:
        skipped: [B, number of layers] bool, which of the layers each row skips.
    """

    skipped: Tensor

    def __init__(self, layers: Sequence[int], count: int):
        super().__init__(layers)
        self.count = count

    def drawing(self, draw: Draw) -> Self:
        fresh = super().drawing(draw)
        fresh.skipped = draw((len(self.layers),), 0).argsort(1).argsort(1) < self.count  # the ranks below `count`
        return fresh

    def replace_output(self, index: int, skip: Tensor, h: Tensor) -> Tensor:
        if index not in self.layers:
            return h
        chosen = self.rows & self.skipped[:, self.layers.index(index)]
        return self.for_rows(chosen).replace_rows(h, skip)


class NoisyEmbedding(RandomPerturbation):
    """Noise on the vector e of the noise level: e + strength std(e) n, n standard normal, std over the values of a row.

    Sadat, Kansy, Hilliges, Weber, "No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models", 2024,
    arXiv 2407.02687, section 5 and appendix G, for all layers of a network.

    Attributes:
        strength: s t^a of the paper, at least 0.
    """

    strength: float

    def __init__(self) -> None:
        super().__init__(())

    def of_strength(self, strength: float) -> Self:
        """A copy of this strength."""
        fresh = copy.copy(self)
        fresh.strength = strength
        return fresh

    def replace_noise_embedding(self, embedding: Tensor) -> Tensor:
        n = self.draw(embedding.shape[1:], 0).to(embedding)
        noisy = embedding + self.strength * embedding.std(1, keepdim=True) * n
        return self.replace_rows(embedding, noisy)
