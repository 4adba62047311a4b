"""Distances between a jump and its target, in place of the weighted squared error.

distance(squares, gain, gap, size) -> loss [B]: squares = ||F - F*||^2 [B] of the network's output; gain = |c_out + n_s e_out|
[B], by which an error of F becomes one of the end x_s / alpha_s; gap = n_t - n_m [B], the short step of the target in noise
level sigma / alpha; size = D, the elements of an example.
"""

import math

from torch import Tensor

from ..runtime.ranges import check_range

__all__ = ["Adaptive", "Distance", "PseudoHuber"]


class Distance:
    """Base.

    Attributes:
        of_jumps: whether it is for the rows that jump, and the others have the weighted squared error.
    """

    of_jumps = True

    def __call__(self, squares: Tensor, gain: Tensor, gap: Tensor, size: int) -> Tensor:
        raise NotImplementedError


class PseudoHuber(Distance):
    """(sqrt(||x_s_hat - x_s*||^2 / alpha_s^2 + c^2) - c) / (n_t - n_m)  with  c = constant sqrt(D).

    Song & Dhariwal 2023, "Improved Techniques for Training Consistency Models", arXiv 2310.14189, section 3.3 and table 1. With
    a constant near 0 it is the norm, the loss of easy consistency tuning (Geng et al. 2024, arXiv 2406.14548), whose gradient
    is not defined at 0.

    Arguments:
        constant: positive; 0.00054 in the paper.
    """

    def __init__(self, constant: float = 0.00054):
        self.constant = check_range("constant", constant, "(0, inf)")

    def __call__(self, squares: Tensor, gain: Tensor, gap: Tensor, size: int) -> Tensor:
        c = self.constant * math.sqrt(size)
        return ((gain**2 * squares + c**2).sqrt() - c) / gap


class Adaptive(Distance):
    """||F - F*||^2 / stop_gradient(||F - F*||^2 + constant)^power, of all rows.

    Geng et al. 2025, "Mean Flows for One-step Generative Modeling", arXiv 2505.13447, eq. 22.

    Arguments:
        power: at least 0; 1 in the paper, 0.5 has the gradient of `PseudoHuber`.
        constant: positive; 0.001 in the paper.
    """

    of_jumps = False

    def __init__(self, power: float = 1.0, constant: float = 0.001):
        self.power = check_range("power", power, "[0, inf)")
        self.constant = check_range("constant", constant, "(0, inf)")

    def __call__(self, squares: Tensor, gain: Tensor, gap: Tensor, size: int) -> Tensor:
        return squares / (squares.detach() + self.constant) ** self.power
