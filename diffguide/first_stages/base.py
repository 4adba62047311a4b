"""The base of first stages, and the Gaussian that an encoder states."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["FirstStage", "Posterior"]


class Posterior(NamedTuple):
    """q(z | x) = N(mean, exp(log_variance)), independent in every element.

    mean: [B, C, H, W].
    log_variance: of the same shape; None = the encoder is deterministic.
    """

    mean: Tensor
    log_variance: Tensor | None

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std noise, with noise of the shape of the mean; the mean of a deterministic encoder."""
        return self.mean if self.log_variance is None else self.mean + (0.5 * self.log_variance).exp() * noise

    def kl(self) -> Tensor:
        """KL(q(z | x) || N(0, I)) in nats, [B]: half the sum of mean^2 + variance - 1 - log variance.

        Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, arXiv 1312.6114, appendix B.

        Raises:
            ValueError: a deterministic encoder.
        """
        if self.log_variance is None:
            raise ValueError("a deterministic encoder has no KL divergence")
        wide = torch.promote_types(self.mean.dtype, torch.float32)
        mean, log_variance = self.mean.to(wide), self.log_variance.to(wide)
        return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)


class FirstStage(nn.Module):
    """encode(x) -> z, decode(z) -> x: x [B, channels, H, W] in [-1, 1], z [B, latent_channels, H / f, W / f].

    Rombach, Blattmann, Lorenz, Esser, Ommer, "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, arXiv
    2112.10752, section 3.1. z = (latent of the network - shift_factor) scaling_factor, so that latents have about variance 1.

    Attributes:
        channels, latent_channels: of pictures and latents.
        downsampling: f, the ratio of their sides.
        scaling_factor, shift_factor: numbers, or one per channel of the latents.
        num_classes: 0; a first stage knows no classes.
    """

    channels: int
    latent_channels: int
    downsampling: int
    scaling_factor: float | Sequence[float] = 1.0
    shift_factor: float | Sequence[float] = 0.0
    num_classes = 0

    def posterior(self, x: Tensor) -> Posterior:
        """q(latent of the network | x)."""
        raise NotImplementedError

    def reconstruct(self, latent: Tensor) -> Tensor:
        """Pictures from latents of the network."""
        raise NotImplementedError

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """The latents of pictures.

        Arguments:
            x: [B, channels, H, W] in [-1, 1]; the sides are multiples of `downsampling`.
            noise: standard normal, of the shape of the latents; None = the mean of the posterior.
        """
        posterior = self.posterior(x)
        latent = posterior.mean if noise is None else posterior.sample(noise)
        return (latent - per_channel(self.shift_factor, latent)) * per_channel(self.scaling_factor, latent)

    def decode(self, z: Tensor) -> Tensor:
        """Pictures [B, channels, H, W], about in [-1, 1], from latents."""
        return self.reconstruct(z / per_channel(self.scaling_factor, z) + per_channel(self.shift_factor, z))

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the latents of a picture.

        Raises:
            ValueError: a shape [C, H, W] that this first stage does not take.
        """
        if len(shape) != 3:
            raise ValueError(f"a first stage needs pictures, got examples of shape {list(shape)}")
        if shape[0] != self.channels:
            raise ValueError(f"this first stage takes pictures with {self.channels} channels, got {shape[0]}")
        if any(side % self.downsampling for side in shape[1:]):
            raise ValueError(
                f"this first stage divides sides by {self.downsampling}, got pictures of {shape[1]} x {shape[2]} pixels"
            )
        return (self.latent_channels, *(side // self.downsampling for side in shape[1:]))


def per_channel(value: float | Sequence[float], like: Tensor) -> float | Tensor:
    """A number, or a number per channel as [C, 1, 1]."""
    return (
        value
        if isinstance(value, int | float)
        else torch.as_tensor(value, dtype=like.dtype).to(like.device)[:, None, None]
    )
