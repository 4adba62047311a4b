"""A first stage around a network of this project."""

from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.conditions import Condition
from ..backbones.perturbations import Perturbation
from .base import FirstStage, Posterior

__all__ = ["Autoencoder", "AutoencoderNetwork"]


class AutoencoderNetwork(Backbone):
    """A network of two halves, which `objective=autoencoder` trains. A call reconstructs x from the mean of its latents.

    Attributes:
        in_channels, latent_channels: of pictures and latents.
        downsampling: the ratio of their sides.
    """

    in_channels: int
    latent_channels: int
    downsampling: int
    noise_conditioned = False

    def moments(self, x: Tensor) -> Posterior:
        """Mean and log-variance of the latents of pictures [B, C, H, W]."""
        raise NotImplementedError

    def reconstruct(self, latent: Tensor) -> Tensor:
        """Pictures [B, C, H, W] from latents."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        log_snr: Tensor | None = None,
        y: Condition | None = None,
        perturbation: Perturbation | None = None,
    ) -> Tensor:
        return self.reconstruct(self.moments(x).mean)


class Autoencoder(FirstStage):
    """A first stage whose network was trained by `objective=autoencoder`; its latents are those of the network.

    Raises:
        ValueError: a backbone that is no autoencoder.
    """

    backbone: AutoencoderNetwork

    def __init__(self, backbone: Backbone):
        super().__init__()
        if not isinstance(backbone, AutoencoderNetwork):
            raise ValueError(f"an autoencoder needs a network such as backbone=small_kl, got {type(backbone).__name__}")
        self.backbone = backbone
        self.channels, self.latent_channels = backbone.in_channels, backbone.latent_channels
        self.downsampling = backbone.downsampling

    def posterior(self, x: Tensor) -> Posterior:
        return self.backbone.moments(x)

    def reconstruct(self, latent: Tensor) -> Tensor:
        return self.backbone.reconstruct(latent)
