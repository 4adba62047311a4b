"""What a sample of a model becomes on the disk: a picture, a vector, or a latent."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import numpy
from torch import Tensor

from ..figures.image_grids import is_latent, to_uint8
from ..first_stages.space import LatentFacts, LatentSpace, denormalize

__all__ = ["StoredForm"]


def keep(x: Tensor) -> Tensor:
    """The same samples."""
    return x


class StoredForm(NamedTuple):
    """How samples are stored.

    Attributes:
        shape: of a stored sample before its conversion to bytes, [C, H, W] or [D].
        is_picture: whether it is stored as bytes; else as float32.
        convert: samples of the model [B, ...] -> [B, *shape].
        first_stage_sha256: of the first stage of latents; None = there is none, or it is not known.
    """

    shape: Sequence[int]
    is_picture: bool
    convert: Callable[[Tensor], Tensor]
    first_stage_sha256: str | None = None

    @classmethod
    def of(cls, shape: Sequence[int]) -> Self:
        """That of a model without a first stage: pictures have 1 or 3 channels, other samples are stored as they are."""
        return cls(shape, len(shape) == 3 and not is_latent(shape), keep)

    @classmethod
    def decoded(cls, space: LatentSpace) -> Self:
        """That of a model in latents, which are decoded."""
        return cls(space.image_shape, True, space.decode, space.sha256)

    @classmethod
    def latents(cls, shape: Sequence[int], facts: LatentFacts) -> Self:
        """That of a model whose latents are kept, as the first stage takes them."""
        return cls(shape, False, lambda x: denormalize(x, facts.mean, facts.std), facts.sha256)

    @property
    def spec(self) -> tuple[str, tuple[int, ...]]:
        """dtype and shape in the files: bytes [H, W, C] for a picture [C, H, W], float32 for anything else."""
        return ("uint8", (*self.shape[1:], self.shape[0])) if self.is_picture else ("float32", tuple(self.shape))

    def array(self, x: Tensor) -> numpy.ndarray:
        """The samples of a batch [B, ...] as they are stored."""
        stored = self.convert(x)
        return to_uint8(stored) if self.is_picture else stored.float().cpu().numpy()
