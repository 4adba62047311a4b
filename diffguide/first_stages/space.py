"""The space in which a diffusion model works: latents of a first stage, each channel with mean 0 and variance 1."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ..files.safetensors import compute_digest
from .base import FirstStage

__all__ = ["LatentFacts", "LatentSpace", "denormalize", "hash_stage"]

CHUNK = 16  # pictures that are encoded or decoded together; the result does not depend on it beyond rounding


class LatentFacts(NamedTuple):
    """What a checkpoint records of its latents.

    Attributes:
        sha256: `hash_stage` of the first stage.
        image_shape: of one picture.
        mean, std: of each channel of the latents of the training data.
    """

    sha256: str
    image_shape: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]

    @classmethod
    def read(cls, value: Any) -> Self:
        """The facts in the metadata of a checkpoint.

        Raises:
            ValueError: facts that `LatentFacts` does not have, or of other types.
        """
        if not isinstance(value, Mapping) or set(value) != set(cls._fields):
            raise ValueError(f"first_stage must have {', '.join(cls._fields)}")
        sha256, image_shape, mean, std = (value[name] for name in cls._fields)
        sizes = (
            isinstance(image_shape, list)
            and len(image_shape) == 3
            and all(type(s) is int and s > 0 for s in image_shape)
        )
        numbers = [isinstance(part, list) and all(type(v) in (int, float) for v in part) for part in (mean, std)]
        if not isinstance(sha256, str) or not sizes or not all(numbers) or not 0 < len(mean) == len(std):
            raise ValueError("first_stage must have a hash, a shape, and a mean and a std per channel")
        if not torch.tensor([*mean, *std]).isfinite().all() or min(std) <= 0:
            raise ValueError("first_stage must have finite means and positive stds")
        return cls(sha256, image_shape, mean, std)


class LatentSpace:
    """encode(x) = (stage.encode(x) - mean) / std, decode(z) = stage.decode(z std + mean), per channel.

    Rombach et al. 2022, arXiv 2112.10752, appendix G, rescale latents by one number to unit variance; here every channel has
    its own mean and standard deviation, those of the training data.

    Arguments:
        stage: the first stage, in evaluation mode.
        image_shape: of one picture, [C, H, W].
        mean, std: one number per channel of the latents.
        sha256: `hash_stage(stage)`; None = computed.

    Attributes:
        shape: of the latents of one picture.

    Raises:
        ValueError: pictures that the stage does not take, or another number of channels.
    """

    def __init__(
        self,
        stage: FirstStage,
        image_shape: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        sha256: str | None = None,
    ):
        self.stage, self.image_shape, self.shape = stage, tuple(image_shape), stage.latent_shape(image_shape)
        if not len(mean) == len(std) == stage.latent_channels:
            raise ValueError(
                f"these latents have {stage.latent_channels} channels, got {len(mean)} means and {len(std)} stds"
            )
        self.mean, self.std = list(map(float, mean)), list(map(float, std))
        self.sha256 = sha256 or hash_stage(stage)

    @property
    def device(self) -> torch.device:
        return next(self.stage.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """The same space, its stage moved to a device."""
        self.stage.to(device)
        return self

    def normalize(self, latents: Tensor) -> Tensor:
        """Latents of the stage [..., C, H, W] -> those of the diffusion model."""
        mean, std = (column(part, latents) for part in (self.mean, self.std))
        return (latents - mean) / std

    def denormalize(self, z: Tensor) -> Tensor:
        """Latents of the diffusion model [..., C, H, W] -> those of the stage."""
        return denormalize(z, self.mean, self.std)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Latents of pictures [B, C, H, W] in [-1, 1]: the means of their posteriors, float32 on the device of x."""
        parts = [self.stage.encode(part.to(self.device)).float().to(x.device) for part in x.split(CHUNK)]
        return self.normalize(torch.cat(parts))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Pictures of latents [B, C, H, W], float32 on the device of z."""
        latents = self.denormalize(z.float())
        return torch.cat(
            [self.stage.decode(part.to(self.device)).float().to(z.device) for part in latents.split(CHUNK)]
        )

    def facts(self) -> dict[str, Any]:
        """For the checkpoint."""
        return LatentFacts(self.sha256, list(self.image_shape), self.mean, self.std)._asdict()


def denormalize(z: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """z std + mean per channel, of latents [..., C, H, W]."""
    return z * column(std, z) + column(mean, z)


def column(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers per channel as [C, 1, 1]."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def hash_stage(stage: FirstStage) -> str:
    """A hash of what an autoencoder computes: its class, its weights, its scaling and its shift."""
    factors = {"scaling": stage.scaling_factor, "shift": stage.shift_factor}
    tensors = {name: value.detach().cpu().contiguous() for name, value in stage.state_dict().items()}
    return compute_digest(tensors, {"class": type(stage).__name__} | factors)
