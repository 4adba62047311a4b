"""Guidance by the classifier that a conditional model already is: log p(y | x_t) from its own laws of x_t given a class."""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.evaluation_counters import as_protocol, unwrap
from ..models.protocols import Classifier, Denoiser, LogDensity
from ..models.tilts import Tilt
from ..randomness import Noise
from ..schedules import EVERYWHERE
from .classifier import ClassifierGuidance

__all__ = ["DensityPosterior", "ImplicitClassifierGuidance", "ModelClassifier", "Posterior"]


class ModelClassifier(Classifier):
    """log p(y | x_t) = log p(x_t | y) + log p(y), minus the logsumexp over the classes, of a conditional model.

    Arguments:
        model: with classes.
        prior: p(y), one positive number per class, normalized here; None = uniform.
        rows: evaluations of the model for one x_t.

    Raises:
        ValueError: a prior of another length, or with a number that is not positive.
    """

    def __init__(self, model: Denoiser, prior: Sequence[float] | None, rows: int):
        self.model, self.schedule, self.num_classes = model, model.schedule, model.num_classes
        weights = [1.0] * model.num_classes if prior is None else [float(part) for part in prior]
        if len(weights) != model.num_classes or not all(0 < part < float("inf") for part in weights):
            raise ValueError(
                f"guidance.posterior.prior must be one positive number for each of {model.num_classes} classes, got {weights}"
            )
        self.log_prior = torch.tensor(weights, dtype=torch.float64).log().log_softmax(0)
        self.rows = rows

    def start(self, noise: Noise | None, times: Tensor) -> Self:
        """A copy for one run with its random draws; itself if it draws nothing."""
        return self

    def log_likelihoods(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(x_t | y) of every class, [B, num_classes], up to a constant of each row."""
        raise NotImplementedError

    def log_prob(self, x_t: Tensor, t: Tensor | None) -> Tensor:
        assert t is not None, "the class of noised data needs a time"
        found = self.log_likelihoods(x_t, t)
        return (found + self.log_prior.to(found)).log_softmax(1)

    def stack_classes(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, t and the classes of one call that evaluates every row for every class; row b of class y is y B + b."""
        count = self.num_classes
        labels = torch.arange(count, device=x_t.device).repeat_interleave(len(x_t))
        return x_t.repeat(count, *[1] * (x_t.ndim - 1)), t if t.ndim == 0 else t.repeat(count), labels

    def unstack(self, value: Tensor) -> Tensor:
        """[num_classes B] of `stack_classes` as [B, num_classes]."""
        return value.unflatten(0, (self.num_classes, -1)).T


class DensityClassifier(ModelClassifier):
    """The posterior of a model whose log p(x_t | y) is explicit: one batched pass, without randomness."""

    def __init__(self, model: Denoiser, density: LogDensity, prior: Sequence[float] | None):
        super().__init__(model, prior, model.num_classes)
        self.density = density

    def log_likelihoods(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.unstack(self.density.log_density(*self.stack_classes(x_t, t)))


class OwnClassifier(ModelClassifier):
    """The posterior that a model states itself, with the p(y) of its training."""

    def __init__(self, model: Denoiser, classifier: Classifier):
        super().__init__(model, None, model.num_classes)
        self.classifier = classifier

    def log_likelihoods(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.classifier.log_prob(x_t, t)


class Posterior:
    """How log p(y | x_t) is found from a conditional model.

    Attributes:
        exact: whether it is the model's own and draws nothing, so that guidance names a law.
    """

    exact = False

    def of(self, model: Denoiser) -> ModelClassifier:
        """The classifier of a model.

        Raises:
            ValueError: a model that does not allow it.
        """
        raise NotImplementedError


class DensityPosterior(Posterior):
    """log p(y | x_t) of a model with an explicit log-density: oracles, objective=cdm, energy, dual_score, ctsm, diffclf.

    Exact for the model: log p(x_t | y) + log p(y) - log sum_y' p(y') p(x_t | y').

    Arguments:
        prior: p(y), one positive number per class; None = the p(y) of the model where it has one (an oracle's shares of the
            classes, those that objective=energy learned), else uniform.
    """

    exact = True

    def __init__(self, prior: Sequence[float] | None = None):
        self.prior = prior

    def of(self, model: Denoiser) -> ModelClassifier:
        density, classifier = as_protocol(model, LogDensity), as_protocol(model, Classifier)
        if density is None:
            raise ValueError(
                f"guidance/posterior=density needs a model with a log-density, got {type(model).__name__}; take "
                "guidance/posterior=bound"
            )
        if self.prior is None and classifier is not None:
            return OwnClassifier(model, classifier)
        if not density.normalized:
            raise ValueError(
                f"guidance.posterior.prior must be null: log p(x_t | y) of this {type(model).__name__} is known up to a "
                "constant of each class, so that its own p(y) cannot be replaced"
            )
        return DensityClassifier(model, density, self.prior)


DENSITY = DensityPosterior()


class ImplicitClassifierGuidance(ClassifierGuidance):
    """Classifier guidance whose classifier is the guided model: x_0 + w sigma^2 / alpha g, g = grad log p(y | x_t).

        g = grad log p(x_t | y) - grad log p(x_t),   p(x_t) = sum_y p(y) p(x_t | y)

    The prediction given y is guided, so scale w is classifier-free guidance of scale 1 + w, where the model's law without a
    condition is that mixture of its classes (Ho & Salimans 2022, arXiv 2207.12598, section 3.2). No null condition is needed.
    The gradient goes through the model.

    Arguments:
        denoiser: a model with classes, or guidance around one.
        posterior: how log p(y | x_t) is found.
        scale: w; 0 = off.
        interval: (lo, hi] in noise level sigma / alpha.

    Raises:
        ValueError: a model with fewer than two classes, or one that the posterior does not allow.
    """

    classifier: ModelClassifier

    def __init__(
        self,
        denoiser: Denoiser,
        posterior: Posterior = DENSITY,
        scale: float = 1.0,
        interval: Sequence[float] = EVERYWHERE,
    ):
        model = unwrap(denoiser)
        if model.num_classes < 2:
            raise ValueError(
                f"guidance=implicit_classifier needs a model with at least two classes, got {model.num_classes}"
            )
        classifier = posterior.of(silence(model))
        super().__init__(denoiser, classifier, scale, interval)
        self.rows, self.exact = classifier.rows, posterior.exact

    def start(self, noise: Noise | None, times: Tensor) -> Self:
        fresh = super().start(noise, times)
        fresh.classifier = self.classifier.start(noise, times)
        return fresh

    def explain_no_law(self) -> str | None:
        return (
            super().explain_no_law()
            if self.exact
            else "guidance/posterior=bound is an estimate; take posterior=density"
        )

    def tilt(self) -> Tilt | None:
        return super().tilt() if self.exact else None

    def needs_null_law(self) -> bool:
        return False

    def marginal_eps(self, x_t: Tensor, t: Tensor, y: Condition | None, shift: Tensor) -> Tensor:
        """That of p(x_t) = p(x_t | y) p(y) / p(y | x_t): eps given y, minus the shift."""
        return unwrap(self.denoiser)(x_t, t, y).eps - shift


def silence(model: Denoiser) -> Denoiser:
    """A copy of the model that does not count its evaluations, which the guidance counts as those of a potential."""
    if model.tally is None:
        return model
    quiet = copy.copy(model)
    quiet.tally = None
    return quiet
