"""The learning rate after a change of the run length, as stored in a checkpoint."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

__all__ = ["EXTEND", "Extension"]

EXTEND = ("decay_again", "constant", "as_if_planned")


class Extension(NamedTuple):
    """The learning rate after a change of the run length. `as_if_planned` has no extension: it depends on the length only.

    Arguments:
        images: b, number of images after which the length changed.
        extend: decay_again or constant.
        start: s_b, in units of the peak, in [0, 1].
    """

    images: int
    extend: str
    start: float

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Self | None:
        """The extension in the facts of a checkpoint, None where there is none.

        Raises:
            ValueError: an invalid extension.
        """
        saved = facts.get("extension")
        if saved is None:
            return None
        if not isinstance(saved, dict) or saved.keys() != set(cls._fields):
            raise ValueError(f"extension must be a mapping with {', '.join(cls._fields)}, got {saved!r}")
        images, extend, start = (saved[name] for name in cls._fields)
        if type(images) is not int or not 0 <= images <= facts["images"]:
            raise ValueError(f"extension.images must be a whole number of at most {facts['images']}, got {images!r}")
        if extend not in EXTEND[:2]:
            raise ValueError(f"extension.extend must be {' or '.join(EXTEND[:2])}, got {extend!r}")
        if type(start) not in (int, float) or not 0 <= start <= 1:
            raise ValueError(f"extension.start must be a number from 0 to 1, got {start!r}")
        return cls(images, extend, start)
