"""DDIM and DDPM: x_s = alpha_s x_0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z, which differ in the variance v."""

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.evaluation_counters import as_protocol
from ..models.protocols import Denoiser, Energy, ExactDenoiser, Prediction, SamplingError, VariancePrediction
from ..runtime.linear_algebra import symmetric_root
from ..runtime.ranges import check_range
from ..schedules import Schedule
from .base import Memory, Sampler
from .grids import KARRAS, UNIFORM_T, Grid
from .noise import StepNoise
from .step_limits import MAX_FALL

__all__ = ["DDIM", "DDPM", "Euler", "EulerAncestral", "ExactDDPM", "posterior_variance", "transition_variance"]


def transition_variance(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Var[x_t | x_s] = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2 = sigma_t^2 (1 - SNR_t / SNR_s), DDPM's beta."""
    log_snr = schedule.log_snr(t)
    return -(schedule.normalisation(log_snr)[1] ** 2) * torch.expm1(log_snr - schedule.log_snr(s))


def posterior_variance(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Var[x_s | x_t, x_0] = sigma_s^2 (1 - SNR_t / SNR_s), DDPM's beta tilde (arXiv 2006.11239, eq. 7)."""
    log_snr = schedule.log_snr(s)
    return -(schedule.normalisation(log_snr)[1] ** 2) * torch.expm1(schedule.log_snr(t) - log_snr)


def renoise(prediction: Prediction, schedule: Schedule, s: Tensor, variance: Tensor | float) -> Tensor:
    """alpha_s x_0 + sqrt(sigma_s^2 - variance) eps: the mean of x_s."""
    alpha, sigma = schedule.alpha_sigma(s)
    return alpha * prediction.x_0 + (sigma**2 - variance).clamp(min=0).sqrt() * prediction.eps


def add_step_noise(mean: Tensor, variance: Tensor, noise: StepNoise, t: Tensor, s: Tensor) -> Tensor:
    """mean + sqrt(variance) z; exact data (sigma_s = 0) needs no z."""
    return mean + variance.sqrt() * noise.increment(t, s) if variance > 0 else mean


class DDIM(Sampler):
    """Song, Meng, Ermon, "Denoising Diffusion Implicit Models", 2021, arXiv 2010.02502, eq. 12.

    Arguments:
        eta: 0 = deterministic, 1 = DDPM with the posterior variance; v = eta^2 Var[x_s | x_t, x_0]; in [0, 1].
    """

    order = 1
    gaussian_steps = True

    def __init__(self, steps: int = 50, grid: Grid = UNIFORM_T, eta: float = 0.0):
        super().__init__(steps, grid)
        self.eta = check_range("eta", eta, "[0, 1]")
        self.stochastic = eta > 0

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        prediction = denoiser(x, t, y)
        if not self.stochastic:
            return renoise(prediction, denoiser.schedule, s, 0.0)
        variance = self.eta**2 * posterior_variance(denoiser.schedule, t, s)
        return add_step_noise(renoise(prediction, denoiser.schedule, s, variance), variance, noise, t, s)


class Euler(DDIM):
    """Euler's method for d(x / alpha) = eps d(sigma / alpha), which is DDIM with eta = 0 (arXiv 2010.02502, eq. 14)."""

    def __init__(self, steps: int = 50, grid: Grid = KARRAS):
        super().__init__(steps, grid, eta=0.0)


class EulerAncestral(Sampler):
    """An Euler step down to sigma_down, and noise of sigma_up back up to sigma_s: DDIM's update with more noise.

        sigma_up = eta sqrt(n_s^2 (n_t^2 - n_s^2) / n_t^2),  sigma_down = sqrt(n_s^2 - sigma_up^2),  n = sigma / alpha

    sigma_up is the posterior's standard deviation, so that eta = 1 is DDPM. Song, Meng, Ermon 2021, arXiv 2010.02502,
    eq. 16, in the noise levels of Karras et al. 2022, arXiv 2206.00364; the name is k-diffusion's.

    Arguments:
        eta: sigma_up relative to the posterior's standard deviation, in [0, 1].
        s_noise: factor of the noise that is added, at least 0; 1 keeps the variance.
    """

    order = 1
    gaussian_steps = True
    stochastic = True

    def __init__(self, steps: int = 50, grid: Grid = KARRAS, eta: float = 1.0, s_noise: float = 1.0):
        super().__init__(steps, grid)
        self.eta, self.s_noise = check_range("eta", eta, "[0, 1]"), check_range("s_noise", s_noise, "[0, inf)")

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        up = self.eta**2 * posterior_variance(denoiser.schedule, t, s)
        return add_step_noise(renoise(denoiser(x, t, y), denoiser.schedule, s, up), self.s_noise**2 * up, noise, t, s)


class DDPM(Sampler):
    """Ancestral sampling: the mean of q(x_s | x_t, x_0), with a variance between two bounds.

        log variance = f log Var[x_t | x_s] + (1 - f) log Var[x_s | x_t, x_0]

    Ho et al. 2020, arXiv 2006.11239, algorithm 2; Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 15 for the mixture. Both
    bounds are those of the step, also where it skips levels. A learned f is (v + 1) / 2 of the network's v, per value of x.
    The step to t = 0 always takes the posterior variance, since nothing removes noise after it. So does a step over which
    the noise level falls by more than MAX_FALL (`step_limits`), where the transition's variance is that of the level before.

    Arguments:
        variance: f; 0 = fixed small (the posterior's), 1 = fixed large (the transition's), between = log-linear; "learned" =
            the network's, as of ADM and DiT.

    Raises:
        ValueError: from `times`, a model without a learned variance, where one is asked for.
    """

    order = 1
    gaussian_steps = True
    stochastic = True
    max_fall = MAX_FALL

    def __init__(self, steps: int = 250, grid: Grid = UNIFORM_T, variance: float | str = 0.0):
        super().__init__(steps, grid)
        self.variance = None if variance == "learned" else check_variance(variance)  # None = the network's

    def check(self, denoiser: Denoiser | Energy) -> None:
        super().check(denoiser)
        if self.variance is None and not getattr(denoiser, "learned_variance", False):
            raise ValueError(
                "variance=learned needs a network whose output has channels for the variance (ADM, DiT), and this model has "
                "none: take sampler.variance=0 (the posterior's) to 1 (the transition's)"
            )

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        prediction = denoiser(x, t, y)
        small = posterior_variance(denoiser.schedule, t, s)
        mean = renoise(prediction, denoiser.schedule, s, small)
        if s > 0 and self.variance is None:
            return mean + learned_deviation(prediction, small, transition_variance(denoiser.schedule, t, s)) * (
                noise.increment(t, s)
            )
        variance = small
        if self.variance and s > 0:
            variance = small ** (1 - self.variance) * transition_variance(denoiser.schedule, t, s) ** self.variance
        return add_step_noise(mean, variance, noise, t, s)

    def first_order(self, prediction: Prediction, schedule: Schedule, t: Tensor, s: Tensor, noise: StepNoise) -> Tensor:
        small = posterior_variance(schedule, t, s)
        return add_step_noise(renoise(prediction, schedule, s, small), small, noise, t, s)


def check_variance(variance: float | str) -> float:
    """A fixed share of DDPM's upper bound."""
    if isinstance(variance, str):
        raise ValueError(f"variance must be learned or a number in [0, 1], got {variance}")
    return check_range("variance", variance, "[0, 1]")


def learned_deviation(prediction: Prediction, small: Tensor, large: Tensor) -> Tensor:
    """sqrt(large^f small^(1 - f)) with f = (v + 1) / 2 of the network, in the shape of x."""
    if not isinstance(prediction, VariancePrediction):
        raise SamplingError(
            "the guidance dropped the learned variance of its network: return keep_variance(prediction, that of the network), "
            "or take sampler.variance=0 to 1"
        )
    return torch.exp(small.log() / 2 + (prediction.v + 1) / 4 * (large / small).log())


class ExactDDPM(Sampler):
    """Ancestral sampling with the exact mean and covariance of x_s given x_t.

        Cov[x_s | x_t] = Var[x_s | x_t, x_0] I + c^2 Cov[x_0 | x_t],  c = alpha_s (1 - SNR_t / SNR_s)

    The fixed variances ignore the second term, the variance of x_0. On Gaussian data a step of any length is exact, also
    the one to t = 0, which draws from the posterior of x_0. Bao, Li, Zhu, Zhang, "Analytic-DPM",
    2022, arXiv 2201.06503, eq. 8, with the covariance in full in place of its mean over dimensions.
    """

    order = 1
    stochastic = True
    needs = ExactDenoiser

    def __init__(self, steps: int = 50, grid: Grid = UNIFORM_T):
        super().__init__(steps, grid)

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        schedule = denoiser.schedule
        exact = as_protocol(denoiser, ExactDenoiser)
        assert exact is not None
        small = posterior_variance(schedule, t, s)
        mean = renoise(denoiser(x, t, y), schedule, s, small)
        from_x_0 = -schedule.alpha_sigma(s)[0] * torch.expm1(schedule.log_snr(t) - schedule.log_snr(s))
        covariance = from_x_0**2 * exact.covariance(x, t, y)
        covariance = covariance + small.to(covariance) * torch.eye(covariance.shape[-1]).to(covariance)
        z = noise.increment(t, s).to(covariance).flatten(1)
        drawn = symmetric_root(covariance) @ z[..., None]
        return mean + drawn.reshape(mean.shape).to(mean)
