"""Classification diffusion models: training a classifier of the noise level by its answers and by its gradient."""

import math

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..energies import LevelClassifier, ratio
from ..randomness import Share, normal, uniform
from ..schedules import Schedule
from .base import Loss, Objective, drop_condition
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
        p_uncond: probability, per example, of training without its condition; in [0, 1].

    Raises:
        ValueError: p_uncond, weights, values or levels out of range; a backbone or schedule that `LevelClassifier` refuses.
    """

    compilable = False

    def __init__(
        self, backbone: Backbone, schedule: Schedule, levels: int, ce_weight: float, mse_weight: float, values: int,
        prior: list[float] | None, p_uncond: float,
    ):  # fmt: skip
        super().__init__()
        if not 0 <= p_uncond <= 1:
            raise ValueError(f"p_uncond must be in [0, 1], got {p_uncond}")
        if levels < 3:
            raise ValueError(
                f"levels must be at least 3, got {levels}; objective=nce has no level between data and noise"
            )
        if not (ce_weight >= 0 and mse_weight >= 0 and 0 < ce_weight + mse_weight < float("inf")):
            raise ValueError(
                f"ce_weight and mse_weight must be at least 0 and not both 0, got {ce_weight} and {mse_weight}"
            )
        if values < 0 or values == 1:
            raise ValueError(f"values must be 0 (continuous data, taken as they are) or at least 2, got {values}")
        self.model = LevelClassifier(backbone, schedule, levels - 2, p_uncond > 0, prior)
        self.ce_weight, self.mse_weight, self.values = float(ce_weight), float(mse_weight), values
        self.p_uncond = float(p_uncond)

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        model, learning = self.model, torch.is_grad_enabled()
        k = self.draw_levels(len(x_0), rng)
        x_0 = dequantized(x_0, self.values, rng)
        alpha, sigma = (part.to(x_0) for part in model.scales(k, x_0.ndim))
        eps = normal(x_0.shape, rng, x_0.dtype)
        y = drop_condition(y, self.p_uncond, rng)
        with torch.enable_grad():  # the loss holds a gradient, in evaluation too
            x = (alpha * x_0 + sigma * eps).requires_grad_()
            logits = model.logits(x, y)
            through = learning and self.mse_weight > 0
            (slope,) = torch.autograd.grad(ratio(logits, k).sum(), x, create_graph=through, retain_graph=learning)
        x, logits = x.detach(), logits if learning else logits.detach()
        told = (k <= model.steps) & (sigma.flatten() > 0)
        mse = (eps - sigma * (x - slope)).square().flatten(1).mean(1) * told
        log_prob = logits.log_softmax(1)
        ce = -log_prob.gather(1, k[:, None])[:, 0]
        terms = {
            "ce": ce.detach(),
            "mse": mse.detach() / self.share_told,  # the mean over the levels that it is defined at
            "accuracy": (log_prob.argmax(1) == k).to(ce),
        }
        return Loss(self.ce_weight * ce + self.mse_weight * mse, terms)

    def draw_levels(self, n: int, rng: torch.Generator | Share) -> Tensor:
        """k from the prior, [n], evenly spread over a batch."""
        edges = torch.tensor(self.model.prior, dtype=torch.float64, device=rng.device).cumsum(0)
        return torch.searchsorted(edges, places(n, rng, True), right=True).clamp(max=self.model.steps + 1)

    @property
    def share_told(self) -> float:
        """The probability of a level at which the MSE is defined."""
        exact = math.isinf(self.model.schedule.log_snr_max)
        return sum(self.model.prior[int(exact) : -1])


def dequantized(x_0: Tensor, values: int, rng: torch.Generator | Share) -> Tensor:
    """Data of K values in [-1, 1] with uniform noise as wide as their distance, 2 / (K - 1); of 0 values as they are.

    Theis, van den Oord, Bethge, "A note on the evaluation of generative models", 2016, arXiv 1511.01844, section 3.1.
    """
    return x_0 + (uniform(x_0.shape, rng, x_0.dtype) - 0.5) * (2 / (values - 1)) if values else x_0
