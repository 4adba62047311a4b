"""The classes of the library diffusers that may be built, how each is called, and their construction from plain arguments.

The library is imported when a network is built.
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

__all__ = ["NETWORKS", "REFUSED", "Call", "create_network", "fill_arguments"]


class Call(NamedTuple):
    """How a class of networks is called.

    Attributes:
        images: name of the argument with x.
        rows: argument of the constructor with the number of rows of its class table; None = it takes no classes.
        null_row: whether the table has one row more than `rows` says, for no class.
        tokens: argument of the constructor with the length of the vectors of a condition; None = it takes none.
        mask: argument of a call with 1 for a vector of a condition and 0 for padding; None = it has none.
        fixed: further arguments of a call.
    """

    images: str = "hidden_states"
    rows: str | None = None
    null_row: bool = False
    tokens: str | None = None
    mask: str | None = None
    fixed: Mapping[str, Any] = {}


NETWORKS = {
    "AuraFlowTransformer2DModel": Call(tokens="joint_attention_dim"),
    "DiTTransformer2DModel": Call(rows="num_embeds_ada_norm", null_row=True),
    "PixArtTransformer2DModel": Call(
        tokens="caption_channels",
        mask="encoder_attention_mask",
        fixed={"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "SanaTransformer2DModel": Call(tokens="caption_channels", mask="encoder_attention_mask"),
    "UNet2DConditionModel": Call(images="sample", tokens="cross_attention_dim", mask="encoder_attention_mask"),
    "UNet2DModel": Call(images="sample", rows="num_class_embeds"),
}
REFUSED = {  # arguments that would need inputs which a backbone does not get: name -> what they need
    "addition_embed_type": "a second text embedding",
    "class_embed_type": "class labels that are no indices",
    "encoder_hid_dim_type": "image embeddings",
    "num_class_embeds": "class labels beside its condition",
    "time_cond_proj_dim": "the guidance scale as an input",
    "guidance_embeds": "the guidance scale as an input",
    "use_additional_conditions": "the size of the picture as an input",
}


def fill_arguments(network: str, arguments: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the facts of the data; raises ValueError where they differ, and for unknown arguments."""
    known = inspect.signature(import_network(network).__init__).parameters
    for name in arguments:
        if name not in known:
            raise ValueError(f"arguments.{name} is not an argument of {network}")
    filled = dict(arguments)
    for name, value in facts.items():
        if value is None or name not in known:
            continue
        if filled.get(name) not in (None, value, [value, value]):
            raise ValueError(f"arguments.{name} is {filled[name]}, but the data need {value}")
        filled.setdefault(name, value)
        filled[name] = value if filled[name] is None else filled[name]
    return filled


def import_network(name: str) -> Any:
    """The class in diffusers; raises ValueError where it is not installed or too old."""
    try:
        import diffusers

        return getattr(diffusers, name)
    except ImportError:
        raise ValueError("networks of diffusers need it: pip install 'diffguide[diffusers]'") from None
    except AttributeError:
        raise ValueError(f"this version of diffusers has no {name}: pip install -U diffusers") from None


def create_network(name: str, arguments: Mapping[str, Any]) -> Any:
    """The network, with random weights; raises ValueError for arguments that it does not take."""
    try:
        network = import_network(name)(**arguments)
    except ValueError:
        raise
    except Exception as error:  # a constructor may raise anything for values that do not fit
        raise ValueError(f"{name} cannot be built from these arguments: {error}") from error
    if torch.empty(0).is_meta:
        network = network.to("meta")  # some constructors make tables on the CPU
    return network
