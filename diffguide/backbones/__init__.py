"""Networks: backbone(x, log_snr, y) -> F."""

from .base import Backbone
from .mlp import MLP
from .unet import UNet

__all__ = ["Backbone", "MLP", "UNet"]
