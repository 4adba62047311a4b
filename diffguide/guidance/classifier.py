"""Classifier guidance: the gradient of log p(y | x_t) shifts the predictions of a generator, with or without classes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition, RowCondition
from ..models.evaluation_counters import count_potential, unwrap
from ..models.protocols import Classifier, Denoiser, Prediction, WeightedPrediction, keep_variance
from ..models.tilts import PotentialTerm, Tilt
from ..schedules import EVERYWHERE, Schedule, broadcast_rows, same_schedule
from .base import ScaledGuidance
from .contrast_laws import squared_norm

__all__ = ["ClassGuidance", "ClassifierGuidance", "match_log_snr", "shift_score", "sum_label_log_prob"]


def match_log_snr(x_t: Tensor, t: Tensor, own: Schedule, other: Schedule) -> tuple[Tensor, Tensor]:
    """x_t and t in another schedule: the time of the same log-SNR, and x_t scaled to that schedule.

    x_t = alpha x_0 + sigma eps times sqrt((alpha'^2 + sigma'^2) / (alpha^2 + sigma^2)) is alpha' x_0 + sigma' eps, for the
    same x_0 and eps. A log-SNR beyond the other schedule's ends is clamped to them.
    """
    if same_schedule(own, other):
        return x_t, t
    log_snr = own.log_snr(t)
    there = log_snr.clamp(other.log_snr_min, other.log_snr_max)
    (alpha, sigma), (alpha_there, sigma_there) = own.scales(log_snr, x_t.ndim), other.scales(there, x_t.ndim)
    factor = ((alpha_there**2 + sigma_there**2) / (alpha**2 + sigma**2)).sqrt()
    return factor.to(x_t) * x_t, other.t_of(there).clamp(0, 1)


class ClassGuidance(ScaledGuidance):
    """The base of guidance by a classifier, which gives classes to a generator without any.

    Rows with y = -1, and y = None, are not guided. A generator without classes is called without a condition.

    Arguments:
        denoiser: the generator, conditional or not.
        num_classes: of the classifier.
        scale: factor of the gradient, 0 = off, 1 = Bayes, negative = away from the class.
        interval: (lo, hi] in noise level sigma / alpha.

    Raises:
        ValueError: another number of classes than the generator's, zero terminal SNR; from a call, an embedding for a
            condition.
    """

    conditional = True

    def __init__(self, denoiser: Denoiser, num_classes: int, scale: float, interval: Sequence[float]):
        super().__init__(denoiser, scale, interval)
        if denoiser.conditional and denoiser.num_classes != num_classes:
            own = f"{denoiser.num_classes} classes" if denoiser.num_classes else "embeddings for a condition"
            raise ValueError(f"the classifier has {num_classes} classes, and the model has {own}")
        if denoiser.schedule.zero_terminal_snr:
            raise ValueError(
                f"{type(self).__name__} divides by alpha, which is 0 at t = 1 of this {type(denoiser.schedule).__name__} "
                "(log_snr_min=-inf): take a model with a finite log_snr_min"
            )
        self.classes = num_classes

    num_classes = property(lambda self: self.classes)

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        return labelled and super().acts_at(times, labelled)

    def scale_at(self, t: Tensor) -> Tensor:
        """The scale inside the interval, 0 outside; float64 in the shape of t."""
        return torch.where(self.acts(t), torch.tensor(self.scale, dtype=torch.float64, device=t.device), 0.0)

    def predict_unguided(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        """The generator's prediction."""
        return self.denoiser(x_t, t, y if self.denoiser.conditional else None)

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        scale = self.scale_at(t)
        if isinstance(y, RowCondition):
            raise ValueError(f"{type(self).__name__} needs class indices [B] for a condition, got {type(y).__name__}")
        if y is None or (scale.ndim == 0 and scale == 0):
            return self.predict_unguided(x_t, t, y)
        return self.guide(x_t, t, y, broadcast_rows(scale, x_t.ndim))

    def guide(self, x_t: Tensor, t: Tensor, y: Tensor, scale: Tensor) -> Prediction:
        """The guided prediction, for a scale that broadcasts over x_t, float64."""
        raise NotImplementedError


def sum_label_log_prob(log_prob: Tensor, y: Tensor) -> Tensor:
    """The sum over rows of log p(y | .), without rows of y = -1."""
    return torch.where(y >= 0, log_prob.gather(1, y.clamp(min=0)[:, None])[:, 0], 0.0).sum()


def shift_score(prediction: Prediction, step: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
    """The prediction with a step added to its score: x_0 + sigma^2 / alpha step, eps - sigma step."""
    step = step.to(prediction.x_0.dtype)
    shifted = Prediction(prediction.x_0 + (sigma**2 / alpha).to(step) * step, prediction.eps - sigma.to(step) * step)
    return keep_variance(shifted, prediction)


class ClassifierGuidance(ClassGuidance):
    """x_0 + w sigma^2 / alpha grad log p(y | x_t),  eps - w sigma grad log p(y | x_t): the score of p(x_t) p(y | x_t)^w.

    Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv 2105.05233, algorithm 2 and eq. 14. It
    is exact for the ODE, with every sampler. Algorithm 1 shifts the mean of an ancestral step by w times the step's variance
    instead, which agrees as steps shrink. A classifier with another schedule is evaluated at the same log-SNR.

    Arguments:
        denoiser: the generator, conditional or not.
        classifier: of noisy data, for all noise levels.
        scale: w; 0 = off, 1 = Bayes on an unconditional generator; ADM has 1 to 10.
        interval: (lo, hi] in noise level sigma / alpha.

    Raises:
        ValueError: not a classifier of noisy data.

    Attributes:
        rows: evaluations of the classifier for one x_t, for the counters.
    """

    rows = 1

    def __init__(
        self, denoiser: Denoiser, classifier: Classifier, scale: float = 1.0, interval: Sequence[float] = EVERYWHERE
    ):
        if not isinstance(classifier, Classifier) or getattr(classifier, "schedule", None) is None:
            raise ValueError(
                "classifier must be trained on noisy data (diffguide-train objective=classifier), got a "
                f"{type(classifier).__name__}"
            )
        super().__init__(denoiser, classifier.num_classes, scale, interval)
        self.classifier = classifier

    def guide(self, x_t: Tensor, t: Tensor, y: Tensor, scale: Tensor) -> Prediction:
        prediction = self.predict_unguided(x_t, t, y)
        step = scale.to(x_t.device) * self.gradient(x_t, t, y)
        return shift_score(prediction, step, *self.schedule.alpha_sigma(t, x_t.ndim))

    def explain_no_law(self) -> str | None:
        if self.interval != EVERYWHERE:
            return "a classifier that acts at some noise levels has none; take no guidance.interval"
        model = unwrap(self.denoiser)
        if self.needs_null_law() and model.conditional and not model.has_null:
            return "guidance=classifier on a model with classes needs one trained with label dropout"
        inner = self.denoiser.tilt()
        if inner is not None and inner.potentials:
            return "a classifier around a potential has none; list potentials after it"
        return self.denoiser.explain_no_law()

    def predict_weighted(self, x_t: Tensor, t: Tensor, y: Condition | None) -> WeightedPrediction:
        """The spread of prod_i p_i^w_i (p q / p)^v for q = p(y | x_t), the posterior of a law p without condition.

        With c = -sigma grad log q: the spread inside, plus v (1 - v) |c|^2 + 2 v <eps_p - sum_i w_i eps_i, c>.
        """
        inner = self.denoiser.predict_weighted(x_t, t, y if self.denoiser.conditional else None)
        v = float(self.scale_at(t))
        if y is None or v == 0:
            return inner
        assert isinstance(y, Tensor)
        gradient = self.gradient(x_t, t, y)
        alpha, sigma = self.schedule.alpha_sigma(t, x_t.ndim)
        guided = shift_score(inner.guided, v * gradient, alpha, sigma)
        shift = -sigma.to(gradient) * gradient
        spread = inner.spread + v * (1 - v) * squared_norm(shift)
        if self.denoiser.conditional:  # else inner is p
            p = self.marginal_eps(x_t, t, y, shift)
            spread = spread + 2 * v * ((p - inner.guided.eps) * shift).flatten(1).double().sum(1)
        return WeightedPrediction(guided, guided, spread)

    def guided_log_density(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        inner = self.denoiser.guided_log_density(x_t, t, y if self.denoiser.conditional else None)
        if y is None or self.scale == 0:
            return inner
        assert isinstance(y, Tensor)
        return inner + self.scale * self.noised_log_prob(x_t, t, y)

    def needs_null_law(self) -> bool:
        """Whether `predict_weighted` evaluates a conditional model without a condition."""
        return True

    def marginal_eps(self, x_t: Tensor, t: Tensor, y: Condition | None, shift: Tensor) -> Tensor:
        """E[eps | x_t] of the law p whose posterior q is, for a conditional model; shift is -sigma grad log q."""
        return unwrap(self.denoiser)(x_t, t, None).eps

    def noised_log_prob(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """log p(y | x_t), 0 in rows without a class, [B]."""
        count_potential(self.denoiser, self.rows * len(x_t))
        log_prob = self.classifier.log_prob(*match_log_snr(x_t, t, self.schedule, self.classifier.schedule))
        return torch.where(y >= 0, log_prob.gather(1, y.clamp(min=0)[:, None])[:, 0], 0.0)

    def tilt(self) -> Tilt | None:
        inner = self.denoiser.tilt()
        return None if inner is None else inner.times(Tilt((), (PotentialTerm(self.scale, self.clean_log_prob, True),)))

    def clean_log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y | x) at the lowest noise level, [B]."""
        return self.noised_log_prob(x, torch.tensor(0.0, dtype=torch.float64), y)

    def gradient(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """grad log p(y | x_t) in the shape of x_t, 0 in rows without a class; itself differentiable where x_t is."""
        further = torch.is_grad_enabled() and x_t.requires_grad
        with torch.enable_grad():
            x = x_t if further else x_t.detach().requires_grad_()
            return torch.autograd.grad(self.noised_log_prob(x, t, y).sum(), x, create_graph=further)[0]
