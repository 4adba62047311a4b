"""EDM: the U-Nets DDPM++, NCSN++ and ADM with EDM's preconditioning.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, arXiv 2206.00364; the tensor names
of its program, whose files are pickles that run code: edm.md says how a file of tensors is made of them.
"""

import math
from typing import Any

from torch import Tensor

from ..backbones.edm import EDMUNet
from ..runtime.ranges import check_range
from .architecture import Architecture, Network
from .edm_adm import order_rows, take_adm
from .edm_facts import RANGES, edm_nodes, multiple, read_arguments, read_filter, read_levels
from .layers import take_network
from .nodes import image_folder
from .weights import ConversionError, PublishedWeights

__all__ = ["EDM"]

BASE = "diffguide.backbones"
USED = ("sigma_data", "label_dropout", "dropout", "resample_filter")


class EDM(Architecture):
    """Networks of EDM; DDPM++ and NCSN++ become `EDMUNet`, ADM becomes `UNet`.

    Sides, widths, blocks, attention, classes, kind and filter are read from the tensors. The inputs for augmentation, which
    are 0 in sampling, are left out. An argument that is None is that of the file's metadata `init_kwargs`, or the published.

    Arguments:
        sigma_data: standard deviation of the data; 0.5.
        label_dropout: probability with which training dropped the label; 0: without it there is no null condition.
        dropout: of training, in [0, 1); sampling does not use it; 0.1.
    """

    family = "EDM"

    def __init__(
        self, sigma_data: float | None = None, label_dropout: float | None = None, dropout: float | None = None
    ):
        given = {"sigma_data": sigma_data, "label_dropout": label_dropout, "dropout": dropout}
        self.given = {
            name: check_range(name, value, RANGES[name]) for name, value in given.items() if value is not None
        }

    def convert(self, weights: PublishedWeights) -> Network:
        facts = {"sigma_data": 0.5, "label_dropout": 0.0, "dropout": 0.1} | read_arguments(weights, "EDMPrecond", USED)
        facts |= self.given
        prefix = "model." if any(name.startswith("model.") for name in weights) else ""
        levels = read_levels(weights, prefix, "conv1", "qkv")
        size, label = levels.sides[0], f"{prefix}map_label.weight"
        classes = weights.shape(label, 2)[1] if label in weights else 0
        in_channels = weights.shape(f"{prefix}enc.{size}x{size}_conv.weight", 4)[1]
        shared = {
            "in_channels": in_channels,
            "num_classes": classes,
            "size": size,
            "attention": levels.attention,
            "dropout": facts["dropout"],
        }
        taps = read_filter(weights)
        if f"{prefix}out_conv.weight" in weights:
            backbone, tensors = take_adm(weights, prefix, levels, shared)
        else:
            backbone = describe_song(weights, prefix, levels) | shared
            backbone["resample_filter"] = taps or facts.get("resample_filter", [1, 1])
            tensors = take_song(weights, prefix, backbone)
        notes = []
        if f"{prefix}map_augment.weight" in weights:
            weights.skip(f"{prefix}map_augment.weight")
            notes.append("the inputs for augmentation are left out: they are 0 in sampling")
        return Network(
            dataset=image_folder(in_channels, size, classes),
            backbone=backbone,
            **edm_nodes(facts["sigma_data"], -1.2, 1.2, facts["label_dropout"] if classes else 0.0),
            tensors=tensors,
            shape=[in_channels, size, size],
            classes=classes,
            notes=notes,
        )


def describe_song(weights: PublishedWeights, prefix: str, levels: Any) -> dict[str, Any]:
    """The arguments of `EDMUNet` that the tensors tell."""
    channels = weights.shape(f"{prefix}enc.{levels.sides[0]}x{levels.sides[0]}_conv.weight", 4)[0]
    features, noise = weights.shape(f"{prefix}map_layer0.weight", 2)
    kinds = {kind for kind in ("skip", "residual") if any(f"_aux_{kind}." in name for name in weights)}
    outputs = sum(name.startswith(f"{prefix}dec.") and name.endswith("_aux_conv.weight") for name in weights)
    if len(kinds) > 1:
        raise ConversionError("it has both aux_skip and aux_residual layers, which no network of EDM has")
    return {
        "_target_": f"{BASE}.edm.EDMUNet",
        "channels": channels,
        "multipliers": [multiple("a level", width, channels) for width in levels.widths],
        "blocks": levels.blocks,
        "noise_features": "fourier" if f"{prefix}map_noise.freqs" in weights else "positional",
        "noise_multiplier": multiple("map_noise", noise, channels),
        "embedding_multiplier": multiple("map_layer0", features, channels),
        "encoder": kinds.pop() if kinds else "standard",
        "decoder": "skip" if outputs > 1 else "standard",
    }


def take_song(weights: PublishedWeights, prefix: str, node: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of `EDMUNet`, which differ in the names and labels of the embedding and in the rows of qkv, see there."""
    tensors = take_network(weights, EDMUNet, node, prefix, "map_")
    for name, value in tensors.items():
        if ".qkv." in name:
            tensors[name] = order_rows(value, 1)
        elif name == "embedding.label.weight":
            tensors[name] = value * math.sqrt(value.shape[1])
    return tensors
