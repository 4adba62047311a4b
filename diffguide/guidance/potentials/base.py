"""What every potential guidance shares, and its plain forms: Bayes' rule with exp f in the place of p(y | x_t).

score of p_t(x_t) exp(w f):    x_0 + w (sigma^2 / alpha) g,    eps - w sigma g,    g = grad_{x_t} f
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...backbones.conditions import Condition, Embedding
from ...models.protocols import Denoiser, DenoiserWrapper, LogDensity, Prediction, SamplingError
from ..compiled import check_uncompiled
from .values import LogPotential, Potential, evaluated, gradient, made

__all__ = [
    "Brightness", "LogPotential", "NoisyPotentialGuidance", "Potential", "PotentialDensity", "PotentialGuidance",
    "PotentialGuidanceBase",
]  # fmt: skip


class Brightness(Potential):
    """The sum of an example's values: grey images become brighter. The plainest log-potential there is."""

    def __call__(self, x: Tensor, y: Condition | None) -> Tensor:
        return x.flatten(1).sum(1)


def over_rows(scale: Tensor, x: Tensor) -> Tensor:
    """A number per level, 0-d or [B], shaped and typed to multiply x [B, ...]."""
    scale = scale.to(torch.promote_types(x.dtype, torch.float32)).to(x.device)
    return scale.reshape(-1, *[1] * (x.ndim - 1)) if scale.ndim else scale


def per_sample(z: Tensor, x: Tensor, who: str) -> Tensor:
    """What each sample of a run has, [n, ...], for the rows x [k n, ...] of k batches, one after the other.

    A guide around this one evaluates two conditions as one batch.

    Raises:
        SamplingError: rows that are no such batches, or of another shape.
    """
    if z.ndim == x.ndim and z.shape[1:] != x.shape[1:] or len(x) % len(z):
        raise SamplingError(
            f"{who} has noise for a run of samples {list(z.shape)}, and got x {list(x.shape)}: neither they nor whole "
            "batches of them"
        )
    return z.to(x).repeat(len(x) // len(z), *[1] * (z.ndim - 1))


def with_class(y: Condition) -> Tensor:
    """Which rows have a condition, [B]."""
    return y.keep if isinstance(y, Embedding) else y >= 0


class PotentialGuidanceBase(DenoiserWrapper):
    """A denoiser that a log-potential steers: where it acts, in which rows, with which gradients.

    Arguments:
        denoiser: conditional or not.
        potential: f(x, y) -> [B].
        scale: of the gradient; 0 = off, any finite number.
        interval: (lo, hi) in noise level sigma / alpha: guidance acts where lo < sigma / alpha <= hi.

    Raises:
        ValueError: a potential that is not callable, a scale that is not finite, an interval with lo >= hi, or with hi =
            inf on a schedule that ends in pure noise, where x_t says nothing of x_0.
    """

    def __init__(self, denoiser: Denoiser, potential: LogPotential, scale: float, interval: Sequence[float]):
        super().__init__(denoiser)
        if not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number, got {scale}")
        if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
            raise ValueError(f"interval must be a pair 0 <= lo < hi of noise levels sigma/alpha, got {list(interval)}")
        if denoiser.schedule.zero_terminal_snr and interval[1] == math.inf:
            raise ValueError(
                f"interval must end below infinity: {type(denoiser.schedule).__name__} begins in pure noise (alpha = 0), "
                "where no potential has a gradient; say guidance.interval=[0,100], or take a finite log_snr_min"
            )
        self.potential, self.scale = made(potential), float(scale)
        self.interval = (float(interval[0]), float(interval[1]))

    @property
    def off(self) -> bool:
        """Whether it leaves the denoiser as it is."""
        return self.scale == 0

    def start(self, noise, times: Tensor) -> "PotentialGuidanceBase":
        fresh = super().start(noise, times)
        if isinstance(self.potential, Potential):
            fresh.potential = self.potential.start(noise, times)
        return fresh

    def acts(self, t: Tensor) -> Tensor:
        """Whether the level lies in the interval, in the shape of t."""
        level = self.schedule.noise_level(t)
        return (self.interval[0] < level) & (level <= self.interval[1])

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        return bool(self.acts(times).any()) and (labelled or not getattr(self.potential, "of_class", False))

    def rows(self, t: Tensor, y: Condition | None, x: Tensor) -> Tensor | None:
        """Which rows are guided: [B], or None for all of them."""
        acts = self.acts(t)
        rows = None if acts.ndim == 0 else acts.to(x.device)
        if not getattr(self.potential, "of_class", False):
            return rows
        return with_class(y) if rows is None else rows & with_class(y)

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        idle = self.off or not bool(self.acts(t).any())
        if idle or (y is None and getattr(self.potential, "of_class", False)):
            return self.denoiser(x_t, t, y)
        graph = torch.is_grad_enabled() and x_t.requires_grad
        plain, guided = self.guided(x_t, t, y, graph)
        rows = self.rows(t, y, x_t)
        if rows is not None:
            rows = rows.reshape(-1, *[1] * (x_t.ndim - 1))
            guided = Prediction(*(torch.where(rows, ours, theirs) for ours, theirs in zip(guided, plain)))
        return guided if graph else Prediction(*(field.detach() for field in guided))

    def guided(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        """The denoiser's prediction as it is, and guided in every row.

        Arguments:
            graph: whether derivatives of the result with respect to x_t are wanted.
        """
        raise NotImplementedError

    def value(self, x_0: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        """The log-potential of x0_hat at a level, [B]."""
        return self.asked(x_0, y)

    def asked(self, x: Tensor, y: Condition | None) -> Tensor:
        """f(x, y), [B], which counts."""
        self.denoiser.count_potential(len(x))
        return evaluated(self.potential, x, y)

    def through(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Tensor]:
        """The prediction and grad_{x_t} f(x0_hat(x_t)), through the network, whatever the grad mode at entry."""
        with torch.enable_grad():
            x = x_t if graph else x_t.detach().requires_grad_()
            check_uncompiled(self.denoiser)
            prediction = self.denoiser(x, t, y)
            if not prediction.x_0.requires_grad:
                raise SamplingError(
                    f"guidance needs gradients through the model, and {type(self.denoiser).__name__} gives none: "
                    "take guidance=mpgd, which needs none"
                )
            return prediction, gradient(self.potential, self.value(prediction.x_0, t, y), x, graph)

    def slope(self, x_0: Tensor, t: Tensor, y: Condition | None, graph: bool) -> Tensor:
        """grad_{x_0} f(x_0), with no network in it."""
        with torch.enable_grad():
            x = x_0 if graph else x_0.detach().requires_grad_()
            return gradient(self.potential, self.value(x, t, y), x, graph)

    def scales(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma, to multiply x."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        return over_rows(alpha, x), over_rows(sigma, x)

    def bayes(self, prediction: Prediction, t: Tensor, gradient: Tensor) -> Prediction:
        """x_0 + w (sigma^2 / alpha) g, eps - w sigma g."""
        alpha, sigma = self.scales(t, gradient)
        return Prediction(
            prediction.x_0 + self.scale * sigma**2 / alpha * gradient, prediction.eps - self.scale * sigma * gradient
        )


class PotentialGuidance(PotentialGuidanceBase):
    """Bayes' rule with exp f(x0_hat) for p(y | x_t): x_0 + w (sigma^2 / alpha) g, eps - w sigma g, g = grad_{x_t} f.

    The gradient goes through the network. Chung et al., "Diffusion Posterior Sampling", 2023, arXiv 2209.14687, theorem 1
    with f = log p(y | x_0); Bansal et al., "Universal Guidance for Diffusion Models", 2023, arXiv 2302.07121, with f =
    -loss and s(t) = w sigma. It puts the mean in the place of the law p(x_0 | x_t): on a Gaussian with covariance V of
    x_0 given x_t, and noise s, the gain is that of the precision 1 / s^2 in the place of (V + s^2)^-1: too strong.

    Arguments:
        denoiser: one whose prediction can be differentiated.
        potential: f(x0_hat, y) -> [B].
        scale: w; 0 = off, 1 = Bayes.
        interval: (lo, hi] in noise level sigma / alpha.

    Raises:
        ValueError: see `PotentialGuidanceBase`.
    """

    def guided(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        prediction, gradient = self.through(x_t, t, y, graph)
        return prediction, self.bayes(prediction, t, gradient)


class NoisyPotentialGuidance(PotentialGuidanceBase):
    """Bayes' rule with exp f(x_t): the potential sees the noised data, and the network is not differentiated.

    Song et al. 2021, arXiv 2011.13456, eq. 14. It is exact where f is log p(y | x_t) of noised data.

    Arguments:
        denoiser: any.
        potential: f(x_t, y) -> [B].
        scale: w; 0 = off, 1 = Bayes.
        interval: (lo, hi] in noise level sigma / alpha.

    Raises:
        ValueError: see `PotentialGuidanceBase`.
    """

    def guided(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        prediction = self.denoiser(x_t, t, y)
        return prediction, self.bayes(prediction, t, self.slope(x_t, t, y, graph))


class PotentialDensity(LogDensity):
    """log p(x | y) + w f(x, y): a log-density that a potential tilts, up to the constant that this leaves.

    Arguments:
        density: log p.
        potential: f(x, y) -> [B].
        scale: w, finite; 0 = off.

    Raises:
        ValueError: a potential that is not callable, or a scale that is not finite.
    """

    def __init__(self, density: LogDensity, potential: LogPotential, scale: float):
        if not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number, got {scale}")
        self.density, self.potential, self.scale = density, made(potential), float(scale)
        self.normalized = density.normalized and scale == 0

    def log_density(self, x: Tensor, t: Tensor | None, y: Condition | None = None) -> Tensor:
        result, of_class = self.density.log_density(x, t, y), getattr(self.potential, "of_class", False)
        if self.scale == 0 or (of_class and y is None):
            return result
        tilt = self.scale * evaluated(self.potential, x, y)
        return result + (torch.where(with_class(y), tilt, 0.0) if of_class else tilt)
