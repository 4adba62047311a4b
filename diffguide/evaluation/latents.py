"""Models in the latents of a first stage: their pictures, and the metrics that have no meaning for them."""

from torch import Tensor

from ..datasets import Dataset
from ..first_stages.latent_data import LatentData

__all__ = ["decode_samples", "pictures_of", "refuse_latents"]


def pictures_of(data: Dataset) -> Dataset:
    """The data before a first stage; the data themselves without one."""
    return data.pictures if isinstance(data, LatentData) else data


def decode_samples(data: Dataset, x: Tensor) -> Tensor:
    """The pictures of samples of a model of these data; the samples themselves without a first stage."""
    return data.space.decode(x) if isinstance(data, LatentData) else x


def refuse_latents(metric: str, data: Dataset) -> None:
    """Raises ValueError for a likelihood of latents.

    log p(x) of a picture would need the density of the decoder, and an integral over the latents that it decodes to x.
    """
    if isinstance(data, LatentData):
        raise ValueError(
            f"metric={metric} has no meaning for a model in latents: the density is that of latents and the decoder has none, "
            "so nothing follows about pixels, bits/dim least of all; use metric=quality, denoising or zero_shot"
        )
