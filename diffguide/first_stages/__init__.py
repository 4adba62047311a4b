"""First stages: autoencoders between pictures and the latents in which a diffusion model works."""

from .autoencoder import Autoencoder, AutoencoderNetwork
from .base import FirstStage, Posterior
from .diffusers_autoencoder import DiffusersAutoencoder
from .small_kl import SmallKL

__all__ = ["Autoencoder", "AutoencoderNetwork", "DiffusersAutoencoder", "FirstStage", "Posterior", "SmallKL"]
