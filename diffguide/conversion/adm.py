"""ADM and improved diffusion: U-Nets, and classifiers of noisy images, of the programs guided-diffusion and improved-diffusion.

Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv 2105.05233; Nichol & Dhariwal, "Improved
Denoising Diffusion Probabilistic Models", 2021, arXiv 2102.09672.
"""

from typing import Any

import torch

from ..runtime.ranges import check_range, check_whole
from .adm_layers import ADMLayers
from .architecture import Architecture, Network
from .nodes import denoising, discrete_features, discrete_schedule, image_folder
from .weights import ConversionError, PublishedWeights

__all__ = ["ADM", "ADMClassifier"]

UPSAMPLED = (2, 6)  # channels of an image and of the smaller image that an upsampler takes beside it
GROUPS = 32  # of every group normalisation


class ADM(Architecture):
    """U-Nets that predict the noise, class-conditional or not, with or without learned variance.

    Widths, blocks, sides with attention, classes, learned variance, scale and shift, and how the side changes are read from
    the tensors.

    Arguments:
        size: side of the images, pixels.
        heads: number of attention heads; None = by head_channels.
        head_channels: channels per attention head.
        new_attention_order: the option of this name: the rows of qkv are q, k, v of all heads.
        cosine: whether the betas are cosine; else linear.
        steps: number of betas.
        rescale_timesteps: the option of this name: the timestep is 1000 / steps times the index of the level, not the index.
        dropout: of training, in [0, 1); sampling does not use it.
    """

    family = "ADM"

    def __init__(
        self,
        size: int = 64,
        heads: int | None = None,
        head_channels: int = 64,
        new_attention_order: bool = False,
        cosine: bool = False,
        steps: int = 1000,
        rescale_timesteps: bool = True,
        dropout: float = 0.0,
    ):
        self.size, self.head_channels = check_whole("size", size, 1), check_whole("head_channels", head_channels, 1)
        self.heads = None if heads is None else check_whole("heads", heads, 1)
        self.new_attention_order, self.cosine, self.rescale_timesteps = new_attention_order, cosine, rescale_timesteps
        self.steps, self.dropout = check_whole("steps", steps, 2), check_range("dropout", dropout, "[0, 1)")

    def convert(self, weights: PublishedWeights) -> Network:
        layers = ADMLayers(weights, self.heads, self.head_channels, self.new_attention_order)
        blocks = count_blocks(weights)
        widths = read_widths(layers, blocks, weights.count("output_blocks") // (blocks + 1))
        in_channels = weights.shape("input_blocks.0.0.weight", 4)[1]
        outputs = weights.shape("out.2.weight", 4)[0]
        if in_channels in UPSAMPLED:
            raise ConversionError(
                f"input_blocks.0.0.weight takes {in_channels} channels: it is an upsampler, which also takes a smaller image; "
                "only networks that take images alone can be converted"
            )
        if outputs not in (in_channels, 2 * in_channels):
            raise ConversionError(f"out.2.weight has {outputs} outputs, and the images have {in_channels} channels")
        classes = weights.shape("label_emb.weight", 2)[0] if "label_emb.weight" in weights else 0
        layers.take_embedding()
        if classes:
            rows = weights.take("label_emb.weight", classes, layers.embedding)
            layers.tensors["embedding.classes.weight"] = torch.cat([torch.zeros(1, layers.embedding), rows])
        skips = layers.take_down(widths, blocks, in_channels)
        layers.take_middle(widths[-1])
        layers.take_up(widths, blocks, skips)
        layers.take("out.0", "norm_out", widths[0])
        layers.take("out.2", "conv_out", outputs, widths[0], 3, 3)
        backbone = {
            "_target_": "diffguide.backbones.unet.UNet",
            "in_channels": in_channels,
            "num_classes": classes,
            **describe_blocks(self, layers, blocks, widths),
            "learned_variance": outputs != in_channels,
            "heads": self.heads,
            "middle_attention": True,
        }
        return Network(
            dataset=image_folder(in_channels, self.size, classes),
            backbone=backbone,
            schedule=discrete_schedule(self.cosine, self.steps),
            objective=denoising("Eps", 0.0),
            tensors=layers.tensors,
            shape=[in_channels, self.size, self.size],
            classes=classes,
        )


class ADMClassifier(Architecture):
    """Classifiers of noisy images: the encoder half of the U-Net with attention pooling.

    Arguments:
        size: side of the images, pixels.
        head_channels: channels per attention head, of the blocks and of the pooling.
        new_attention_order, cosine, steps, rescale_timesteps, dropout: as for `ADM`.
    """

    family = "ADM's classifier"

    def __init__(
        self,
        size: int = 64,
        head_channels: int = 64,
        new_attention_order: bool = False,
        cosine: bool = True,
        steps: int = 1000,
        rescale_timesteps: bool = True,
        dropout: float = 0.0,
    ):
        self.size, self.head_channels = check_whole("size", size, 1), check_whole("head_channels", head_channels, 1)
        self.new_attention_order, self.cosine, self.rescale_timesteps = new_attention_order, cosine, rescale_timesteps
        self.steps, self.dropout = check_whole("steps", steps, 2), check_range("dropout", dropout, "[0, 1)")

    def convert(self, weights: PublishedWeights) -> Network:
        layers = ADMLayers(weights, None, self.head_channels, self.new_attention_order)
        levels = count_levels(weights, self.size)
        blocks = weights.count("input_blocks") // levels - 1
        widths = read_widths(layers, blocks, levels)
        in_channels = weights.shape("input_blocks.0.0.weight", 4)[1]
        classes = weights.shape("out.2.c_proj.weight", 3)[0]
        layers.take_embedding()
        layers.take_down(widths, blocks, in_channels)
        layers.take_middle(widths[-1])
        layers.take("out.0", "norm_out", widths[-1])
        take_pooling(layers, widths[-1], (self.size >> (levels - 1)) ** 2 + 1, classes)
        backbone = {
            "_target_": "diffguide.backbones.encoder.UNetEncoder",
            "in_channels": in_channels,
            "out_features": classes,
            **describe_blocks(self, layers, blocks, widths),
            "middle": True,
        }
        levels_node = {"_target_": "diffguide.objectives.levels.UniformTime", "stratified": True}
        return Network(
            dataset=image_folder(in_channels, self.size, classes),
            backbone=backbone,
            schedule=discrete_schedule(self.cosine, self.steps),
            objective={"_target_": "diffguide.objectives.classifier.ClassifierObjective", "levels": levels_node},
            tensors=layers.tensors,
            shape=[in_channels, self.size, self.size],
            classes=classes,
        )


def take_pooling(layers: ADMLayers, width: int, tokens: int, classes: int) -> None:
    """The attention pooling: one convolution over the tokens for query, key and value is two linear layers of ours."""
    layers.tensors["pooling.position"] = layers.weights.take("out.2.positional_embedding", width, tokens).T.contiguous()
    layers.take("out.2.qkv_proj", "pooling.qkv", 3 * width, width)
    for kind in ("weight", "bias"):
        rows = layers.tensors.pop(f"pooling.qkv.{kind}")
        layers.tensors[f"pooling.query.{kind}"], layers.tensors[f"pooling.key_value.{kind}"] = (
            part.contiguous() for part in rows.split([width, 2 * width])
        )
    layers.take("out.2.c_proj", "pooling.linear", classes, width)


def count_blocks(weights: PublishedWeights) -> int:
    """The number of residual blocks per level: the first of the output blocks that doubles the side is the last of a level."""
    total = weights.count("output_blocks")
    for number in range(total):
        parts = [f"output_blocks.{number}.{part}" for part in (1, 2)]
        if any(f"{part}.{name}.weight" in weights for part in parts for name in ("conv", "in_layers.0")):
            if number and total % (number + 1) == 0:
                return number
            raise ConversionError(f"it has {total} output_blocks, not the same number of {number + 1} at every side")
    if total < 2:
        weights.shape("output_blocks.0.0.in_layers.0.weight", 1)
    return total - 1


def count_levels(weights: PublishedWeights, size: int) -> int:
    """The number of sides of a classifier, from the side of the images and the number of positions of its pooling.

    Raises:
        ConversionError: another side of the images than the tensors fit.
    """
    tokens, total = weights.shape("out.2.positional_embedding", 2)[1], weights.count("input_blocks")
    coarsest = round((tokens - 1) ** 0.5)
    levels = (size // max(coarsest, 1)).bit_length()
    if coarsest**2 + 1 != tokens or coarsest << (levels - 1) != size or total % levels or total // levels < 2:
        raise ConversionError(
            f"out.2.positional_embedding has {tokens} positions and there are {total} input_blocks, which no network for "
            f"images of side {size} has; set architecture.size to the side of the images"
        )
    return levels


def read_widths(layers: ADMLayers, blocks: int, levels: int) -> list[int]:
    """The width of every level, finest first."""
    return [layers.width(f"input_blocks.{1 + level * (blocks + 1)}.0") for level in range(levels)]


def describe_blocks(family: ADM | ADMClassifier, layers: ADMLayers, blocks: int, widths: list[int]) -> dict[str, Any]:
    """The arguments that U-Net and encoder share."""
    firsts = [1 + level * (blocks + 1) for level in range(len(widths))]
    sides = [family.size >> level for level in range(len(widths))]
    schedule = discrete_schedule(family.cosine, family.steps)
    return {
        "size": family.size,
        "channels": layers.channels,
        "multipliers": [layers.multiplier(width) for width in widths],
        "blocks": blocks,
        "attention": [
            side for side, first in zip(sides, firsts) if f"input_blocks.{first}.1.qkv.weight" in layers.weights
        ],
        "head_channels": family.head_channels,
        "dropout": family.dropout,
        "noise_features": discrete_features(schedule, family.steps, layers.channels, family.rescale_timesteps),
        "groups": GROUPS,
        "scale_shift": layers.scale_shift,
        "residual_resampling": not any(name.endswith(".0.op.weight") for name in layers.weights),
    }
