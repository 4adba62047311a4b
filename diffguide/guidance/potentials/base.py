"""The base of potential guidance and its plain forms: Bayes' rule with exp f in place of p(y | x_t).

score of p_t(x_t) exp(w f):    x_0 + w (sigma^2 / alpha) g,    eps - w sigma g,    g = grad_{x_t} f
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ...backbones.conditions import Condition, has_condition
from ...models.evaluation_counters import count_potential
from ...models.protocols import Denoiser, Energy, Prediction, SamplingError, WeightedPrediction, keep_variance
from ...models.tilts import PotentialTerm, Tilt
from ...randomness import Noise
from ...schedules import EVERYWHERE, Interval, broadcast_rows
from ..base import ScaledGuidance, check_uncompiled, per_row_float
from .densities import PotentialEnergy
from .values import LogPotential, Potential, build_potential, compute_gradient, evaluate, reads_class

__all__ = [
    "BRIGHTNESS",
    "BayesGuidance",
    "Brightness",
    "LogPotential",
    "NoisyPotentialGuidance",
    "Potential",
    "PotentialGuidance",
    "PotentialGuidanceBase",
    "tilts_energy",
]


class Brightness(Potential):
    """The sum of an example's values: it makes grey images brighter. The simplest log-potential."""

    def __call__(self, x: Tensor, y: Condition | None) -> Tensor:
        return x.flatten(1).sum(1)


BRIGHTNESS = Brightness()


class PotentialGuidanceBase(ScaledGuidance):
    """A denoiser guided by a log-potential: in an interval, in some rows, with gradients.

    Arguments:
        denoiser: conditional or not.
        potential: f(x, y) -> [B].
        scale: of the gradient; 0 = off, any finite number.
        interval: (lo, hi] in noise level sigma / alpha.

    Raises:
        ValueError: a potential that is not callable; an interval up to inf on a schedule that ends in pure noise, where x_t
            does not depend on x_0.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        potential: LogPotential = BRIGHTNESS,
        scale: float = 1.0,
        interval: Sequence[float] = EVERYWHERE,
    ):
        super().__init__(denoiser, scale, interval)
        if denoiser.schedule.zero_terminal_snr and self.interval.high == math.inf:
            raise ValueError(
                f"interval must end below infinity: {type(denoiser.schedule).__name__} starts from pure noise (alpha = 0), "
                "where potentials have no gradient; set guidance.interval=[0,100], or take a finite log_snr_min"
            )
        self.potential = build_potential(potential)

    @property
    def off(self) -> bool:
        """Whether the denoiser is unchanged."""
        return self.scale == 0

    def start(self, noise: Noise | None, times: Tensor) -> Self:
        fresh = super().start(noise, times)
        if isinstance(self.potential, Potential):
            fresh.potential = self.potential.start(noise, times)
        return fresh

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        return super().acts_at(times, labelled) and (labelled or not reads_class(self.potential))

    def guided_rows(self, t: Tensor, y: Condition | None, x: Tensor) -> Tensor | None:
        """Which rows are guided: [B], or None for all of them."""
        acts = self.acts(t)
        rows = None if acts.ndim == 0 else acts.to(x.device)
        if y is None or not reads_class(self.potential):
            return rows
        return has_condition(y) if rows is None else rows & has_condition(y)

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        inactive = self.off or not bool(self.acts(t).any())
        if inactive or (y is None and reads_class(self.potential)):
            return self.denoiser(x_t, t, y)
        graph = torch.is_grad_enabled() and x_t.requires_grad
        plain, guided = self.guide(x_t, t, y, graph)
        rows = self.guided_rows(t, y, x_t)
        if rows is not None:
            rows = broadcast_rows(rows, x_t.ndim)
            guided = Prediction(torch.where(rows, guided.x_0, plain.x_0), torch.where(rows, guided.eps, plain.eps))
        return keep_variance(guided if graph else Prediction(guided.x_0.detach(), guided.eps.detach()), plain)

    def guide(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        """The unguided prediction, and the one guided in every row: here by Bayes' rule, through the network.

        Arguments:
            graph: whether the result will be differentiated with respect to x_t.
        """
        prediction, gradient = self.differentiate_network(x_t, t, y, graph)
        return prediction, self.apply_bayes(prediction, t, gradient)

    def value(self, x_0: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        """The log-potential of x0_hat at a noise level, [B]."""
        return self.evaluate(x_0, y)

    def evaluate(self, x: Tensor, y: Condition | None) -> Tensor:
        """f(x, y), [B]; counts the evaluation."""
        count_potential(self.denoiser, len(x))
        return evaluate(self.potential, x, y)

    def differentiate_network(
        self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool
    ) -> tuple[Prediction, Tensor]:
        """The prediction and grad_{x_t} f(x0_hat(x_t)), through the network, in any grad mode."""
        with torch.enable_grad():
            x, prediction = self.predict_with_graph(x_t, t, y, graph)
            value = self.value(prediction.x_0, t, y)
            return prediction, compute_gradient(self.potential, value, x, graph)

    def predict_with_graph(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Tensor, Prediction]:
        """x_t, and the prediction as a function of it, for gradients through the network."""
        x = x_t if graph else x_t.detach().requires_grad_()
        check_uncompiled(self.denoiser)
        prediction = self.denoiser(x, t, y)
        if not prediction.x_0.requires_grad:
            raise SamplingError(
                f"this guidance differentiates the model, and {type(self.denoiser).__name__} has no gradient: take "
                "guidance=mpgd"
            )
        return x, prediction

    def differentiate(self, x_0: Tensor, t: Tensor, y: Condition | None, graph: bool) -> Tensor:
        """grad_{x_0} f(x_0), without the network."""
        with torch.enable_grad():
            x = x_0 if graph else x_0.detach().requires_grad_()
            return compute_gradient(self.potential, self.value(x, t, y), x, graph)

    def scales(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma, shaped to multiply x."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        return per_row_float(alpha, x), per_row_float(sigma, x)

    def apply_bayes(self, prediction: Prediction, t: Tensor, gradient: Tensor) -> Prediction:
        """x_0 + w (sigma^2 / alpha) g, eps - w sigma g."""
        alpha, sigma = self.scales(t, gradient)
        return Prediction(
            prediction.x_0 + self.scale * sigma**2 / alpha * gradient, prediction.eps - self.scale * sigma * gradient
        )


class BayesGuidance(PotentialGuidanceBase):
    """The base of methods that mean the law p(x) exp(w f(x)), however they approach it.

    Their value at a noise level, w times what they differentiate, twists the law there; any twist leads to the same law.
    """

    def explain_no_law(self) -> str | None:
        return self.denoiser.explain_no_law()

    def predict_weighted(self, x_t: Tensor, t: Tensor, y: Condition | None) -> WeightedPrediction:
        if self.off or not bool(self.acts(t)) or (y is None and reads_class(self.potential)):
            return self.denoiser.predict_weighted(x_t, t, y)
        inner, value, gradient = self.twist(x_t, t, y)
        rows = self.guided_rows(t, y, x_t)
        if rows is not None:
            value = torch.where(rows, value, 0.0)
            gradient = torch.where(broadcast_rows(rows, x_t.ndim), gradient, 0.0)
        guided = keep_variance(self.apply_bayes(inner.guided, t, gradient), inner.guided)
        value = self.scale * value.double()
        return inner._replace(guided=guided, value=value if inner.value is None else value + inner.value)

    def twist(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[WeightedPrediction, Tensor, Tensor]:
        """The prediction inside, the value f [B] and its gradient with respect to x_t; here through the network."""
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            check_uncompiled(self.denoiser)
            inner = self.denoiser.predict_weighted(x, t, y)
            value = self.value(inner.guided.x_0, t, y)
            gradient = compute_gradient(self.potential, value, x, False)
        return inner.detach(), value.detach(), gradient

    def explain_no_density(self) -> str | None:
        if self.interval != EVERYWHERE:
            return "a potential that acts at some noise levels has none; take no guidance.interval"
        return super().explain_no_density()

    def guided_log_density(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        inner = self.denoiser.guided_log_density(x_t, t, y)
        if self.off or (y is None and reads_class(self.potential)):
            return inner
        value, rows = self.noised_value(x_t, t, y), self.guided_rows(t, y, x_t)
        return inner + self.scale * (value if rows is None else torch.where(rows, value, 0.0))

    def noised_value(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        """f as a function of x_t, [B]; here of x0_hat."""
        return self.value(self.denoiser(x_t, t, y).x_0, t, y)

    def end_value(self, x: Tensor, y: Condition | None) -> Tensor | None:
        inner = self.denoiser.end_value(x, y)
        if self.off or (y is None and reads_class(self.potential)):
            return inner
        value = self.scale * self.evaluate(x, y).double()
        if y is not None and reads_class(self.potential):
            value = torch.where(has_condition(y), value, 0.0)
        return value if inner is None else value + inner

    def tilt(self) -> Tilt | None:
        inner = self.denoiser.tilt()
        term = PotentialTerm(self.scale, self.potential, reads_class(self.potential))
        return None if inner is None else inner.times(Tilt((), (term,)))


class TiltsEnergy:
    """The base of potential guidance that takes an energy too, and makes a `PotentialEnergy` of it."""

    def __new__(
        cls,
        denoiser: Denoiser | Energy | None = None,  # None only where an object is copied
        potential: LogPotential = BRIGHTNESS,
        scale: float = 1.0,
        interval: Sequence[float] = EVERYWHERE,
    ):
        if not isinstance(denoiser, Energy):
            return super().__new__(cls)
        if Interval.of(interval) != EVERYWHERE:
            raise ValueError(
                f"interval must be [0, inf] for an energy, which has no noise levels, got {list(interval)}"
            )
        return PotentialEnergy(denoiser, potential, scale)


def tilts_energy(guidance: Any) -> bool:
    """Whether a class of guidance takes an energy."""
    return isinstance(guidance, type) and issubclass(guidance, TiltsEnergy)


class PotentialGuidance(TiltsEnergy, BayesGuidance):
    """Bayes' rule with exp f(x0_hat) in place of p(y | x_t): x_0 + w (sigma^2 / alpha) g, eps - w sigma g, g = grad_{x_t} f.

    The gradient goes through the network. Chung et al., "Diffusion Posterior Sampling", 2023, arXiv 2209.14687, theorem 1
    with f = log p(y | x_0); Bansal et al., "Universal Guidance for Diffusion Models", 2023, arXiv 2302.07121, with f =
    -loss and s(t) = w sigma. The mean replaces the distribution p(x_0 | x_t). For Gaussian x_0 given x_t of covariance V
    and noise s this is too strong: the gain has the precision 1 / s^2 instead of (V + s^2)^-1.

    Arguments:
        denoiser: one whose prediction can be differentiated.
        potential: f(x0_hat, y) -> [B].
        scale: w; 0 = off, 1 = Bayes.
        interval: (lo, hi] in noise level sigma / alpha.
    """


class NoisyPotentialGuidance(TiltsEnergy, BayesGuidance):
    """Bayes' rule with exp f(x_t): the potential of the noised data, without differentiating the network.

    Song et al. 2021, arXiv 2011.13456, eq. 14. It is exact where f is log p(y | x_t) of noised data.

    Arguments:
        denoiser: any.
        potential: f(x_t, y) -> [B].
        scale: w; 0 = off, 1 = Bayes.
        interval: (lo, hi] in noise level sigma / alpha.
    """

    def guide(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        prediction = self.denoiser(x_t, t, y)
        return prediction, self.apply_bayes(prediction, t, self.differentiate(x_t, t, y, graph))

    def noised_value(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        return self.value(x_t, t, y)

    def twist(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[WeightedPrediction, Tensor, Tensor]:
        inner = self.denoiser.predict_weighted(x_t, t, y)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            value = self.value(x, t, y)
            return inner, value.detach(), compute_gradient(self.potential, value, x, False)
