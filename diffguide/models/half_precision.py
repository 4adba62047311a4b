"""The precision of a trained network in sampling and evaluation."""

import torch

from .preconditioned import Preconditioned
from .protocols import Denoiser, Energy

__all__ = ["INFERENCE_PRECISIONS", "cast_network"]

INFERENCE_PRECISIONS = {  # of engine.precision, and the dtype of the network's weights
    "32-true": torch.float32,
    "bf16-true": torch.bfloat16,
    "bf16-mixed": torch.float32,  # by autocast, as 16-mixed
    "16-mixed": torch.float32,
}


def cast_network(model: Denoiser | Energy | torch.nn.Module, precision: str) -> None:
    """Casts the network of a denoiser in place; its predictions and all arithmetic on them keep the dtype of x_t.

    Raises:
        ValueError: weights below float32, and a model that is not `Preconditioned`.
    """
    dtype = INFERENCE_PRECISIONS[precision]
    if dtype == torch.float32:
        return
    if not isinstance(model, Preconditioned):
        raise ValueError(
            f"precision={precision} is for networks that predict x_0 or eps, and this checkpoint holds a "
            f"{type(model).__name__}: use engine.precision=32-true"
        )
    model.backbone.to(dtype)
