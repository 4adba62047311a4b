"""Classification diffusion models: training a classifier of the noise level by its answers and by its gradient."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..models.decoders import is_quantized
from ..models.level_classifier import LevelClassifier, level_log_ratio
from ..randomness import Share, normal, uniform
from ..schedules import Schedule
from .base import Loss, Objective, check_dropout, check_weights, drop_condition
from .levels import places

__all__ = ["CDM"]


class CDM(Objective):
    """ce_weight CE + mse_weight MSE,  CE = -log p(k | x),  MSE = ||eps - sigma_k (x - grad_x (f_k - f_(T + 1)))||^2 / D.

    Yadin, Elata, Michaeli, "Classification Diffusion Models: Revitalizing Density Ratio Estimation", 2024, arXiv
    2402.10095, algorithm 1. k is a level 0..T + 1, x = alpha_k x_0 + sigma_k eps; the MSE is masked at exact data and at the
    pure noise T + 1, where it says nothing. CE alone learns the density near the data's own level only; the MSE alone leaves
    a constant per level free, so that it knows no density and no level.

    Arguments:
        backbone: network (x, None, y) -> [B, levels].
        schedule: noise schedule that ends in N(0, I).
        levels: T + 2, at least 3; 1002 in the paper.
        ce_weight, mse_weight: of the two terms, at least 0, not both 0; 0.001 and 1 in the paper, for images.
        values: K values of an element of the data, 2 / (K - 1) apart in [-1, 1], which are spread over the space between them
            by uniform noise, so that they have a density; 0 = continuous data, taken as they are.
        prior: P(k), [levels] numbers above 0, in any unit; None = uniform.
        soft_targets: whether the cross-entropy is held against P(k | x, x_0), which is known, in place of the one level that
            was drawn: the same mean, less variance.
        p_uncond: probability, per example, of training without its condition; in [0, 1].

    Raises:
        ValueError: p_uncond, weights, values or levels out of range; a backbone or schedule that `LevelClassifier` refuses.
    """

    compilable = False

    def __init__(
        self, backbone: Backbone, schedule: Schedule, levels: int, ce_weight: float, mse_weight: float, values: int,
        prior: Sequence[float] | None, soft_targets: bool, p_uncond: float,
    ):  # fmt: skip
        super().__init__()
        check_dropout(p_uncond)
        if levels < 3:
            raise ValueError(
                f"levels must be at least 3, got {levels}; objective=nce has no level between data and noise"
            )
        check_weights(ce_weight, mse_weight)
        check_values(values)
        self.model = LevelClassifier(backbone, schedule, levels - 2, p_uncond > 0, prior)
        self.ce_weight, self.mse_weight, self.values = float(ce_weight), float(mse_weight), values
        self.soft_targets = soft_targets
        self.p_uncond = float(p_uncond)

    def check(self, x_0: Tensor) -> None:
        check_spread(x_0, self.values)

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        k = self.draw_levels(len(x_0), rng)
        x_0 = dequantized(x_0, self.values, rng)
        eps = normal(x_0.shape, rng, x_0.dtype)
        y = drop_condition(y, self.p_uncond, rng)
        log_prob, ce, mse, hit = level_terms(self.model, x_0, y, k, eps, self.mse_weight > 0)
        mse = mse.nan_to_num(nan=0.0)
        if self.soft_targets:
            ce = -(self.model.posterior(x_0, eps, k).exp().to(log_prob) * log_prob).sum(1)
        terms = {
            "ce": ce.detach(),
            "mse": mse.detach() / self.share_told,  # the mean over the levels that it is defined at
            "accuracy": hit,
        }
        return Loss(self.ce_weight * ce + self.mse_weight * mse, terms)

    def draw_levels(self, n: int, rng: torch.Generator | Share) -> Tensor:
        """k from the prior, [n], evenly spread over a batch."""
        return self.model.level_at(places(n, rng, True))

    @property
    def share_told(self) -> float:
        """The probability of a level at which the MSE is defined."""
        exact = math.isinf(self.model.schedule.log_snr_max)
        return sum(self.model.prior[int(exact) : -1])


def level_terms(
    model: LevelClassifier, x_0: Tensor, y: Condition | None, k: Tensor, eps: Tensor, through: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """log p(. | x) [B, T + 2], -log p(k | x), ||eps - eps_hat||^2 / D and whether k is the most likely, [B] each.

    The squared error is nan at exact data and at the pure noise T + 1, where it says nothing.

    Arguments:
        k: levels of x = alpha_k x_0 + sigma_k eps, [B].
        through: whether the squared error is to be differentiated, where gradients are enabled.
    """
    learning = torch.is_grad_enabled()
    alpha, sigma = (part.to(x_0) for part in model.scales(k, x_0.ndim))
    with torch.enable_grad():  # the error holds a gradient, in evaluation too
        x = (alpha * x_0 + sigma * eps).requires_grad_()
        logits = model.logits(x, y)
        (slope,) = torch.autograd.grad(
            level_log_ratio(logits, k).sum(), x, create_graph=through and learning, retain_graph=learning
        )
    log_prob, x = (logits if learning else logits.detach()).log_softmax(1), x.detach()
    told = (k <= model.steps) & (sigma.flatten() > 0)
    error = (eps - sigma * (x - slope)).square().flatten(1).mean(1)
    ce = -log_prob.gather(1, k[:, None])[:, 0]
    return log_prob, ce, torch.where(told, error, math.nan), (log_prob.argmax(1) == k).to(ce)


def dequantized(x_0: Tensor, values: int, rng: torch.Generator | Share) -> Tensor:
    """Data of K values in [-1, 1] with uniform noise as wide as their distance, 2 / (K - 1); of 0 values as they are.

    Theis, van den Oord, Bethge, "A note on the evaluation of generative models", 2016, arXiv 1511.01844, section 3.1.
    """
    return spread(x_0, uniform(x_0.shape, rng, x_0.dtype), values) if values else x_0


def spread(x_0: Tensor, u: Tensor, values: int) -> Tensor:
    """x_0 + (u - 1/2) 2 / (K - 1), u uniform in [0, 1]."""
    return x_0 + (u - 0.5) * (2 / (values - 1))


def check_values(values: int) -> None:
    """
    Raises:
        ValueError: a number K that `dequantized` does not take.
    """
    if values < 0 or values == 1:
        raise ValueError(f"values must be 0 (continuous data, taken as they are) or at least 2, got {values}")


def check_spread(x_0: Tensor, values: int) -> None:
    """
    Raises:
        ValueError: data that are not of the K values which `dequantized` is to spread; K = 0 takes any.
    """
    if values and not is_quantized(x_0, values):
        raise ValueError(
            f"values={values}: the data are not of so many values equally spaced in [-1, 1]; take 17 for digits, 256 for "
            "bytes, 0 for continuous data"
        )
