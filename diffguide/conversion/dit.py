"""DiT and SiT: diffusion transformers on latents.

Peebles & Xie, "Scalable Diffusion Models with Transformers", 2022, arXiv 2212.09748; Ma et al., "SiT: Exploring Flow and
Diffusion-based Generative Models with Scalable Interpolant Transformers", 2024, arXiv 2401.08740.
"""

from typing import Any

import torch
from torch import Tensor

from ..backbones.dit import position_encoding
from ..runtime.ranges import check_whole
from .architecture import Architecture, Network
from .layers import Layers
from .nodes import denoising, discrete_features, discrete_schedule, image_folder, timestep_features
from .weights import ConversionError, PublishedWeights

__all__ = ["DiT", "SiT"]

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # width: heads of the published S, B, L, XL
LABEL_DROPOUT = 0.1  # of the published training


class DiT(Architecture):
    """Transformers that predict the noise of latents, with learned variance; betas linear.

    Sizes, classes and the null condition are read from the tensors.

    Arguments:
        heads: attention heads; None = those of the published width.
        null_class: whether the last row of the class table is the null condition, as in all published models.
        steps: number of betas.
    """

    family = "DiT"

    def __init__(self, heads: int | None = None, null_class: bool = True, steps: int = 1000):
        self.heads = None if heads is None else check_whole("heads", heads, 1)
        self.null_class, self.steps = null_class, check_whole("steps", steps, 2)

    def convert(self, weights: PublishedWeights) -> Network:
        layers = DiTLayers(weights, self.heads, self.null_class)
        outputs = layers.outputs
        if outputs not in (layers.channels, 2 * layers.channels):
            raise ConversionError(
                f"final_layer.linear.weight has {outputs} outputs per value of a patch, and the latents have "
                f"{layers.channels} channels"
            )
        layers.take_all()
        schedule = discrete_schedule(False, self.steps)
        features = discrete_features(schedule, self.steps, layers.features)
        backbone = layers.describe() | {"noise_features": features, "learned_variance": outputs != layers.channels}
        return layers.network(backbone, schedule, "Eps")


class SiT(Architecture):
    """Transformers that predict the velocity x_0 - eps of latents; their time runs from noise to data.

    Our velocity is eps - x_0, so the last layer changes its sign. Where it has twice the channels of the latents, the second
    half is unused and left out.

    Arguments:
        heads, null_class: as for `DiT`.
    """

    family = "SiT"

    def __init__(self, heads: int | None = None, null_class: bool = True):
        self.heads = None if heads is None else check_whole("heads", heads, 1)
        self.null_class = null_class

    def convert(self, weights: PublishedWeights) -> Network:
        layers = DiTLayers(weights, self.heads, self.null_class)
        layers.take_all()
        for name in ("linear_out.weight", "linear_out.bias"):
            rows = layers.tensors[name].unflatten(0, (-1, layers.outputs))[:, : layers.channels]
            layers.tensors[name] = -rows.flatten(0, 1)
        schedule = {"_target_": "diffguide.schedules.curves.Flow", "log_snr_max": 12.0, "log_snr_min": -12.0}
        times = {"_target_": "diffguide.backbones.timesteps.FlowTimesteps", "scale": 1.0, "from_noise": True}
        features = timestep_features(times, layers.features)
        backbone = layers.describe() | {"noise_features": features, "learned_variance": False}
        return layers.network(backbone, schedule, "Flow")


class DiTLayers(Layers):
    """The layers that DiT and SiT share, and what their tensors tell.

    Arguments:
        weights: of the file.
        heads: attention heads; None = those of the published width.
        null_class: whether the last row of the class table is the null condition.

    Attributes:
        width, channels, patch, depth, hidden, side, classes: as in `backbones.DiT`; side in patches.
        features: number of features of the timestep.
        outputs: channels of the last layer.
    """

    def __init__(self, weights: PublishedWeights, heads: int | None, null_class: bool):
        super().__init__(weights)
        self.width, self.channels, self.patch, _ = weights.shape("x_embedder.proj.weight", 4)
        self.features = weights.shape("t_embedder.mlp.0.weight", 2)[1]
        self.hidden = weights.shape("blocks.0.mlp.fc1.weight", 2)[0]
        self.outputs = weights.shape("final_layer.linear.weight", 2)[0] // self.patch**2
        self.depth, self.null_class = weights.count("blocks"), null_class
        patches = weights.shape("pos_embed", 3)[1]
        self.side, self.heads = round(patches**0.5), heads or HEADS.get(self.width, 0)
        if not self.heads or self.width % self.heads or self.width % 4:
            raise ConversionError(
                f"x_embedder.proj.weight has width {self.width}, which no published model has; set architecture.heads"
                if not heads
                else f"x_embedder.proj.weight has width {self.width}, which {heads} heads do not divide; set architecture.heads"
            )
        table = weights.shape("y_embedder.embedding_table.weight", 2)[0] if self.has_classes else 0
        self.classes = table - 1 if table and null_class else table
        self.size = self.side * self.patch

    @property
    def has_classes(self) -> bool:
        return "y_embedder.embedding_table.weight" in self.weights

    def take_all(self) -> None:
        """All layers."""
        width, weights = self.width, self.weights
        self.check_positions(weights.take("pos_embed", 1, self.side**2, width)[0])
        self.take("x_embedder.proj", "patches", width, self.channels, self.patch, self.patch)
        self.take("t_embedder.mlp.0", "embedding.noise.0", width, self.features)
        self.take("t_embedder.mlp.2", "embedding.noise.2", width, width)
        if self.has_classes:
            rows = weights.take("y_embedder.embedding_table.weight", self.classes + self.null_class, width)
            null = rows[-1:] if self.null_class else torch.zeros(1, width)
            self.tensors["embedding.classes.weight"] = torch.cat([null, rows[: self.classes]])
        for number in range(self.depth):
            theirs = ours = f"blocks.{number}"
            self.take(f"{theirs}.attn.qkv", f"{ours}.qkv", 3 * width, width)
            self.take(f"{theirs}.attn.proj", f"{ours}.projection", width, width)
            self.take(f"{theirs}.mlp.fc1", f"{ours}.mlp.0", self.hidden, width)
            self.take(f"{theirs}.mlp.fc2", f"{ours}.mlp.2", width, self.hidden)
            self.take(f"{theirs}.adaLN_modulation.1", f"{ours}.modulation", 6 * width, width)
        self.take("final_layer.adaLN_modulation.1", "modulation_out", 2 * width, width)
        self.take("final_layer.linear", "linear_out", self.patch**2 * self.outputs, width)

    def check_positions(self, positions: Tensor) -> None:
        """Raises ConversionError for other positions [N, width] than ours, which are sines and cosines and no parameters."""
        if not torch.allclose(positions, position_encoding(self.side, self.width), atol=1e-4):
            raise ConversionError(
                "pos_embed is not the fixed sines and cosines of DiT, which are all that our network has"
            )

    def describe(self) -> dict[str, Any]:
        """The node of the backbone, without its features of the timestep."""
        return {
            "_target_": "diffguide.backbones.dit.DiT",
            "in_channels": self.channels,
            "num_classes": self.classes,
            "size": self.size,
            "patch": self.patch,
            "width": self.width,
            "depth": self.depth,
            "heads": self.heads,
            "mlp_ratio": self.hidden / self.width,
            "dropout": 0.0,
        }

    def network(self, backbone: dict[str, Any], schedule: dict[str, Any], parameterization: str) -> Network:
        """The network with these nodes."""
        p_uncond = LABEL_DROPOUT if self.has_classes and self.null_class else 0.0
        return Network(
            dataset=image_folder(self.channels, self.size, self.classes),
            backbone=backbone,
            schedule=schedule,
            objective=denoising(parameterization, p_uncond),
            tensors=self.tensors,
            shape=[self.channels, self.size, self.size],
            classes=self.classes,
        )
