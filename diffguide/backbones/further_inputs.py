"""Numbers that a network takes beside the log-SNR: the level where a jump ends, the scale of guidance."""

import torch
from torch import Tensor, nn

__all__ = ["FurtherInputs"]


class FurtherInputs(nn.Module):
    """MLP(sines and cosines of all numbers), added to the conditioning vector; 0 before training.

    So a network that starts from the weights of one without these inputs is that network. All numbers enter one MLP, since
    what a jump is depends on both of its ends.

    Arguments:
        features: width of the result.
        count: numbers beside the log-SNR, at least 1.

    The frequencies are those of the log-SNR in `ConditionEmbedding`; numbers are of its order of magnitude.
    """

    def __init__(self, features: int, count: int):
        super().__init__()
        self.count = count
        self.hidden = nn.Linear((1 + count) * 2 * (features // 2), features)
        self.output = nn.Linear(features, features)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, numbers: Tensor, frequencies: Tensor) -> Tensor:
        """[B, features] of numbers [B, 1 + count]; frequencies [F] float32.

        Raises:
            ValueError: another number of numbers.
        """
        if numbers.ndim != 2 or numbers.shape[1] != 1 + self.count:
            raise ValueError(
                f"log_snr must be [B, {1 + self.count}] for a network with further_inputs={self.count}, got "
                f"{list(numbers.shape)}"
            )
        angles = (numbers.clamp(-20, 20)[..., None] * frequencies).flatten(1)
        features = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.hidden.weight.dtype)
        return self.output(nn.functional.silu(self.hidden(features)))
