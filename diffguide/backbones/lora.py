"""A trained network with low-rank adapters, which train in its place.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv 2106.09685. The layers are those of the library
peft, which is imported when such a network is built.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.ranges import check_range, check_whole
from .base import Backbone
from .conditions import Condition, Embedding
from .diffusers_network import DiffusersNetwork
from .perturbations import Perturbation

__all__ = ["LoRA", "adapted_network", "merge_adapters"]

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "qkv", "projection")  # of attention, in diffusers' networks and in ours
MAX_NAMES = 12  # in a message


class LoRA(Backbone):
    """Layers W x + b become W x + b + alpha / rank B A dropout(x), where only A and B train; B starts at 0.

    Arguments:
        network: whose weights stay.
        rank: rows of A and columns of B.
        alpha: factor, positive.
        dropout: probability in [0, 1).
        targets: ends of the names of the linear and convolutional layers that are changed.
        trains_classes: whether the tables of classes train too.

    Raises:
        ValueError: peft is not installed, an argument out of range, targets that match no layer, or no table of classes.
    """

    def __init__(
        self,
        network: Backbone,
        rank: int = 8,
        alpha: float = 8.0,
        dropout: float = 0.0,
        targets: Sequence[str] = TARGETS,
        trains_classes: bool = False,
    ):
        super().__init__()
        check_whole("rank", rank, 1)
        check_range("alpha", alpha, "(0, inf)")
        check_range("dropout", dropout, "[0, 1)")
        names = find_layers(network, targets)
        self.rank, self.alpha, self.dropout, self.trains_classes = rank, alpha, dropout, trains_classes
        self.num_classes, self.out_features = network.num_classes, network.out_features
        self.condition_features, self.noise_conditioned = network.condition_features, network.noise_conditioned
        self.learned_variance, self.checkpointing = network.learned_variance, network.checkpointing
        tables = network.class_tables()
        if trains_classes and not tables:
            raise ValueError("trains_classes must be false: the network has no table of classes")
        network.requires_grad_(False)
        self.network: Any = add_adapters(network, names, rank, alpha, dropout)
        for name in tables if trains_classes else ():
            network.get_parameter(name).requires_grad_()

    attention_layers = property(attrgetter("network.attention_layers"))
    residual_blocks = property(attrgetter("network.residual_blocks"))
    inner_perturbations = property(attrgetter("network.inner_perturbations"))
    takes_null = property(attrgetter("network.takes_null"))

    def embed(self, y: Condition) -> Embedding:
        return self.network.embed(y)

    def class_tables(self) -> dict[str, int]:
        return {f"network.{name}": axis for name, axis in self.network.class_tables().items()}

    def class_row(self, index: int) -> int | None:
        return self.network.class_row(index)

    def can_compile(self, perturbation: Perturbation | None = None) -> bool:
        return self.network.can_compile(perturbation)

    def forward(
        self, x: Tensor, log_snr: Tensor | None, y: Condition | None = None, perturbation: Perturbation | None = None
    ) -> Tensor:
        changes = () if perturbation is None else (perturbation,)
        return self.network(x, log_snr, y, *changes)


def adapted_network(backbone: Backbone) -> nn.Module:
    """The network whose layers the files of an adapter name: that of diffusers, where a backbone is one, else the backbone."""
    return backbone.network if isinstance(backbone, DiffusersNetwork) else backbone


def find_layers(network: Backbone, targets: Sequence[str]) -> list[str]:
    """The names of the linear and convolutional layers that end with one of the targets; ValueError where there are none.

    A layer that is a table of classes is none of them: its columns are read without calling it.
    """
    tables = network.class_tables()
    parts = network.named_modules()
    layers = [
        name for name, part in parts if isinstance(part, nn.Linear | nn.Conv2d) and f"{name}.weight" not in tables
    ]
    found = [name for name in layers if any(f".{name}".endswith(f".{target}") for target in targets if target)]
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no linear or convolutional layers of torch, to which adapters are added"
        )
    if not found:
        some = ", ".join(sorted({name.rpartition(".")[2] for name in layers})[:MAX_NAMES])
        raise ValueError(
            f"targets={list(targets)} are the ends of no name of a linear or convolutional layer of this network; some of "
            f"its layers end with {some}"
        )
    return found


def add_adapters(network: Backbone, names: list[str], rank: int, alpha: float, dropout: float) -> Backbone:
    """The network with adapters at these layers, in place."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError("training/adapter=lora needs the library peft: pip install 'diffguide[lora]'") from None
    options: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": names}
    changed = inject_adapter_in_model(LoraConfig(**options), network)
    assert isinstance(changed, Backbone)
    return changed


@torch.no_grad()
def merge_adapters(backbone: LoRA, scale: float = 1.0) -> Backbone:
    """The network itself, with scale alpha / rank B A added to the weights of its layers, in place."""
    from peft.tuners.lora import LoraLayer

    network = backbone.network
    for name, layer in list(network.named_modules()):
        if isinstance(layer, LoraLayer):
            for adapter in layer.active_adapters:
                layer.set_scale(adapter, scale)
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, layer.get_base_layer())
    del network.peft_config
    return network.requires_grad_(False)
