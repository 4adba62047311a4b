"""Networks of the library diffusers as backbones; their architectures stay in that library.

Only the classes in `diffusers_classes.NETWORKS` are built, from plain arguments.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..runtime.ranges import check_whole
from .base import Backbone, nearest_sizes
from .conditioning import Conditioning, Context, check_conditioning
from .conditions import Condition, Embedding, RowCondition
from .diffusers_classes import NETWORKS, REFUSED, create_network, fill_arguments
from .perturbations import Perturbation
from .perturbed_calls import LayerRecorder, PerturbedCall
from .timesteps import DiscreteTimesteps, Timesteps

__all__ = ["DiffusersNetwork"]

TEXT_AND_SIZES = "text_time"  # addition_embed_type of networks that take a text's vector and the size of the picture

SMALL_UNET: Mapping[str, Any] = {
    "block_out_channels": [64, 128],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 32,
    "dropout": 0.1,
}


class DiffusersNetwork(Backbone):
    """A network of diffusers: F = network(x, timestep, condition).

    With classes, -1 takes the row `null_class` of the class table. With a `conditioning`, the network attends to its tokens.
    With `condition_tokens`, y is an `Embedding` whose vectors are a sequence, [B, condition_tokens * length], and rows without
    condition take a learned sequence that starts at 0.

    Arguments:
        in_channels: channels of the images.
        out_features: channels of the output; None = in_channels, or twice as many with `learned_variance`.
        num_classes: number of classes without the null row; 0 = y is no class index.
        size: side of the images, pixels.
        network: name of the class in diffusers, one of `NETWORKS`.
        arguments: of its constructor, as its config.json has them; those for channels, side and classes may be left out.
        timesteps: from log-SNR to the timestep that it takes; None = DiscreteTimesteps(), of the betas of DDPM.
        null_class: row of the class table for no class; None = the network has none, except where this class adds one:
            where `arguments` does not say how many rows there are, the last.
        condition_tokens: number of vectors of a condition; 0 = y is no Embedding.
        learned_variance: as for `Backbone`.
        double_differentiable, checkpointing: as for `UNet`.
        conditioning: of texts, with tokens as long as the vectors of a condition. Its pooled vector is used by networks that
            take it with the size of the picture, as SDXL's.
        downsampling: pixels of the picture per side of x, for these networks.

    Raises:
        ValueError: diffusers is not installed, an unknown class or argument, arguments that contradict each other, a side
            that the network does not take, or a network that needs other inputs.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_features: int | None = None,
        num_classes: int = 0,
        size: int | None = None,
        network: str = "UNet2DModel",
        arguments: Mapping[str, Any] = SMALL_UNET,
        timesteps: Timesteps | None = None,
        null_class: int | None = None,
        condition_tokens: int = 0,
        learned_variance: bool = False,
        double_differentiable: bool = False,
        checkpointing: bool = False,
        conditioning: Conditioning | None = None,
        downsampling: int = 8,
    ):
        super().__init__()
        check_conditioning(conditioning, num_classes, condition_tokens)
        self.conditioning, self.downsampling = conditioning, check_whole("downsampling", downsampling, 1)
        self.takes_sizes = False
        if network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {network!r}")
        self.kind = NETWORKS[network]
        outputs = in_channels * (1 + learned_variance) if out_features is None else out_features
        facts = {"in_channels": in_channels, "out_channels": outputs, "sample_size": size}
        arguments = {key: value for key, value in arguments.items() if not key.startswith("_")}
        self.num_classes, self.learned_variance = num_classes, learned_variance
        if num_classes:
            facts |= self.class_facts(arguments, network, null_class)
        else:
            self.null_class = null_class
        self.name, self.arguments = network, fill_arguments(network, arguments, facts)
        self.network: Any = create_network(network, self.arguments)
        self.timesteps = DiscreteTimesteps() if timesteps is None else timesteps
        self.double_differentiable = double_differentiable
        self.check_side(size)
        self.check_inputs(condition_tokens)
        if checkpointing:
            if not self.network._supports_gradient_checkpointing:
                raise ValueError(f"checkpointing must be false: {network} does not support it")
            self.network.enable_gradient_checkpointing()

    def class_facts(self, arguments: Mapping[str, Any], network: str, null_class: int | None) -> dict[str, Any]:
        """The argument for the class table; sets `null_class`."""
        key, null_row = self.kind.rows, self.kind.null_row
        if key is None:
            raise ValueError(f"num_classes must be 0: {network} takes no class index, got {self.num_classes}")
        rows = arguments.get(key)
        if rows is None or null_row:  # the last row is for no class
            null_class = self.num_classes if null_class is None else null_class
        self.null_class = null_class
        total = self.num_classes + (null_class is not None)
        if null_class is not None and not 0 <= null_class < total:
            raise ValueError(f"null_class must be a row of the class table, 0 to {total - 1}, got {null_class}")
        return {key: total - null_row}

    def check_side(self, size: int | None) -> None:
        """Raises ValueError for a side that cannot be halved as often as the network does, or divided into its patches."""
        config = self.network.config
        halvings = len(config.down_block_types) - 1 if self.name == "UNet2DModel" else 0  # the other U-Net pads
        divisor = 2**halvings * (config.get("patch_size") or 1)
        if size is not None and size % divisor:
            raise ValueError(
                f"size must be a multiple of {divisor} with this {self.name}, got {size}; use a size of "
                f"{nearest_sizes(size, divisor)}"
            )

    def check_inputs(self, tokens: int) -> None:
        """Sets what the network gets besides images and timesteps; raises ValueError for inputs that it cannot get."""
        config = self.network.config
        for key, needs in REFUSED.items():
            value = vars(self.network).get(key) or config.get(key)  # the constructor may set what null means
            if value == TEXT_AND_SIZES and self.conditioning is not None:
                self.takes_sizes = True
            elif value and key != self.kind.rows:
                raise ValueError(f"arguments.{key} must be null or false: a network with {key}={value} needs {needs}")
        rows = self.kind.rows and config.get(self.kind.rows)
        if rows and not self.num_classes:
            raise ValueError(f"num_classes must be set: the network has a table of {rows} classes")
        self.tokens, self.null = tokens, None
        if self.conditioning is not None:
            self.check_tokens(self.conditioning)
        elif (self.kind.tokens is None) == (tokens > 0):
            raise ValueError(
                f"condition_tokens must be {'above 0' if self.kind.tokens else '0'} with {self.name}, got {tokens}"
            )
        elif self.kind.tokens is not None:
            self.condition_features = tokens * config[self.kind.tokens]
            self.null = nn.Parameter(torch.zeros(self.condition_features))
        for module in self.network.modules():
            if type(module).__name__ == "LabelEmbedding":  # the objective drops labels, once per example
                module.dropout_prob = 0.0

    def check_tokens(self, conditioning: Conditioning) -> None:
        """Raises ValueError for a conditioning whose tokens the network does not take."""
        length = self.kind.tokens and self.network.config[self.kind.tokens]
        if length is None or conditioning.channels or conditioning.token_features != length:
            has = f"takes tokens of length {length}" if length else "takes no tokens"
            raise ValueError(
                f"conditioning must fit {self.name}, which {has}: it has tokens of length {conditioning.token_features} and "
                f"{conditioning.channels} channels"
            )
        config = self.network.config
        if self.takes_sizes:
            vector = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            if conditioning.vector_features != vector:
                raise ValueError(
                    f"conditioning must have a vector of length {vector} for {self.name}, got {conditioning.vector_features}"
                )

    def added_inputs(self, vector: Tensor, x: Tensor) -> dict[str, Tensor]:
        """The vector of a text, and [B, 6]: height and width of the picture, no crop, height and width again.

        Podell et al., "SDXL", 2023, arXiv 2307.01952, section 2.2.
        """
        sides = [self.downsampling * side for side in x.shape[2:]]
        return {
            "text_embeds": vector,
            "time_ids": vector.new_tensor([*sides, 0, 0, *sides]).expand(vector.shape[0], -1),
        }

    def context_inputs(self, context: Context, x: Tensor, dtype: torch.dtype) -> dict[str, Any]:
        """The arguments of a call for a context; padding is zeros for a network that has no mask."""
        assert context.tokens is not None
        tokens = context.tokens.to(dtype)
        if context.mask is not None and self.kind.mask is None:
            tokens = tokens * context.mask[:, :, None].to(dtype)
        mask = {} if context.mask is None or self.kind.mask is None else {self.kind.mask: context.mask.long()}
        added = {}
        if self.takes_sizes:
            assert context.vector is not None
            added = {"added_cond_kwargs": self.added_inputs(context.vector.to(dtype), x)}
        return {"encoder_hidden_states": tokens, **mask, **added}

    @property
    def takes_null(self) -> bool:  # type: ignore[override]
        return self.null_class is not None or not self.num_classes

    def class_tables(self) -> dict[str, int]:
        tables = ("class_embedding.weight", "class_embedder.embedding_table.weight")
        names = (f"network.{name}" for name in self.network.state_dict() if name.endswith(tables))
        return dict.fromkeys(names, 0) if self.num_classes else {}

    def class_row(self, index: int) -> int | None:
        if index < 0 or self.null_class is None:
            return self.null_class if index < 0 else index
        return index + (index >= self.null_class)

    def can_compile(self, perturbation: Perturbation | None = None) -> bool:
        return perturbation is None  # torch 2.14 fixes B inside a TorchFunctionMode, which intercepts the call

    def forward(
        self, x: Tensor, log_snr: Tensor | None, y: Condition | None = None, perturbation: Perturbation | None = None
    ) -> Tensor:
        if log_snr is None:
            raise ValueError("log_snr [B] is required for a network of diffusers, got None")
        dtype = next(self.network.parameters()).dtype
        inputs = {self.kind.images: x.to(dtype), "timestep": self.timesteps(log_snr), **self.kind.fixed}
        if self.num_classes:
            inputs["class_labels"] = self.class_rows(x, y)
        elif self.conditioning is not None:
            inputs |= self.context_inputs(self.conditioning(y, x), x, dtype)
        elif self.null is not None:
            inputs["encoder_hidden_states"] = self.token_vectors(x, y).to(dtype)
        with (
            sdpa_kernel(SDPBackend.MATH) if self.double_differentiable else nullcontext(),  # the others have no second
            PerturbedCall(self.network, perturbation, tuple(x.shape[2:]))
            if perturbation is not None
            else nullcontext(),
        ):
            return self.network(**inputs, return_dict=False)[0]

    def class_rows(self, x: Tensor, y: Condition | None) -> Tensor:
        """[B] rows of the class table."""
        if isinstance(y, RowCondition):
            raise ValueError(f"y must be class indices [B] (-1 = none) for this network, got {type(y).__name__}")
        index = torch.full(x.shape[:1], -1, device=x.device) if y is None else y
        if self.null_class is None:
            if y is None or (index.is_cpu and not torch.compiler.is_compiling() and bool((index < 0).any())):
                raise ValueError("this network has no null class: it needs a class in every row")
            return index
        return torch.where(index < 0, self.null_class, index + (index >= self.null_class))

    def token_vectors(self, x: Tensor, y: Condition | None) -> Tensor:
        """[B, tokens, length]."""
        assert self.null is not None
        if y is None:
            vectors = self.null.expand(x.shape[0], -1)
        elif not isinstance(y, Embedding) or y.vectors.shape[1] != len(self.null):
            raise ValueError(
                f"y must be an Embedding of length {len(self.null)} = {self.tokens} x {len(self.null) // self.tokens} or None "
                f"for this network, got {type(y).__name__}"
            )
        else:
            vectors = torch.where(y.keep[:, None], y.vectors.to(self.null.dtype), self.null)
        return vectors.unflatten(1, (self.tokens, -1))

    @cached_property
    def layers(self) -> LayerRecorder:
        """The layers that can be perturbed, found in a call on the device meta."""
        with torch.device("meta"):
            network = create_network(self.name, self.arguments).to("meta").eval()
            side = network.config.sample_size or 32
            sides = (side, side) if isinstance(side, int) else tuple(side)
            x = torch.empty(1, network.config.in_channels, *sides)
            inputs = {self.kind.images: x, "timestep": torch.ones(1), **self.kind.fixed}
            if self.num_classes:
                inputs["class_labels"] = torch.zeros(1, dtype=torch.long)
            elif self.kind.tokens is not None:
                length = network.config[self.kind.tokens]
                inputs["encoder_hidden_states"] = torch.empty(1, self.tokens or 1, length)
                if self.takes_sizes and self.conditioning is not None:
                    inputs["added_cond_kwargs"] = self.added_inputs(
                        torch.empty(1, self.conditioning.vector_features), x
                    )
            with torch.no_grad(), LayerRecorder(network, sides) as recorder:
                network(**inputs, return_dict=False)
        return recorder

    @property
    def attention_layers(self) -> Sequence[int]:  # type: ignore[override]
        return self.layers.attention

    @property
    def residual_blocks(self) -> Sequence[int]:  # type: ignore[override]
        return self.layers.blocks
