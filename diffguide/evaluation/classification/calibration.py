"""The calibration error of a classifier."""

import torch
from torch import Tensor

from ...randomness import fold

__all__ = ["calibration_error"]

BOOTSTRAP_PURPOSE = 4  # purpose of the seed
NUM_RESAMPLES = 200  # for the standard error


def calibration_error(confidence: Tensor, correct: Tensor, bins: int, seed: int) -> tuple[float, float]:
    """ECE = sum_m |B_m| / N * |mean of correct in B_m - mean of confidence in B_m|, and its bootstrap standard error.

    Naeini, Cooper, Hauskrecht 2015; Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017, arXiv
    1706.04599, section 2. B_m are the examples with a confidence in ((m - 1) / M, m / M]. The ECE is positive even for a
    perfectly calibrated classifier, of the order of sqrt(M / N).

    Arguments:
        confidence: the largest probability of each example, [N] in (0, 1].
        correct: 1 if its class is the true one, else 0, [N].
        bins: M.
        seed: of the resamples.
    """
    confidence, correct = confidence.double(), correct.double()
    n, bin_index = len(confidence), (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(n, bins, dtype=torch.float64)
    gaps[torch.arange(n), bin_index] = correct - confidence
    rng = torch.Generator().manual_seed(fold(seed, BOOTSTRAP_PURPOSE))
    resamples = torch.stack([gaps[torch.randint(n, (n,), generator=rng)].sum(0) for _ in range(NUM_RESAMPLES)])
    return float(gaps.mean(0).abs().sum()), float((resamples / n).abs().sum(1).std())
