"""Normalized log-densities at every noise level, whose gradient denoises.

In z = x / s, s = sqrt(alpha^2 + sigma^2), with a = alpha / s and b = sigma / s, so that z = a x_0 + b eps on every schedule,

    log p_t(x | y) = log N(z; 0, I) + r(z, log_snr, y) - D log s,    r = 0 at pure noise
    eps_hat = b (z - grad r),    x_0_hat = a z + (b^2 / a) grad r
"""

import math

from torch import Tensor, nn

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..runtime.ranges import check_range, check_whole
from ..schedules import Schedule, check_finite_ends
from .level_classifier import TERMINAL_TOLERANCE, check_twice_differentiable, value_and_gradient
from .parameterizations import at_least_float32
from .protocols import Denoiser, LogDensity, Prediction

__all__ = ["LevelDensity", "LevelEnergy", "TimeScore", "log_normal"]


def log_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I), [B]."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)


def unit_scales(log_snr: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """a and b, a^2 = sigmoid(log_snr) = 1 - b^2, shaped to multiply `like`."""
    log_snr = log_snr.reshape(-1, *[1] * (like.ndim - 1)) if log_snr.ndim else log_snr
    return log_snr.sigmoid().sqrt().to(like), (-log_snr).sigmoid().sqrt().to(like)


class LevelDensity(nn.Module, Denoiser, LogDensity):
    """The base: a denoiser and a log-density from `log_ratio`, r(z, log_snr, y) = log q(z | y) - log N(z; 0, I).

    Arguments:
        backbone: network (z, log_snr [B], y) -> [B, 1], twice differentiable.
        schedule: noise schedule with finite ends that ends in almost pure noise.
        has_null: whether training dropped the condition of some examples, so that y = -1 is trained.

    Raises:
        ValueError: a backbone without noise input or with another number of outputs than one; a schedule that is learned,
            has an infinite end, or does not end in pure noise.
    """

    normalized = True

    def __init__(self, backbone: Backbone, schedule: Schedule, has_null: bool):
        super().__init__()
        what = "a log-density at every noise level"
        if backbone.out_features != 1:
            found = f"{backbone.out_features}" if backbone.out_features else "an output in the shape of the data"
            raise ValueError(
                f"{what} needs a network with one output, but this {type(backbone).__name__} has {found}; use "
                "backbone=unet_energy for images, backbone=mlp_energy for vectors"
            )
        if not backbone.noise_conditioned:
            raise ValueError(f"{what} needs the noise level as input: set backbone.noise_conditioned=true")
        schedule.check_fixed(what)
        check_finite_ends(what, schedule.log_snr_max, schedule.log_snr_min)
        signal = (1 + math.exp(-schedule.log_snr_min)) ** -0.5
        if signal > TERMINAL_TOLERANCE:
            raise ValueError(
                f"{what} is normalized at pure noise, but {type(schedule).__name__} ends with a share {signal:.3g} of "
                "signal; set schedule.log_snr_min=-10"
            )
        check_twice_differentiable(backbone, what)
        self.backbone, self.schedule = backbone, schedule
        self.num_classes, self.has_null = backbone.num_classes, bool(has_null) or not backbone.conditional

    @property
    def conditional(self) -> bool:
        return self.backbone.conditional

    @property
    def is_compiled(self) -> bool:
        return self.backbone.is_compiled

    def evaluate(self, z: Tensor, log_snr: Tensor, y: Condition | None) -> Tensor:
        """The output of the network, [B]; log_snr 0-d or [B]."""
        return self.backbone(z, log_snr.to(z).expand(len(z)), y)[:, 0].to(z.dtype)

    def log_ratio(self, z: Tensor, log_snr: Tensor, y: Condition | None) -> Tensor:
        """r(z, log_snr, y), [B]; z [B, ...] float32 at least, log_snr 0-d or [B]."""
        raise NotImplementedError

    def scale_input(self, x: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """z = x / s, and log s, 0-d or [B]."""
        x = at_least_float32(x)
        alpha, sigma = self.schedule.scales(log_snr, x.ndim)
        s = (alpha**2 + sigma**2).sqrt()
        return (1 / s).to(x) * x, s.log().reshape(log_snr.shape).to(x)

    def log_density(self, x: Tensor, t: Tensor | None, y: Condition | None = None) -> Tensor:
        """log p_t(x | y) in nats, [B]; t None = 0."""
        log_snr = self.schedule.log_snr(0.0 if t is None else t)
        z, log_scale = self.scale_input(x, log_snr)
        return log_normal(z) + self.log_ratio(z, log_snr, y) - z[0].numel() * log_scale

    def forward(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        log_snr = self.schedule.log_snr(t)
        z, _ = self.scale_input(x_t, log_snr)
        _, slope = value_and_gradient(lambda z: self.log_ratio(z, log_snr, y), z)
        a, b = unit_scales(log_snr, z)
        return Prediction(a * z + b**2 / a * slope, b * (z - slope))


class LevelEnergy(LevelDensity):
    """log p_t(x | y) = log N(z; 0, I) + a F(z, log_snr, y) - D log s: one pass of a network F with one output.

    The factor a is the order at which a law approaches noise, so that the density is normalized there; a network that follows
    its change over the noise levels is normalized at all of them. Objectives train it: objective=dual_score, diffclf.
    """

    def log_ratio(self, z: Tensor, log_snr: Tensor, y: Condition | None) -> Tensor:
        return log_snr.sigmoid().sqrt().to(z) * self.evaluate(z, log_snr, y)


class TimeScore(LevelDensity):
    """log p_t(x | y) = log N(z; 0, I) + int g(z, l, y) dl - D log s, l from log_snr_min to log_snr: g is the time score.

        g = d log q(z) / d log_snr = (a / 2) sqrt(D (2 a^2 + v b^2)) F(z, log_snr, y)

    The factor is the standard deviation of the regression target of objective=ctsm. The integral is Gauss-Legendre's: a
    density costs `nodes` passes, a prediction as many passes and their gradients.

    Yu, Klami, Hyvarinen, Korba, Chehab, "Density Ratio Estimation with Conditional Probability Paths", 2025, arXiv
    2502.02300, whose densities are ratios to N(0, I).

    Arguments:
        backbone, schedule, has_null: as for `LevelDensity`.
        nodes: of the integral, 2 to 1000.
        data_variance: v, E ||x_0||^2 / D, above 0.
    """

    def __init__(
        self, backbone: Backbone, schedule: Schedule, has_null: bool, nodes: int = 32, data_variance: float = 1.0
    ):
        super().__init__(backbone, schedule, has_null)
        self.nodes = check_whole("nodes", nodes, 2, 1000)
        self.data_variance = check_range("data_variance", data_variance, "(0, inf)")

    def deviation(self, log_snr: Tensor, size: int) -> Tensor:
        """(a / 2) sqrt(D (2 a^2 + v b^2)), in the shape of log_snr, for examples of D = size elements."""
        signal = log_snr.sigmoid()
        return (signal * size * (2 * signal + self.data_variance * (1 - signal))).sqrt() / 2

    def rate(self, z: Tensor, log_snr: Tensor, y: Condition | None) -> Tensor:
        """g(z, log_snr, y), [B]."""
        return self.deviation(log_snr, z[0].numel()).to(z) * self.evaluate(z, log_snr, y)

    def log_ratio(self, z: Tensor, log_snr: Tensor, y: Condition | None) -> Tensor:
        low = self.schedule.log_snr_min
        half = (log_snr - low) / 2
        total = z.new_zeros(len(z))
        for place, weight in zip(*legendre(self.nodes)):
            total = total + (half * weight).to(z) * self.rate(z, low + half * (1 + place), y)
        return total


def legendre(nodes: int) -> tuple[list[float], list[float]]:
    """Nodes in [-1, 1] and weights of the Gauss-Legendre rule."""
    import numpy

    places, weights = numpy.polynomial.legendre.leggauss(nodes)
    return places.tolist(), weights.tolist()
