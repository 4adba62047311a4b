"""Data sets that live in memory. They know nothing of diffusion."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Split", "InMemory"]


class Split(NamedTuple):
    """x [N, C, H, W] in [-1, 1] or vectors [N, D]; y [N] class indices."""

    x: Tensor
    y: Tensor


class InMemory:
    """Three splits of one data set, and its facts.

    Attributes:
        train, validation, test: `Split`s. Choices are made on validation; test is touched once.
        class_names: one name per class.
        shape: of one example.
    """

    def __init__(self, train: Split, validation: Split, test: Split, class_names: tuple[str, ...]):
        self.train, self.validation, self.test, self.class_names = train, validation, test, class_names

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.train.x.shape[1:])


def check_facts(name: str, stated: dict[str, int | None], found: dict[str, int | None]) -> None:
    """Compares what the configuration states about the data with the data.

    Raises:
        ValueError: naming the first fact that differs.
    """
    for fact, value in found.items():
        if stated[fact] != value:
            raise ValueError(f"dataset.{fact} is {stated[fact]}, but {name} has {value}")
