"""Classification diffusion models: a classifier of the noise level, trained by cross-entropy and by its gradient."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..models.decoders import is_quantized
from ..models.level_classifier import LevelClassifier, level_log_ratio
from ..randomness import Share, normal, uniform
from ..runtime.ranges import check_range
from ..schedules import Schedule
from .base import Loss, Objective, check_weights, drop_condition
from .levels import draw_uniform

__all__ = ["CDM"]


class CDM(Objective):
    """ce_weight CE + mse_weight MSE,  CE = -log p(k | x),  MSE = ||eps - sigma_k (x - grad_x (f_k - f_(T + 1)))||^2 / D.

    Yadin, Elata, Michaeli, "Classification Diffusion Models: Revitalizing Density Ratio Estimation", 2024, arXiv
    2402.10095, algorithm 1. k is a level 0..T + 1, x = alpha_k x_0 + sigma_k eps. The MSE is masked at exact data and at
    pure noise T + 1, where it is undefined. CE alone learns the density near the data only. The MSE alone determines
    each level up to a constant, so that it learns neither the density nor the level.

    Arguments:
        backbone: network (x, None, y) -> [B, levels].
        schedule: noise schedule that ends in N(0, I).
        levels: T + 2, at least 3; 1002 in the paper.
        ce_weight, mse_weight: of the two terms, at least 0, not both 0; 0.001 and 1 in the paper, for images.
        quantization_levels: K values of a data element, 2 / (K - 1) apart in [-1, 1]. Uniform noise dequantizes them, so
            that they have a density. 0 = continuous data, not dequantized.
        prior: P(k), [levels] positive numbers, normalized here; None = uniform.
        soft_targets: whether the target of the cross-entropy is P(k | x, x_0) instead of the drawn level: the same mean
            with less variance.
        p_uncond: probability of dropping the condition of an example; in [0, 1].

    Raises:
        ValueError: a backbone or schedule that `LevelClassifier` rejects.
    """

    compilable = False
    model: LevelClassifier

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule,
        levels: int = 102,
        ce_weight: float = 0.001,
        mse_weight: float = 1.0,
        quantization_levels: int = 0,
        prior: Sequence[float] | None = None,
        soft_targets: bool = True,
        p_uncond: float = 0.0,
    ):
        super().__init__()
        self.p_uncond = check_range("p_uncond", p_uncond, "[0, 1]")
        if levels < 3:
            raise ValueError(f"levels must be at least 3, got {levels}; for 2 levels take objective=nce")
        check_weights(ce_weight, mse_weight)
        check_quantization_levels(quantization_levels)
        self.model = LevelClassifier(backbone, schedule, levels - 2, p_uncond > 0, prior)
        self.ce_weight = float(ce_weight)
        self.mse_weight = float(mse_weight)
        self.quantization_levels = quantization_levels
        self.soft_targets = soft_targets

    def check(self, x_0: Tensor) -> None:
        check_quantized(x_0, self.quantization_levels)

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        k = self.draw_levels(len(x_0), rng)
        x_0 = dequantize(x_0, self.quantization_levels, rng)
        eps = normal(x_0.shape, rng, x_0.dtype)
        y = drop_condition(y, self.p_uncond, rng)
        log_prob, ce, mse, hit = level_terms(self.model, x_0, y, k, eps, self.mse_weight > 0)
        mse = mse.nan_to_num(nan=0.0)
        if self.soft_targets:
            ce = -(self.model.posterior(x_0, eps, k).exp().to(log_prob) * log_prob).sum(1)
        terms = {
            "ce": ce.detach(),
            "mse": mse.detach() / self.denoising_share,  # the mean over the levels where it is defined
            "accuracy": hit,
        }
        return Loss(self.ce_weight * ce + self.mse_weight * mse, terms)

    def draw_levels(self, n: int, rng: torch.Generator | Share) -> Tensor:
        """k from the prior, [n], stratified over a batch."""
        return self.model.level_at(draw_uniform(n, rng, True))

    @property
    def denoising_share(self) -> float:
        """The probability of a level at which the MSE is defined."""
        exact = math.isinf(self.model.schedule.log_snr_max)
        return sum(self.model.prior[int(exact) : -1])


def level_terms(
    model: LevelClassifier, x_0: Tensor, y: Condition | None, k: Tensor, eps: Tensor, through: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p(. | x) [B, T + 2], and [B] each: -log p(k | x), ||eps - eps_hat||^2 / D, whether k is the most likely level.

    The squared error is nan at exact data and at pure noise T + 1, where it is undefined.

    Arguments:
        k: levels of x = alpha_k x_0 + sigma_k eps, [B].
        through: whether the squared error will be differentiated, where gradients are enabled.
    """
    learning = torch.is_grad_enabled()
    alpha, sigma = (part.to(x_0) for part in model.scales(k, x_0.ndim))
    with torch.enable_grad():  # the error holds a gradient, in evaluation too
        x = (alpha * x_0 + sigma * eps).requires_grad_()
        logits = model.logits(x, y)
        (slope,) = torch.autograd.grad(
            level_log_ratio(logits, k).sum(), x, create_graph=through and learning, retain_graph=learning
        )
    log_prob = (logits if learning else logits.detach()).log_softmax(1)
    defined = (k <= model.steps) & (sigma.flatten() > 0)
    error = (eps - sigma * (x.detach() - slope)).square().flatten(1).mean(1)
    ce = -log_prob.gather(1, k[:, None])[:, 0]
    return log_prob, ce, torch.where(defined, error, math.nan), (log_prob.argmax(1) == k).to(ce)


def dequantize(x_0: Tensor, quantization_levels: int, rng: torch.Generator | Share) -> Tensor:
    """Adds uniform noise as wide as the distance 2 / (K - 1) of the K values in [-1, 1]; K = 0 leaves x_0 unchanged.

    Theis, van den Oord, Bethge, "A note on the evaluation of generative models", 2016, arXiv 1511.01844, section 3.1.
    """
    if not quantization_levels:
        return x_0
    return add_uniform_noise(x_0, uniform(x_0.shape, rng, x_0.dtype), quantization_levels)


def add_uniform_noise(x_0: Tensor, u: Tensor, quantization_levels: int) -> Tensor:
    """x_0 + (u - 1/2) 2 / (K - 1), u uniform in [0, 1]."""
    return x_0 + (u - 0.5) * (2 / (quantization_levels - 1))


def check_quantization_levels(quantization_levels: int) -> None:
    """Raises ValueError for a number of values that `dequantize` does not take."""
    if quantization_levels < 0 or quantization_levels == 1:
        raise ValueError(
            f"quantization_levels must be 0 (continuous data, not dequantized) or at least 2, got {quantization_levels}"
        )


def check_quantized(x_0: Tensor, quantization_levels: int) -> None:
    """Raises ValueError for data that do not have these K values; K = 0 allows any data."""
    if quantization_levels and not is_quantized(x_0, quantization_levels):
        raise ValueError(
            f"the data are not quantized to quantization_levels={quantization_levels} values in [-1, 1]: take 17 for digits, "
            "256 for bytes, 0 for continuous data"
        )
