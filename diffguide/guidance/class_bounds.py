"""log p(y | x_t) of a denoiser without a log-density, by its variational bounds with common random numbers.

x_t is data of its own: noised further to z_s = r z_t + sqrt(1 - r^2) e, with z = x / sqrt(alpha^2 + sigma^2) and log-SNR
l = log(r^2 / (1 - r^2)) of z_s in z_t, so that a_s = r a_t. The prediction of e follows from that of eps,

    e_hat = sqrt(1 - r^2) / b_s eps_hat
    log p(x_t | y) - log p(x_t | y') = 1/2 int E||e - e_hat(y')||^2 - E||e - e_hat(y)||^2 dl
"""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ..models.protocols import Denoiser
from ..randomness import Noise
from ..runtime.ranges import check_finite, check_whole
from .base import per_row_float, repeat_noise
from .implicit_classifier import ModelClassifier, Posterior

__all__ = ["BoundPosterior"]

BOUND_DRAW = 2**39  # the first draw, beyond those of samplers, smoothing and conditions


class BoundClassifier(ModelClassifier):
    """The posterior by squared errors; its draws belong to a run, so that it is a smooth function of x_t and t in it."""

    draws: tuple[Tensor, ...] | None = None

    def __init__(self, model: Denoiser, settings: "BoundPosterior"):
        super().__init__(model, settings.prior, settings.levels * settings.copies * model.num_classes)
        self.settings = settings

    def start(self, noise: Noise | None, times: Tensor) -> Self:
        if noise is None:
            raise ValueError("guidance/posterior=bound draws noise: pass noise to the run")
        fresh = copy.copy(self)
        count = self.settings.levels * self.settings.copies
        fresh.draws = tuple(noise.normal(times[0], BOUND_DRAW + i) for i in range(count))
        return fresh

    def log_likelihoods(self, x_t: Tensor, t: Tensor) -> Tensor:
        if self.draws is None:
            raise ValueError("guidance/posterior=bound draws noise per run: call start(noise, times) first")
        schedule, settings = self.schedule, self.settings
        signal = schedule.log_snr(t).sigmoid()  # a_t^2
        least = torch.sigmoid(torch.tensor(schedule.log_snr_min, dtype=torch.float64, device=signal.device))
        low = torch.logit((least / signal).clamp(max=1)).clamp(settings.low, settings.high)
        width = settings.high - low  # 0 where no level noisier than x_t is left
        alpha, sigma = schedule.alpha_sigma(t)
        z = per_row_float((alpha**2 + sigma**2).rsqrt(), x_t) * x_t
        total = torch.zeros((), device=x_t.device)
        for index, draw in enumerate(self.draws):
            place = (index // settings.copies + 0.5) / settings.levels
            kept = torch.sigmoid(low + width * place)  # r^2
            e = repeat_noise(draw, x_t, "guidance/posterior=bound")
            error = self.squared_error(z, e, signal, kept)
            total = total - (width / (2 * len(self.draws))).to(error).reshape(-1, 1) * error
        return total

    def squared_error(self, z: Tensor, e: Tensor, signal: Tensor, kept: Tensor) -> Tensor:
        """||e - e_hat(z_s, y)||^2 of every class, [B, num_classes]; signal a_t^2 and kept r^2 are 0-d or [B]."""
        own = signal * kept
        t = self.schedule.t_of(own.log() - (-own).log1p()).clamp(0, 1)
        alpha, sigma = self.schedule.alpha_sigma(t)
        scale = (alpha**2 + sigma**2).sqrt()
        x = per_row_float(scale * kept.sqrt(), z) * z + per_row_float(scale * (1 - kept).sqrt(), z) * e
        rows, times, labels = self.stack_classes(x, t)
        eps = self.model(rows, times, labels).eps.unflatten(0, (self.num_classes, -1))
        found = e - per_row_float(((1 - kept) / (1 - own)).sqrt(), z) * eps
        return found.square().flatten(2).sum(2).T


class BoundPosterior(Posterior):
    """log p(y | x_t) of any denoiser with classes: the zero-shot classifier of noised data, through the network.

    Its mean over draws is exact for E[eps | x_t, y], up to the log-SNRs left out and the spacing of the levels; the gradient
    is that of the estimate. All classes share the draws of a sample, which follow from its seed. No level is noisier than the
    schedule's end: there the classes are as frequent as p(y).

    Li et al., "Your Diffusion Model is Secretly a Zero-Shot Classifier", 2023, arXiv 2303.16203, for x_t in place of x_0;
    Kingma et al. 2021, arXiv 2107.00630, eq. 17-18.

    Arguments:
        prior: p(y), one positive number per class; None = uniform.
        levels: of further noise, evenly spaced in log-SNR of z_s in z_t; 1 to 1000.
        copies: draws per level, 1 to 1000: levels times copies evaluations of each class.
        low, high: range of that log-SNR; the differences of classes vanish beyond about 6.

    Raises:
        ValueError: a range that is empty; from `of`: a denoiser with levels of its own, or with memory.
    """

    def __init__(
        self,
        prior: Sequence[float] | None = None,
        levels: int = 8,
        copies: int = 1,
        low: float = -6.0,
        high: float = 6.0,
    ):
        self.prior = prior
        self.levels, self.copies = check_whole("levels", levels, 1, 1000), check_whole("copies", copies, 1, 1000)
        self.low, self.high = check_finite("low", low), check_finite("high", high)
        if not low < high:
            raise ValueError(f"guidance.posterior.low must be below high, got {low:g} and {high:g}")

    def of(self, model: Denoiser) -> ModelClassifier:
        if model.levels is not None or model.stateful:
            what = "noise levels of its own" if model.levels is not None else "memory"
            raise ValueError(
                f"guidance/posterior=bound evaluates the model at other noise levels, and this one has {what}; take "
                "guidance/posterior=density or guidance=cfg"
            )
        return BoundClassifier(model, self)
