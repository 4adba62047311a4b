"""Perturbations of networks of other libraries: their calls are intercepted.

Attention layers are the calls of torch's `scaled_dot_product_attention` in which the image attends to itself, in the order
of computation. Residual blocks are modules of the classes in `BLOCKS`, in the same order.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .perturbations import Perturbation

__all__ = ["LayerRecorder", "PerturbedCall"]

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D", "SanaTransformerBlock")  # of diffusers
ATTENTION = "Attention"  # of diffusers


def grid_of(tokens: int, sides: Sequence[int]) -> tuple[int, int] | None:
    """The (rows, columns) of an image of these sides in as many equal patches as tokens; None where none fit."""
    patch = math.sqrt(math.prod(sides) / tokens)
    rows, columns = (round(side / patch) for side in sides)
    return (rows, columns) if rows * columns == tokens else None


def skip_connection(block: Any, x: Tensor) -> Tensor:
    """The output of a block without its residual branch."""
    if type(block).__name__ != "ResnetBlock2D":
        return x
    for resample in (block.upsample, block.downsample):
        x = x if resample is None else resample(x)
    x = x if block.conv_shortcut is None else block.conv_shortcut(x)
    return x / block.output_scale_factor


class InterceptedCall(TorchFunctionMode):
    """Base: around one call of a network, calls `attend` in place of each self-attention and `leave` after each block.

    Arguments:
        network: of another library.
        sides: height and width of its images.
    """

    def __init__(self, network: nn.Module, sides: Sequence[int]):
        super().__init__()
        self.sides, self.attentions, self.finished, self.crosses = sides, 0, 0, False
        self.layers = [module for module in network.modules() if type(module).__name__ == ATTENTION]
        self.modules = [module for module in network.modules() if type(module).__name__ in BLOCKS]

    def __enter__(self) -> Self:
        self.hooks = [module.register_forward_hook(self.after, with_kwargs=True) for module in self.modules]
        self.hooks += [layer.register_forward_pre_hook(self.before, with_kwargs=True) for layer in self.layers]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self.hooks:
            hook.remove()

    def before(self, layer: nn.Module, inputs: tuple, named: dict[str, Any]) -> None:
        """Notes whether a layer attends to a condition, which may have as many vectors as the image has positions."""
        self.crosses = named.get("encoder_hidden_states", inputs[1] if len(inputs) > 1 else None) is not None

    def after(self, block: nn.Module, inputs: tuple, named: dict[str, Any], output: Any) -> Any:
        x: Any = inputs[0] if inputs else named.get("hidden_states", named.get("input_tensor"))
        self.finished += 1
        return self.leave(self.finished - 1, block, x, output)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        q, k, v, *rest = (*args, *(kwargs.pop(name) for name in ("query", "key", "value") if name in kwargs))
        alone = q.shape[-2] == k.shape[-2] and not self.crosses
        grid = grid_of(q.shape[-2], self.sides) if alone else None
        if grid is None:  # to a text, or to a text and the image together
            return func(q, k, v, *rest, **kwargs)
        self.attentions += 1
        return self.attend(self.attentions - 1, q, k, v, grid, lambda q: func(q, k, v, *rest, **kwargs))

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], call: Any) -> Tensor:
        """The output of attention layer `index`; `call(q)` computes it."""
        return call(q)

    def leave(self, index: int, block: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """The output of block `index` in place of `output`; x is its input."""
        return output


class PerturbedCall(InterceptedCall):
    """A call with a perturbation.

    Arguments:
        network, sides: as in `InterceptedCall`.
        perturbation: of its layers.
    """

    def __init__(self, network: nn.Module, perturbation: Perturbation, sides: Sequence[int]):
        super().__init__(network, sides)
        self.perturbation = perturbation

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], call: Any) -> Tensor:
        h = call(self.perturbation.replace_queries(index, q, grid))
        return self.perturbation.replace_attention(index, v, h)

    def leave(self, index: int, block: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        if index not in self.perturbation.layers:
            return output
        return self.perturbation.replace_output(index, skip_connection(block, x), output)


class LayerRecorder(InterceptedCall):
    """Records the layers of a call.

    Attributes:
        attention: side of the grid of each self-attention, in the order of computation.
        blocks: side of the grid at the output of each residual block.
    """

    def __init__(self, network: nn.Module, sides: Sequence[int]):
        super().__init__(network, sides)
        self.attention: list[int] = []
        self.blocks: list[int] = []

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], call: Any) -> Tensor:
        self.attention.append(grid[0])
        return call(q)

    def leave(self, index: int, block: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        tokens = output.shape[-2] if output.ndim == 3 else math.prod(output.shape[2:])
        grid = grid_of(tokens, self.sides)
        self.blocks.append(grid[0] if grid else 1)
        return output
