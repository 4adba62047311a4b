"""Rules that match or limit norms."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..models.protocols import Denoiser, Prediction
from ..runtime.ranges import check_finite, check_range, check_whole
from .flow_rules import compute_flow, flow_time, shift_flow
from .rules import Rule, inner, interpolate, norm, replace_eps

__all__ = ["NormLimit", "PosteriorMeanCap", "RectifiedRatio"]


class PosteriorMeanCap(Rule):
    """Linear with scale - 1 at most as large as |x_0| <= growth |strong.x_0| allows:

        (-b + sqrt(b^2 + (growth^2 - 1) a q)) / a,    a = |d|^2,  b = <strong.x_0, d>,  q = |strong.x_0|^2

    for d = strong.x_0 - weak.x_0 of a sample. Peng, Ma, "Classifier-Free Guidance in Flow Matching: Non-Autonomous
    Potentials, Overshoot, and Posterior-Mean Control", 2026, arXiv 2609.24287, PMC-CFG.

    Arguments:
        growth: Gamma, at least 1; inf = linear, 1.05 to 1.15 in the paper.
    """

    option = "pmc_cfg"

    def __init__(self, growth: float = 1.05):
        self.growth = check_range("growth", growth, "[1, inf]")

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory: Any) -> Prediction:
        if self.growth == math.inf:
            return interpolate(strong, weak, scale)
        d = strong.x_0 - weak.x_0
        a, b, q = inner(d, d), inner(strong.x_0, d), inner(strong.x_0, strong.x_0)
        differ = a > 0  # elsewhere the root has no gradient
        a = torch.where(differ, a, 1)
        largest = (torch.sqrt(torch.where(differ, b**2 + (self.growth**2 - 1) * a * q, 1)) - b) / a
        extra = torch.where(differ, torch.minimum(largest, scale - 1 + 0 * a), 0)
        return interpolate(strong, weak, 1 + extra)


class NormLimit(Rule):
    """g r of the velocity g = u_weak + scale (u_strong - u_weak), u = eps - x_0, r = cap |u_strong| / |g| within [least, most].

    What pipelines of flow models do after guidance (code of diffusers), here on the flow of any schedule:

    | pipeline | patch | cap | least | most |
    |---|---|---|---|---|
    | Qwen-Image `true_cfg_scale` | 2 | 1 | 0 | inf |
    | LongCat-Image `enable_cfg_renorm` | 2 | 1 | `cfg_renorm_min` | 1 |
    | Z-Image `cfg_normalization` | None | `cfg_normalization` | 0 | 1 |

    Arguments:
        patch: side of the square patches of an image, over whose values norms are taken, at least 1; None = over a whole
            sample, as for vectors.
        cap: factor of the strong norm, positive.
        least, most: the range of r, 0 <= least <= most <= inf.

    Raises:
        ValueError: from `check`, images whose sides are no multiple of the patch.
    """

    option = "norm_limit"

    def __init__(self, patch: int | None = 2, cap: float = 1.0, least: float = 0.0, most: float = math.inf):
        self.patch, self.cap = (
            None if patch is None else check_whole("patch", patch, 1),
            check_range("cap", cap, "(0, inf)"),
        )
        self.least, self.most = check_range("least", least, "[0, inf)"), check_range("most", most, "[0, inf]")
        if least > most:
            raise ValueError(f"least must be at most most, got {least} and {most}")

    def check(self, denoiser: Denoiser, scale: float) -> None:
        shape = denoiser.shape
        if self.patch is not None and shape is not None and len(shape) == 3 and any(n % self.patch for n in shape[1:]):
            raise ValueError(
                f"patch must divide the sides of images {list(shape)}, got {self.patch}; 1 = every position"
            )

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory: Any) -> Prediction:
        u_strong, u_weak = compute_flow(strong), compute_flow(weak)
        g = u_weak + scale * (u_strong - u_weak)
        wanted, found = self.measure(u_strong), self.measure(g)
        ratio = torch.where(found > 0, self.cap * wanted / found, 1).clamp(self.least, self.most)
        return shift_flow(strong, ratio * g - u_strong, flow_time(t, schedule, g))

    def measure(self, u: Tensor) -> Tensor:
        """The norm of the patch of each value, or of the sample, shaped to multiply u."""
        if self.patch is None or u.ndim != 4:
            return norm(u)
        squares = functional.avg_pool2d(u.square().sum(1, keepdim=True), self.patch) * self.patch**2
        return squares.sqrt().repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)


class RectifiedRatio(Rule):
    """Linear with r weak.eps in place of weak.eps, r = 1 + share (|strong.eps| / |weak.eps| - 1) of a sample.

    ReCFG in diffusers' form (`RectifiedClassifierFreeGuidance`), after Xia, Xue, Shen, Yi, Gong, Liu, "Rectified Diffusion
    Guidance for Conditional Generation", CVPR 2025, arXiv 2410.18737, whose r is a table of E[strong.eps] / E[weak.eps]
    per level.

    Arguments:
        share: of the correction; 0 = linear, 1 in diffusers.

    Raises:
        ValueError: from `check`, a schedule of zero terminal SNR, where eps does not determine x_0.
    """

    option = "recfg"

    def __init__(self, share: float = 1.0):
        self.share = check_finite("share", share)

    def check(self, denoiser: Denoiser, scale: float) -> None:
        if denoiser.schedule.zero_terminal_snr:
            raise ValueError(
                "rule=recfg scales the predicted eps, which does not determine x_0 at zero terminal SNR; take another rule"
            )

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory: Any) -> Prediction:
        size = norm(weak.eps).clamp(min=torch.finfo(weak.eps.dtype).tiny)
        ratio = 1 + self.share * (norm(strong.eps) / size - 1)
        return interpolate(strong, replace_eps(weak, ratio * weak.eps, t, schedule), scale)
