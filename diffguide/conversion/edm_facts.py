"""What the tensors and the stored arguments of EDM's and EDM2's networks tell.

The arguments are `net.init_kwargs` of the program that trained them, as JSON in the header of the file.
"""

import json
import math
import re
from collections.abc import Collection
from typing import Any, NamedTuple

import torch

from ..runtime.ranges import check_range
from .nodes import denoising
from .weights import ConversionError, PublishedWeights

__all__ = [
    "RANGES",
    "Levels",
    "common_width",
    "edm_nodes",
    "multiple",
    "read_arguments",
    "read_filter",
    "read_levels",
]

READ_OFF = (  # arguments that the tensors tell, or that sampling does not use
    "img_resolution", "img_channels", "in_channels", "out_channels", "label_dim", "augment_dim", "model_type",
    "model_channels", "channel_mult", "channel_mult_emb", "channel_mult_noise", "num_blocks", "attn_resolutions",
    "embedding_type", "encoder_type", "decoder_type", "use_fp16", "sigma_min", "sigma_max", "logvar_channels",
)  # fmt: skip

RANGES = {"sigma_data": "(0, inf)", "label_dropout": "[0, 1]", "dropout": "[0, 1)"}


def read_arguments(weights: PublishedWeights, class_name: str, used: Collection[str]) -> dict[str, Any]:
    """The arguments in the metadata `init_kwargs`, if any.

    Arguments:
        class_name: the only valid metadata of this name: the class that scales the input and the output of the network.
        used: names that the caller interprets.

    Raises:
        ConversionError: another class, no JSON mapping, or an argument that may change the network in an unknown way.
    """
    found_class = weights.metadata.get("class_name", class_name)
    if found_class != class_name:
        raise ConversionError(f"its metadata class_name is {found_class[:60]!r}, and only {class_name} is supported")
    text = weights.metadata.get("init_kwargs")
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"its metadata init_kwargs is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConversionError(f"its metadata init_kwargs must be a JSON mapping, got {text[:60]!r}")
    if unknown := sorted(found.keys() - {*READ_OFF, *used}):
        raise ConversionError(f"its metadata init_kwargs has {unknown[0]!r}, which {weights.family} does not have")
    for name in RANGES.keys() & found.keys():
        try:
            check_range(name, found[name], RANGES[name])
        except (ValueError, TypeError) as error:
            raise ConversionError(f"its metadata init_kwargs is invalid: {error}") from error
    return {name: found[name] for name in used if name in found}


class Levels(NamedTuple):
    """The levels of a U-Net, finest first.

    Attributes:
        sides: pixels.
        widths: channels.
        blocks: residual blocks of each level on the way down.
        attention: sides with attention.
    """

    sides: list[int]
    widths: list[int]
    blocks: list[int]
    attention: list[int]


def read_levels(weights: PublishedWeights, prefix: str, last: str, attention: str) -> Levels:
    """The levels by the names {prefix}enc.{side}x{side}_block{index}.

    Arguments:
        last, attention: a layer of a block with its width, and one that blocks with attention have.

    Raises:
        ConversionError: no such names, or sides that are not halved from level to level.
    """
    found: dict[int, int] = {}  # number of blocks by side
    pattern = re.compile(re.escape(prefix) + r"enc\.(\d{1,5})x\1_block(\d{1,3})\.")
    for match in filter(None, map(pattern.match, weights)):
        side, index = map(int, match.groups())
        found[side] = max(found.get(side, 0), index + 1)
    sides = sorted(found, reverse=True)
    if not sides or any(side << level != sides[0] for level, side in enumerate(sides)):
        raise ConversionError(
            f"its tensors {prefix}enc.<side>x<side>_block<i>... have the sides {sides}, and {weights.family} needs one at "
            "least, each half of the one before; choose another architecture"
        )
    blocks = {side: f"{prefix}enc.{side}x{side}_block0" for side in sides}
    return Levels(
        sides=sides,
        widths=[weights.shape(f"{blocks[side]}.{last}.weight", 4)[0] for side in sides],
        blocks=[found[side] for side in sides],
        attention=[side for side in sides if f"{blocks[side]}.{attention}.weight" in weights],
    )


def read_filter(weights: PublishedWeights) -> list[float] | None:
    """The taps of the stored resampling filters f f^T / (sum f)^2, whole numbers where they can be; None = none is stored.

    Raises:
        ConversionError: filters that differ or are no such product.
    """
    names = sorted(name for name in weights if name.endswith(".resample_filter"))
    weights.skip(*names)
    if not names:
        return None
    first = weights.tensors[names[0]].double()
    rows = first.reshape(first.shape[-2:]).sum(1) if first.ndim == 4 and first[0].numel() == first.numel() else first
    for name in names:
        value = weights.tensors[name].double()
        same = rows.ndim == 1 and value.shape == (1, 1, len(rows), len(rows))
        if not same or not torch.allclose(value[0, 0], torch.outer(rows, rows), atol=1e-4):
            raise ConversionError(f"{name} is not the product of one filter along both axes, the same as in {names[0]}")
    taps = [float(value) for value in rows / rows.abs().min()]
    return [round(tap) if abs(tap - round(tap)) < 1e-3 else tap for tap in taps]


def multiple(name: str, width: int, channels: int) -> int:
    """width / channels; raises ConversionError unless it is whole."""
    if width % channels:
        raise ConversionError(f"{name} has {width} features, which is no multiple of the {channels} channels")
    return width // channels


def common_width(*widths: int) -> int:
    """The largest number of which all widths are multiples."""
    return math.gcd(*widths)


def edm_nodes(sigma_data: float, mean: float, std: float, label_dropout: float) -> dict[str, dict[str, Any]]:
    """Schedule and objective of EDM.

    Arguments:
        mean, std: of ln(sigma) in training.
    """
    schedule = {
        "_target_": "diffguide.schedules.sde.EDM",
        "log_snr_max": -2 * math.log(0.002),
        "log_snr_min": -2 * math.log(80),
        "rho": 7.0,
    }
    objective = denoising("EDM", label_dropout)
    objective["parameterization"]["sigma_data"] = sigma_data
    objective["levels"] = {"_target_": "diffguide.objectives.levels.LogNormal", "mean": mean, "std": std}
    return {"schedule": schedule, "objective": objective}
