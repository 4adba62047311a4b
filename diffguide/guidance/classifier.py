"""Classifier guidance: the gradient of log p(y | x_t) moves the estimates of a generator that need not know y."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition, Embedding
from ..models.protocols import Classifier, Denoiser, DenoiserWrapper, Prediction
from ..schedules import Schedule

__all__ = ["ClassGuidance", "ClassifierGuidance", "at_equal_log_snr"]


def at_equal_log_snr(x_t: Tensor, t: Tensor, own: Schedule, other: Schedule) -> tuple[Tensor, Tensor]:
    """What another schedule calls x_t and t: the time of the same log-SNR, and x_t as large as that schedule has it.

    x_t = alpha x_0 + sigma eps times sqrt((alpha'^2 + sigma'^2) / (alpha^2 + sigma^2)) is alpha' x_0 + sigma' eps, for the
    same x_0 and eps. A log-SNR beyond the other schedule's ends is moved to the nearest end.
    """
    if own is other:
        return x_t, t
    log_snr = own.log_snr(t)
    there = log_snr.clamp(other.log_snr_min, other.log_snr_max)
    (alpha, sigma), (alpha_there, sigma_there) = own.scales(log_snr, x_t.ndim), other.scales(there, x_t.ndim)
    factor = ((alpha_there**2 + sigma_there**2) / (alpha**2 + sigma**2)).sqrt()
    return factor.to(x_t) * x_t, other.t_of(there).clamp(0, 1)


class ClassGuidance(DenoiserWrapper):
    """What every guidance by a classifier shares: its scale inside an interval, and classes for a generator without any.

    Rows with y = -1, and y = None, are not steered. A generator without classes is called without a condition.

    Arguments:
        denoiser: the generator, conditional or not.
        num_classes: of the classifier.
        scale: factor of the gradient, 0 = off, 1 = Bayes, negative = away from the class.
        interval: (lo, hi) in noise level sigma / alpha: guidance acts where lo < sigma / alpha <= hi.

    Raises:
        ValueError: another number of classes than the generator's, a condition that is an embedding, zero terminal SNR, a
            scale that is not finite, or an interval with lo >= hi.
    """

    conditional = True

    def __init__(self, denoiser: Denoiser, num_classes: int, scale: float, interval: Sequence[float]):
        super().__init__(denoiser)
        name = type(self).__name__
        if denoiser.conditional and denoiser.num_classes != num_classes:
            own = f"{denoiser.num_classes} classes" if denoiser.num_classes else "embeddings for a condition"
            raise ValueError(f"the classifier knows {num_classes} classes, and the model that it is to steer has {own}")
        if denoiser.schedule.zero_terminal_snr:
            raise ValueError(
                f"{name} divides by alpha, and {type(denoiser.schedule).__name__} holds no signal at t = 1 "
                "(log_snr_min=-inf): a model with a finite log_snr_min is needed"
            )
        if not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number, got {scale}")
        if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
            raise ValueError(f"interval must be a pair 0 <= lo < hi of noise levels sigma/alpha, got {list(interval)}")
        self.classes, self.scale, self.interval = num_classes, float(scale), (float(interval[0]), float(interval[1]))

    num_classes = property(lambda self: self.classes)

    def inside(self, t: Tensor) -> Tensor:
        """Whether guidance acts at t, in the shape of t."""
        low, high = self.interval
        level = self.schedule.noise_level(t)
        return (low < level) & (level <= high)

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        return labelled and bool(self.inside(times).any())

    def scale_at(self, t: Tensor) -> Tensor:
        """The scale inside the interval, 0 outside; float64 in the shape of t."""
        return torch.where(self.inside(t), torch.tensor(self.scale, dtype=torch.float64, device=t.device), 0.0)

    def unguided(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        """The generator's own answer."""
        return self.denoiser(x_t, t, y if self.denoiser.conditional else None)

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        scale = self.scale_at(t)
        if isinstance(y, Embedding):
            raise ValueError(f"{type(self).__name__} needs class indices [B] for a condition, not an Embedding")
        if y is None or (scale.ndim == 0 and scale == 0):
            return self.unguided(x_t, t, y)
        return self.steered(x_t, t, y, scale.reshape(scale.shape + (1,) * (x_t.ndim - 1)) if scale.ndim else scale)

    def steered(self, x_t: Tensor, t: Tensor, y: Tensor, scale: Tensor) -> Prediction:
        """The guided estimates, for a scale that broadcasts over x_t, float64."""
        raise NotImplementedError


def chosen(log_prob: Tensor, y: Tensor) -> Tensor:
    """The sum over rows of log p(y | .), without the rows that have no class."""
    return torch.where(y >= 0, log_prob.gather(1, y.clamp(min=0)[:, None])[:, 0], 0.0).sum()


def moved(prediction: Prediction, step: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
    """The estimates with the score moved by a step: x_0 + sigma^2 / alpha step, eps - sigma step."""
    step = step.to(prediction.x_0.dtype)
    return Prediction(
        prediction.x_0 + (sigma**2 / alpha).to(step) * step,
        prediction.eps - sigma.to(step) * step,
    )


class ClassifierGuidance(ClassGuidance):
    """x_0 + w sigma^2 / alpha grad log p(y | x_t),  eps - w sigma grad log p(y | x_t): the score of p(x_t) p(y | x_t)^w.

    Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv 2105.05233, algorithm 2 and eq. 14. It
    is exact for the ODE and for every sampler; algorithm 1 moves the mean of an ancestral step by w times the step's
    variance instead, which is the same as steps shrink. A classifier with another schedule is asked at the same log-SNR.

    Arguments:
        denoiser: the generator, conditional or not.
        classifier: of noisy data, for all noise levels.
        scale: w; 0 = off, 1 = Bayes on an unconditional generator; ADM has 1 to 10.
        interval: (lo, hi) in noise level sigma / alpha: guidance acts where lo < sigma / alpha <= hi.

    Raises:
        ValueError: no classifier of noisy data, and as `ClassGuidance`.
    """

    def __init__(self, denoiser: Denoiser, classifier: Classifier, scale: float, interval: Sequence[float]):
        if not isinstance(classifier, Classifier):
            raise ValueError(
                f"the classifier must be one of noisy data (diffguide-train objective=classifier), got a "
                f"{type(classifier).__name__}"
            )
        if getattr(classifier, "schedule", None) is None:
            raise ValueError(
                f"the classifier must be one of noisy data (diffguide-train objective=classifier), and a "
                f"{type(classifier).__name__} knows no noise levels"
            )
        super().__init__(denoiser, classifier.num_classes, scale, interval)
        self.classifier = classifier

    def steered(self, x_t: Tensor, t: Tensor, y: Tensor, scale: Tensor) -> Prediction:
        prediction = self.unguided(x_t, t, y)
        step = scale.to(x_t.device) * self.gradient(x_t, t, y)
        return moved(prediction, step, *self.schedule.alpha_sigma(t, x_t.ndim))

    def gradient(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """grad log p(y | x_t) in the shape of x_t, 0 in rows without a class; itself differentiable where x_t is."""
        further = torch.is_grad_enabled() and x_t.requires_grad
        with torch.enable_grad():
            x = x_t if further else x_t.detach().requires_grad_()
            self.denoiser.count_potential(len(x))
            log_prob = self.classifier.log_prob(*at_equal_log_snr(x, t, self.schedule, self.classifier.schedule))
            return torch.autograd.grad(chosen(log_prob, y), x, create_graph=further)[0]
