"""Autoencoders of the library diffusers as first stages; their architectures stay in that library."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backbones.diffusers_network import create_network
from .base import FirstStage, Posterior

__all__ = ["AUTOENCODERS", "DiffusersAutoencoder"]

AUTOENCODERS = {"AutoencoderKL": "block_out_channels", "AutoencoderTiny": "num_encoder_blocks"}  # an entry per level
NEUTRAL = {"scaling_factor": 1.0, "shift_factor": 0.0}  # where the configuration has none, or null


class DiffusersAutoencoder(FirstStage):
    """An autoencoder of diffusers, with the scaling and shift of its configuration.

    Latents are (latent - shift_factor) scaling_factor; where the configuration has a mean and a standard deviation per channel,
    (latent - latents_mean) scaling_factor / latents_std, as in diffusers' pipelines.

    Arguments:
        network: name of the class in diffusers, one of `AUTOENCODERS`.
        arguments: of its constructor, as its config.json has them.

    Raises:
        ValueError: diffusers is not installed, an unknown class, or arguments that it does not take.
    """

    def __init__(self, network: str, arguments: Mapping[str, Any]):
        super().__init__()
        if network not in AUTOENCODERS:
            raise ValueError(f"network must be one of {', '.join(AUTOENCODERS)}, got {network!r}")
        self.network: Any = create_network(network, arguments)
        config = self.network.config
        self.channels, self.latent_channels = config.in_channels, config.latent_channels
        self.downsampling = 2 ** (len(config[AUTOENCODERS[network]]) - 1)
        scaling, shift = (NEUTRAL[key] if config.get(key) is None else config[key] for key in NEUTRAL)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            if shift:
                raise ValueError("a first stage has shift_factor or latents_mean, and this one has both")
            shift, scaling = list(mean), [scaling / float(each) for each in std]
        self.scaling_factor, self.shift_factor = scaling, shift

    def posterior(self, x: Tensor) -> Posterior:
        found = self.network.encode(x.to(self.network.dtype))
        if hasattr(found, "latents"):
            return Posterior(found.latents, None)
        return Posterior(found.latent_dist.mean, found.latent_dist.logvar)

    def reconstruct(self, latent: Tensor) -> Tensor:
        picture = self.network.decode(latent.to(self.network.dtype)).sample
        assert isinstance(picture, torch.Tensor)
        return picture
