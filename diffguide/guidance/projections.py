"""Rules that split the difference of the predictions: along and across x_0, or by spatial frequency."""

import torch
from torch import Tensor
from torch.nn import functional

from ..models.protocols import Denoiser, Prediction
from ..runtime.linear_algebra import leading_right_vector
from ..runtime.ranges import check_finite, check_range
from .memories import LevelMemory
from .rules import Rule, damp_along, interpolate, norm, replace_eps, replace_x_0

__all__ = ["APG", "FDG", "TCFG"]


class APG(Rule):
    """x_0 = strong.x_0 + (scale - 1) (across + eta along), of the difference d of the two x_0, along and across strong.x_0.

    d has momentum, d = strong.x_0 - weak.x_0 + momentum (d of the previous level), and is clipped to norm_threshold before
    it is split. Sadat, Hilliges, Weber, "Eliminating Oversaturation and Artifacts of High Guidance Scales", 2024,
    arXiv 2410.02416, algorithm 1.

    Arguments:
        eta: share of the part along strong.x_0 that stays; 1 = all of it, 0 = none, as in the paper.
        norm_threshold: largest |d| of a sample, positive, inf = no limit; scale it with the root of the number of values.
        momentum: in (-1, 1); 0 = none, -0.5 in the paper.
    """

    option = "apg"

    def __init__(self, eta: float = 0.0, norm_threshold: float = 15.0, momentum: float = -0.5):
        self.eta = check_finite("eta", eta)
        self.norm_threshold = check_range("norm_threshold", norm_threshold, "(0, inf]")
        self.momentum = check_range("momentum", momentum, "(-1, 1)")
        self.stateful = momentum != 0

    def start(self, times: Tensor) -> LevelMemory:
        return LevelMemory()

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory) -> Prediction:
        d = strong.x_0 - weak.x_0
        if self.stateful and memory is not None:
            before = memory.recall(t, len(d))
            d = d if before is None else d + self.momentum * before[0]
            memory.store(d)
        d = d / (norm(d) / self.norm_threshold).clamp(min=1)
        return replace_x_0(strong, strong.x_0 + (scale - 1) * damp_along(d, strong.x_0, self.eta), t, schedule)


class TCFG(Rule):
    """Linear with weak.eps projected on the leading right-singular vector of the rows (strong.eps, weak.eps).

    Kwon et al., "TCFG: Tangential Damping Classifier-free Guidance", 2025, arXiv 2503.18137.

    Raises:
        ValueError: from `check`, a schedule of zero terminal SNR, where eps does not determine x_0.
    """

    option = "tcfg"

    def check(self, denoiser: Denoiser, scale: float) -> None:
        if denoiser.schedule.zero_terminal_snr:
            raise ValueError(
                "rule=tcfg compares the predicted eps, which do not determine x_0 at zero terminal SNR; take another rule"
            )

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory) -> Prediction:
        rows = torch.stack([strong.eps, weak.eps], dim=1).flatten(2).double()
        leading = leading_right_vector(rows)
        kept = (rows[:, 1] * leading).sum(1, keepdim=True) * leading
        eps = kept.reshape(weak.eps.shape).to(weak.eps)
        return interpolate(strong, replace_eps(weak, eps, t, schedule), scale)


class FDG(Rule):
    """Linear with a scale for each of the two bands of a Laplacian pyramid: high gets `scale`, low 1 + (scale - 1) low.

    Sadat, Vontobel, Salehi, Weber, "Guidance in the Frequency Domain Enables High-Fidelity Sampling at Low CFG Scales",
    2025, arXiv 2506.19713, with two levels. The low band is the image blurred, downsampled and upsampled
    (Burt & Adelson 1983); it is linear, so it is computed from the difference of the predictions.

    Arguments:
        low: factor of the guidance at low frequencies, at least 0; 1 = linear.

    Raises:
        ValueError: data that are not images.
    """

    option = "fdg"

    def __init__(self, low: float = 0.5):
        self.low = check_range("low", low, "[0, inf)")

    def check(self, denoiser: Denoiser, scale: float) -> None:
        if denoiser.shape is not None and len(denoiser.shape) != 3:
            raise ValueError(f"rule=fdg needs images [C, H, W], this model makes {list(denoiser.shape)}")

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory) -> Prediction:
        if x_t.ndim != 4:
            raise ValueError(f"rule=fdg needs images [B, C, H, W], got {list(x_t.shape)}")
        x_0 = self.combine(strong.x_0, strong.x_0 - weak.x_0, scale)
        return Prediction(x_0, self.combine(strong.eps, strong.eps - weak.eps, scale))

    def combine(self, strong: Tensor, difference: Tensor, scale: Tensor) -> Tensor:
        low = low_band(difference)
        return strong + (scale - 1) * (difference - low + self.low * low)


def low_band(x: Tensor) -> Tensor:
    """x [B, C, H, W] blurred, downsampled by 2, and upsampled to its size."""
    halved = functional.interpolate(blur(x), scale_factor=0.5, mode="bilinear") if min(x.shape[2:]) > 1 else x
    return blur(functional.interpolate(halved, size=x.shape[2:], mode="bilinear"))


def blur(x: Tensor) -> Tensor:
    """x convolved with (1, 4, 6, 4, 1) / 16 along rows and columns; borders are replicated."""
    weights = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (weights[:, None] * weights).expand(x.shape[1], 1, 5, 5)
    return functional.conv2d(functional.pad(x, (2, 2, 2, 2), mode="replicate"), kernel, groups=x.shape[1])
