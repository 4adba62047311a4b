"""The base class of all networks and the conditioning vector from noise level and condition."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..runtime.compiling import CompiledInference
from .conditioning import Conditioning, Context, check_conditioning
from .conditions import ClassEmbedding, Condition, Embedding, RowCondition
from .further_inputs import FurtherInputs
from .perturbations import Perturbation
from .random_perturbations import NoisyEmbedding, RandomPerturbation
from .timesteps import TimestepFeatures

__all__ = ["Backbone", "ConditionEmbedding", "check_halvings", "check_out_features", "nearest_sizes", "zero_init"]


class Backbone(nn.Module):
    """backbone(x, log_snr, y, perturbation) -> F. x [B, C, H, W] or [B, D]; log_snr [B]; y [B] classes, an Embedding, or None.

    With `further_inputs`, log_snr is [B, 1 + further_inputs], the log-SNR first.
    -1, keep=False and None mean no condition. A perturbation changes some of the layers in `attention_layers` and
    `residual_blocks`; with None the network is unchanged.

    Attributes:
        num_classes: number of classes; 0 = y is no class index.
        out_features: length of F if F is one vector per example; 0 = F has the shape of x.
        condition_features: length of the vectors of an Embedding; 0 = y is no Embedding.
        noise_conditioned: whether the noise level is an input; if not, log_snr is None.
        embedding: computes the conditioning vector.
        further_inputs: numbers that it takes beside the log-SNR; 0 = none.
        checkpointing: whether blocks are recomputed in the backward pass.
        attention_layers: side of the square grid of pixels or patches of each attention layer that can be perturbed, in the
            order of computation.
        residual_blocks: the same at the output of each block that can be skipped; 1 for vectors.
        inner_perturbations: kinds of perturbations that its layers take beside those of attention maps and outputs of blocks.
        takes_null: whether rows without condition are an input of their own.
        conditioning: what makes the context of a condition; None = y is class indices or an Embedding.
        learned_variance: whether F has twice the channels of x, the second half for the variance of the ancestral sampler.
    """

    embedding: "ConditionEmbedding"
    num_classes: int = 0
    out_features: int = 0
    condition_features: int = 0
    noise_conditioned: bool = True
    further_inputs: int = 0
    checkpointing: bool = False
    attention_layers: Sequence[int] = ()
    residual_blocks: Sequence[int] = ()
    inner_perturbations: tuple[type[Perturbation], ...] = ()
    takes_null: bool = True
    learned_variance: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.conditioning: Conditioning | None = None  # here: an attribute of the class would hide the module

    @property
    def conditional(self) -> bool:
        """Whether the network takes a condition."""
        return self.num_classes > 0 or self.condition_features > 0 or self.conditioning is not None

    @property
    def perturbations(self) -> tuple[type[Perturbation], ...]:
        """The `inner_perturbations` that have an effect."""
        kinds = self.inner_perturbations
        return tuple(kind for kind in kinds if kind is not NoisyEmbedding or self.noise_conditioned)

    @property
    def is_compiled(self) -> bool:
        """Whether calls with gradients of the network or of a part of it are compiled."""
        calls = (part._compiled_call_impl for part in self.modules())
        return any(call is not None and not isinstance(call, CompiledInference) for call in calls)

    def embed(self, y: Condition) -> RowCondition:
        """The vectors of a condition, which this network takes in its place."""
        if self.conditioning is not None:
            embedded = self.conditioning.embed(y)
            assert isinstance(embedded, RowCondition)
            return embedded
        return y if isinstance(y, RowCondition) else self.embedding.embed(y)

    def make_context(self, y: Condition | None, x: Tensor) -> Context | None:
        """The context of a condition, of a network with a `conditioning`; else None."""
        return None if self.conditioning is None else self.conditioning(y, x)

    def class_tables(self) -> dict[str, int]:
        """The names of the tensors with a row per class, and the axis of the rows."""
        classes = getattr(getattr(self, "embedding", None), "classes", None)
        return {} if classes is None else {"embedding.classes.weight": 0}

    def class_row(self, index: int) -> int | None:
        """The row of a class in these tables, -1 = no class; None where there is none."""
        return index + 1

    def can_compile(self, perturbation: Perturbation | None = None) -> bool:
        """Whether one graph serves the calls of all batch sizes without gradients."""
        return not isinstance(perturbation, RandomPerturbation)  # its numbers are drawn outside of graphs

    def run(self, block: nn.Module, *inputs: Tensor | Perturbation | Context | None) -> Tensor:
        """block(*inputs); `checkpointing` keeps only the inputs for the backward pass (Chen et al. 2016, arXiv 1604.06174)."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


def check_halvings(size: int, levels: int) -> None:
    """Raises ValueError for a side of `size` pixels that cannot be halved levels - 1 times."""
    if size % 2 ** (levels - 1):
        raise ValueError(
            f"{levels} multipliers halve the image {levels - 1} times, but its side is {size} pixels; use a size of "
            f"{nearest_sizes(size, 2 ** (levels - 1))}, or fewer multipliers"
        )


def check_out_features(out_features: int) -> None:
    """Raises ValueError for a network with one vector per example but no output."""
    if out_features < 1:
        raise ValueError(f"out_features must be at least 1 (one per class of the data), got {out_features}")


def nearest_sizes(size: int, divisor: int) -> str:
    """The nearest sides below and above `size`, in pixels, that are multiples of `divisor`."""
    below = size // divisor * divisor
    return f"{below} or {below + divisor} pixels" if below else f"{divisor} pixels"


class ConditionEmbedding(nn.Module):
    """embedding = MLP(features of the log-SNR) + row of the class, or + linear(vector); a term without input is 0.

    The features are sines and cosines of the log-SNR with wavelengths from 2 pi / 4 to 2 pi * 25, or those of a timestep. The
    log-SNR is clamped to +-20, beyond which x_t is pure data or pure noise in float32. Row 0 of the classes is the null
    condition y = -1; for vectors the null condition is a learned vector, used in rows with keep = False.

    Arguments:
        features: width of the result.
        num_classes: number of classes; 0 = none.
        condition_features: length of the vectors of an Embedding; 0 = none.
        noise_conditioned: whether the log-SNR is an input.
        noise_features: of a timestep, in place of those of the log-SNR; None = those of the log-SNR.
        conditioning: of a network whose condition is a context, in place of classes and vectors.
        further_inputs: numbers beside the log-SNR; 0 = none.

    Raises:
        ValueError: two of classes, vectors and conditioning, a negative number of them, or numbers beside a log-SNR that is
            no input.
    """

    frequencies: Tensor
    noise: nn.Sequential | None

    def __init__(
        self,
        features: int,
        num_classes: int,
        condition_features: int,
        noise_conditioned: bool,
        noise_features: TimestepFeatures | None = None,
        conditioning: Conditioning | None = None,
        further_inputs: int = 0,
    ):
        super().__init__()
        check_conditioning(conditioning, num_classes, condition_features)
        if further_inputs and (further_inputs < 0 or not noise_conditioned or noise_features is not None):
            raise ValueError(
                f"further_inputs must be at least 0, and need noise_conditioned without noise_features, got {further_inputs}"
            )
        if num_classes < 0 or condition_features < 0:
            raise ValueError(
                f"num_classes and condition_features must be at least 0, got {num_classes} and {condition_features}"
            )
        if num_classes and condition_features:
            raise ValueError(
                f"num_classes or condition_features must be 0, got {num_classes} and {condition_features}: a condition is a "
                "class index or an embedding"
            )
        self.features, self.noise_features = features, noise_features
        half = features // 2
        if noise_conditioned:
            inputs = 2 * half if noise_features is None else noise_features.width
            # the matrices are allocated first, so that a far too large width fails before any computation
            self.noise = nn.Sequential(nn.Linear(inputs, features), nn.SiLU(), nn.Linear(features, features))
            # the float32 frequencies are stored as integer bits, which .to(bfloat16) does not round
            bits = torch.logspace(0.6, -1.4, half, dtype=torch.float32).view(torch.int32)
            self.register_buffer("frequencies", bits, persistent=False)
        else:
            self.noise = None
        self.further = FurtherInputs(features, further_inputs) if further_inputs else None
        self.classes = nn.Embedding(num_classes + 1, features) if num_classes else None
        inputs = condition_features if conditioning is None else conditioning.vector_features
        self.linear = nn.Linear(inputs, features) if inputs else None
        self.null = nn.Parameter(torch.zeros(condition_features)) if condition_features else None

    def forward(
        self,
        h: Tensor,
        log_snr: Tensor | None,
        y: Condition | None,
        context: Context | None = None,
        perturbation: Perturbation | None = None,
    ) -> Tensor:
        """[B, features]; h [B, ...] gives the number of rows, and the dtype of a network without noise input.

        Arguments:
            context: of a network with a conditioning, in place of y.
        """
        embedding = self.noise_embedding(h, log_snr)
        if perturbation is not None:
            embedding = perturbation.replace_noise_embedding(embedding)
        if context is not None:
            if self.linear is None or context.vector is None:
                return embedding
            return embedding + self.linear(context.vector.to(self.linear.weight.dtype))
        if self.classes is not None:
            if isinstance(y, ClassEmbedding):
                null = self.classes.weight[0]
                return embedding + torch.where(y.keep[:, None], y.vectors.to(null.dtype), null)
            if isinstance(y, RowCondition):
                raise ValueError(f"y must be class indices [B] (-1 = none) for this network, got {type(y).__name__}")
            index = torch.full(h.shape[:1], -1, device=h.device) if y is None else y
            return embedding + self.classes(index + 1)
        if self.linear is not None:
            return embedding + self.linear(self.vectors(h, y))
        return embedding

    def embed(self, y: Tensor) -> ClassEmbedding:
        """The embedding of class indices [B], -1 = none."""
        assert self.classes is not None
        return ClassEmbedding(self.classes(y + 1), y >= 0)

    def noise_embedding(self, h: Tensor, log_snr: Tensor | None) -> Tensor:
        if self.noise is None:
            if log_snr is not None:
                raise ValueError("log_snr must be None for a network with noise_conditioned=false")
            return h.new_zeros(h.shape[0], self.features)
        if log_snr is None:
            raise ValueError("log_snr [B] is required for a network with noise_conditioned=true, got None")
        weight = self.noise[0].weight  # of a linear layer, or of one with an adapter
        assert isinstance(weight, Tensor)
        if self.noise_features is not None:
            return self.noise(self.noise_features(log_snr).to(weight.dtype))
        if self.further is not None:
            further = self.further(log_snr, self.frequencies.view(torch.float32))
            return further + self.embed_level(log_snr[:, 0], weight.dtype)
        return self.embed_level(log_snr, weight.dtype)

    def embed_level(self, log_snr: Tensor, dtype: torch.dtype) -> Tensor:
        """The MLP of the features of a log-SNR [B]."""
        assert self.noise is not None
        angles = log_snr.clamp(-20, 20)[:, None] * self.frequencies.view(torch.float32)
        return self.noise(torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype))

    def vectors(self, h: Tensor, y: Condition | None) -> Tensor:
        """[B, D], with the null vector in every row without condition."""
        assert self.null is not None
        if y is None:
            return self.null.expand(h.shape[0], -1)
        if not isinstance(y, Embedding) or y.vectors.shape[1] != len(self.null):
            length = f" of length {y.vectors.shape[1]}" if isinstance(y, Embedding) else ""
            raise ValueError(
                f"y must be an Embedding of length {len(self.null)} (condition_features) or None for this network, got "
                f"{type(y).__name__}{length}"
            )
        return torch.where(y.keep[:, None], y.vectors.to(self.null.dtype), self.null)


def zero_init(layer: nn.Module) -> nn.Module:
    """The layer with all parameters set to 0, so that a block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
