"""Networks: backbone(x, log_snr, y) -> F."""

from .base import Backbone
from .conditions import Embedding
from .convnet import ConvNet
from .dit import DiT
from .encoder import UNetEncoder
from .joint import UNetJoint
from .levels import UNetLevels
from .mlp import MLP
from .unet import UNet

__all__ = ["Backbone", "ConvNet", "DiT", "Embedding", "MLP", "UNet", "UNetEncoder", "UNetJoint", "UNetLevels"]
