"""Networks: backbone(x, log_snr, y) -> F."""

from .base import Backbone
from .conditions import ClassEmbedding, Condition, Embedding
from .convnet import ConvNet
from .dit import DiT
from .encoder import UNetEncoder
from .joint import UNetJoint
from .levels import UNetLevels
from .mlp import MLP
from .perturbations import BlurredQueries, IdentityAttention, Perturbation, SkippedBlocks
from .unet import UNet

__all__ = [
    "MLP", "Backbone", "BlurredQueries", "ClassEmbedding", "Condition", "ConvNet", "DiT", "Embedding", "IdentityAttention",
    "Perturbation", "SkippedBlocks", "UNet", "UNetEncoder", "UNetJoint", "UNetLevels",
]  # fmt: skip
