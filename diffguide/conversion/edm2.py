"""EDM2: magnitude-preserving U-Nets on latents or images.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2023, arXiv 2312.02696; the tensor names
of its program, whose files are pickles that run code: edm.md says how a file of tensors is made of them.
"""

import math
from typing import Any

from ..backbones.edm2 import EDM2UNet
from ..runtime.ranges import check_range, check_whole
from .architecture import Architecture, Network
from .edm_facts import RANGES, common_width, edm_nodes, multiple, read_arguments, read_levels
from .layers import take_network
from .nodes import image_folder
from .weights import ConversionError, PublishedWeights

__all__ = ["EDM2"]

PUBLISHED = {  # arguments that the tensors do not tell, and ours
    "channels_per_head": ("head_channels", 64),
    "label_balance": ("label_balance", 0.5),
    "concat_balance": ("skip_balance", 0.5),
    "res_balance": ("residual_balance", 0.3),
    "attn_balance": ("attention_balance", 0.3),
    "resample_filter": ("resample_filter", [1, 1]),
    "clip_act": ("clip", 256.0),
    "dropout": ("dropout", 0.0),
}


class EDM2(Architecture):
    """Networks of EDM2 and of autoguidance (arXiv 2406.02507); they become `EDM2UNet`.

    Sides, widths, blocks, attention and classes are read from the tensors. The head for the uncertainty of the loss is left
    out. An argument that is None, and all others of the network, are those of the file's metadata `init_kwargs`, or the
    published ones.

    Arguments:
        sigma_data: standard deviation of the data; 0.5.
        head_channels: channels per attention head; 64.
        label_dropout: probability with which training dropped the label; 0: the published networks have no null condition,
            their classifier-free guidance takes a second network without classes (guidance=autoguidance).
    """

    family = "EDM2"

    def __init__(self, sigma_data: float | None = None, head_channels: int | None = None, label_dropout: float = 0.0):
        self.sigma_data = None if sigma_data is None else check_range("sigma_data", sigma_data, RANGES["sigma_data"])
        self.head_channels = None if head_channels is None else check_whole("head_channels", head_channels, 1)
        self.label_dropout = check_range("label_dropout", label_dropout, RANGES["label_dropout"])

    def convert(self, weights: PublishedWeights) -> Network:
        found = {"sigma_data": 0.5} | read_arguments(weights, "Precond", ("sigma_data", *PUBLISHED))
        sigma_data = found["sigma_data"] if self.sigma_data is None else self.sigma_data
        prefix = "unet." if any(name.startswith("unet.") for name in weights) else ""
        node = describe(weights, prefix)
        node |= {ours: found.get(theirs, default) for theirs, (ours, default) in PUBLISHED.items()}
        node["clip"] = math.inf if node["clip"] is None else node["clip"]
        if self.head_channels is not None:
            node["head_channels"] = self.head_channels
        head = [name for name in weights if name.startswith("logvar_")]
        weights.skip(*head)
        classes, shape = node["num_classes"], [node["in_channels"], node["size"], node["size"]]
        return Network(
            dataset=image_folder(shape[0], shape[1], classes),
            backbone=node,
            **edm_nodes(sigma_data, -0.4, 1.0, self.label_dropout if classes else 0.0),
            tensors=take_network(weights, EDM2UNet, node, prefix, "emb_"),
            shape=shape,
            classes=classes,
            notes=["the head for the uncertainty of the loss is left out: sampling does not use it"] if head else [],
        )


def describe(weights: PublishedWeights, prefix: str) -> dict[str, Any]:
    """The arguments of `EDM2UNet` that the tensors tell."""
    levels = read_levels(weights, prefix, "conv_res1", "attn_qkv")
    features, noise = weights.shape(f"{prefix}emb_noise.weight", 2)
    channels = common_width(*levels.widths, features, noise)
    size, label = levels.sides[0], f"{prefix}emb_label.weight"
    inputs = weights.shape(f"{prefix}enc.{size}x{size}_conv.weight", 4)[1]
    if inputs < 2:
        raise ConversionError(
            f"{prefix}enc.{size}x{size}_conv.weight has {inputs} input, and one is the channel of ones"
        )
    return {
        "_target_": "diffguide.backbones.edm2.EDM2UNet",
        "in_channels": inputs - 1,
        "num_classes": weights.shape(label, 2)[1] if label in weights else 0,
        "size": size,
        "channels": channels,
        "multipliers": [multiple("a level", width, channels) for width in levels.widths],
        "blocks": levels.blocks,
        "attention": levels.attention,
        "noise_multiplier": noise // channels,
        "embedding_multiplier": features // channels,
    }
