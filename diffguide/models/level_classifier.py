"""Classifiers of the noise level: log-densities whose gradient denoises.

    eps_hat = -sigma grad_x log p_t(x),    x_0_hat = (x + sigma^2 grad_x log p_t(x)) / alpha    (Tweedie)

The gradient has a graph of its own only if gradients are enabled at entry: in objectives and in potentials that
differentiate through the network, but not in samplers, which run under no_grad.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..runtime.ranges import check_range, check_whole
from ..schedules import Schedule, as_time
from .parameterizations import at_least_float32
from .protocols import Classifier, Denoiser, LogDensity, Prediction

__all__ = ["LevelClassifier", "check_langevin_step", "langevin_step", "value_and_gradient"]

TERMINAL_TOLERANCE = 0.02  # of alpha and sigma at t = 1 from those of N(0, I)


def value_and_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """(function(x) [B], its gradient in the shape of x), for a function that maps each row of x [B, ...] on its own.

    If gradients are enabled at entry, both can be differentiated again, with respect to parameters and to x.
    """
    graph = torch.is_grad_enabled()
    x = x if graph and x.requires_grad else x.detach().requires_grad_()
    with torch.enable_grad():
        value = function(x)
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=graph)
    return (value if graph else value.detach()), slope


def check_langevin_step(step_size: float, noise_scale: float | None) -> tuple[float, float]:
    """The two numbers of `langevin_step`; a noise_scale of None is sqrt(2 step_size).

    Raises:
        ValueError: a step size that is not positive, or a negative noise scale.
    """
    step_size = check_range("step_size", step_size, "(0, inf)")
    noise_scale = math.sqrt(2 * step_size) if noise_scale is None else noise_scale
    return step_size, check_range("noise_scale", noise_scale, "[0, inf)")


def langevin_step(
    log_density: Callable[[Tensor], Tensor], x: Tensor, step_size: float, noise_scale: float, z: Tensor
) -> Tensor:
    """x + step_size grad log p(x) + noise_scale z, without a graph.

    With noise_scale = sqrt(2 step_size) the chain converges to p in the limit of small steps (unadjusted Langevin; Welling &
    Teh, "Bayesian Learning via Stochastic Gradient Langevin Dynamics", 2011, eq. 4). Less noise lowers the temperature.

    Arguments:
        log_density: maps each row of x [B, ...] on its own to [B].
        z: standard normal, in the shape of x.
    """
    with torch.no_grad():
        _, slope = value_and_gradient(log_density, x)
        return x + step_size * slope + noise_scale * z


def check_twice_differentiable(backbone: Backbone, what: str) -> None:
    """Raises ValueError for a network with fused attention, which has no second derivatives; `what` needs them."""
    if any(getattr(part, "double_differentiable", True) is False for part in backbone.modules()):
        raise ValueError(f"{what} differentiates attention twice: set backbone.double_differentiable=true")


def check_terminal_level(schedule: Schedule, what: str) -> None:
    """Raises ValueError for a learned schedule, or one whose x_1 is not close to N(0, I)."""
    schedule.check_fixed(what)
    if schedule.zero_terminal_snr:
        raise ValueError(f"{what} needs a finite schedule.log_snr_min, such as -10")
    end = torch.tensor(1.0, dtype=torch.float64, device="cpu")  # real even while a network is built on the meta device
    alpha, sigma = (float(part) for part in schedule.alpha_sigma(end))
    if alpha > TERMINAL_TOLERANCE or abs(sigma - 1) > TERMINAL_TOLERANCE:
        raise ValueError(
            f"{what} needs a schedule that ends in N(0, I), but {type(schedule).__name__} ends at alpha = {alpha:.3g}, "
            f"sigma = {sigma:.3g}; use schedule=linear, tre, cosine or flow with schedule.log_snr_min=-10"
        )


class LevelClassifier(nn.Module, Denoiser, LogDensity, Classifier):
    """log p(k | x) of the noise level k of x: a denoiser, a density and, for a conditional network, a classifier of y.

        log p_k(x) = f(x)[k] - f(x)[T + 1] + log N(x; 0, I) - log(P(k) / P(T + 1))
        E[eps | x_k = x] = sigma_k (x - grad_x (f(x)[k] - f(x)[T + 1]))

    Levels k = 0..T have the times k / T of the schedule; level T + 1 is N(0, I) and has no time. The logits f are the
    cumulative sums of the network's outputs, so that each output is a log-ratio of neighbouring levels.

    Yadin, Elata, Michaeli, "Classification Diffusion Models: Revitalizing Density Ratio Estimation", 2024, arXiv
    2402.10095, theorem 3.1 and eq. 11, 14.

    Arguments:
        backbone: network (x, None, y) -> [B, steps + 2], without noise input.
        schedule: noise schedule that ends in N(0, I), with a finite log_snr_min.
        steps: T, at least 0; with 0 (data and noise alone) the model has a density but no samples.
        has_null: whether training dropped the condition of some examples, so that y = -1 is trained.
        prior: P(k) in training, [steps + 2] positive numbers, normalised here; None = uniform.

    Raises:
        ValueError: a backbone with noise input or another number of outputs; a schedule that does not end in N(0, I); steps
            or a prior out of range; in calls: a time that is no level.
    """

    normalized = True

    def __init__(
        self, backbone: Backbone, schedule: Schedule, steps: int, has_null: bool, prior: Sequence[float] | None = None
    ):
        super().__init__()
        check_whole("steps", steps, 0)
        if backbone.out_features != steps + 2:
            found = f"{backbone.out_features}" if backbone.out_features else "an output in the shape of the data"
            raise ValueError(
                f"a classifier of {steps + 2} noise levels needs a network with {steps + 2} outputs, but this "
                f"{type(backbone).__name__} has {found}; use backbone=unet_levels for images, backbone=mlp_levels for vectors"
            )
        what = "a classifier of the noise level"
        if backbone.noise_conditioned:
            raise ValueError(f"{what} has no noise input: set backbone.noise_conditioned=false")
        check_terminal_level(schedule, what)
        check_twice_differentiable(backbone, what)
        prior = [1.0] * (steps + 2) if prior is None else list(prior)
        if len(prior) != steps + 2 or not all(0 < part < math.inf for part in prior):
            raise ValueError(f"prior must have {steps + 2} positive finite numbers, one per level, got {prior}")
        self.backbone, self.schedule, self.steps = backbone, schedule, steps
        self.num_classes, self.has_null = backbone.num_classes, bool(has_null) or not backbone.conditional
        self.prior = [part / sum(prior) for part in prior]
        self.levels = torch.arange(steps, -1, -1, dtype=torch.float64, device="cpu") / max(steps, 1)

    @property
    def conditional(self) -> bool:
        return self.backbone.conditional

    @property
    def is_compiled(self) -> bool:
        return self.backbone.is_compiled

    def logits(self, x: Tensor, y: Condition | None = None) -> Tensor:
        """f(x), [B, steps + 2], float32 at least."""
        x = at_least_float32(x)
        return self.backbone(x, None, y).to(x.dtype).cumsum(1)

    def index(self, t: Tensor | None) -> Tensor:
        """The level k of a time, in the shape of t; None = 0.

        Raises:
            ValueError: a time that is no level.
        """
        if t is None:
            return torch.tensor(0)
        index = as_time(t) * self.steps
        k = index.round()
        if t.device.type == "cpu" and bool(((index - k).abs() > 1e-6).any()):
            wrong = float(t.reshape(-1)[(index - k).abs().reshape(-1).argmax()])
            raise ValueError(f"t must be a noise level k / {self.steps} of this model, got {wrong:.6g}")
        return k.long()

    def log_ratio(self, x: Tensor, k: Tensor, y: Condition | None = None) -> Tensor:
        """f(x)[k] - f(x)[T + 1] = log P(k) p_k(x) / (P(T + 1) N(x; 0, I)), [B]; k 0-d or [B]."""
        return level_log_ratio(self.logits(x, y), k)

    def log_density(self, x: Tensor, t: Tensor | None, y: Condition | None = None) -> Tensor:
        """log p_t(x | y) in nats, [B], in one forward pass; t None = the clean level."""
        k = self.index(t)
        value = self.log_ratio(x, k.to(x.device), y)
        prior = torch.tensor(self.prior, dtype=torch.float64, device=k.device)
        normal = -0.5 * (x.to(value).square() + math.log(2 * math.pi)).flatten(1).sum(1)
        return value + normal - (prior[k] / prior[-1]).log().to(value)

    def log_prob(self, x_t: Tensor, t: Tensor | None) -> Tensor:
        """log p(y | x_t) for equally frequent classes, [B, num_classes]: one forward pass per class."""
        y = [torch.full((len(x_t),), label, device=x_t.device) for label in range(self.num_classes)]
        return torch.stack([self.log_density(x_t, t, label) for label in y], dim=1).log_softmax(1)

    def forward(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        k = self.index(t)
        x_t = at_least_float32(x_t)
        _, slope = value_and_gradient(lambda x: self.log_ratio(x, k.to(x.device), y), x_t)
        return self.predict_from_slope(x_t, slope, k)

    def predict_from_slope(self, x: Tensor, slope: Tensor, k: Tensor) -> Prediction:
        """The prediction from the gradient of `log_ratio` at levels k; the score is slope - x."""
        alpha, sigma = self.scales(k, x.ndim)
        x_factor, slope_factor = ((1 - sigma**2) / alpha).to(x), (sigma**2 / alpha).to(x)
        return Prediction(x_factor * x + slope_factor * slope, sigma.to(x) * (x - slope))

    def level_at(self, quantile: Tensor) -> Tensor:
        """The levels at quantiles of the prior in [0, 1), in their shape."""
        edges = torch.tensor(self.prior, dtype=torch.float64, device=quantile.device).cumsum(0)
        return torch.searchsorted(edges, quantile, right=True).clamp(max=self.steps + 1)

    def posterior(self, x_0: Tensor, eps: Tensor, k: Tensor) -> Tensor:
        """log P(j | x, x_0) of every level j, [B, steps + 2] float64, for x = alpha_k x_0 + sigma_k eps, levels k [B].

            P(j | x, x_0) ~ P(j) N(x; alpha_j x_0, sigma_j^2 I)

        ||x - alpha_j x_0||^2 is computed from x_0 and eps, so that nothing cancels.
        """
        x_0, eps = as_time(x_0.flatten(1)), as_time(eps.flatten(1))
        k = k.to(x_0.device)
        alpha, sigma = self.scales(torch.arange(self.steps + 2, device=k.device), 1)
        shift, own = alpha[k][:, None] - alpha, sigma[k][:, None]
        squares = [(a * b).sum(1, keepdim=True) for a, b in ((x_0, x_0), (x_0, eps), (eps, eps))]
        distance = shift**2 * squares[0] + 2 * shift * own * squares[1] + own**2 * squares[2]
        prior = torch.tensor(self.prior, dtype=torch.float64, device=k.device).log()
        joint = prior - x_0.shape[1] * sigma.log() - 0.5 * distance / sigma**2
        drawn = torch.nn.functional.one_hot(k, self.steps + 2).bool()
        joint = joint.where(sigma > 0, -math.inf)  # exact data, sigma = 0, can only come from their own level
        return torch.where(own > 0, joint, torch.where(drawn, 0.0, -math.inf)).log_softmax(1)

    def scales(self, k: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        """alpha_k and sigma_k as `Schedule.alpha_sigma` shapes them; 0 and 1 at level T + 1."""
        k = as_time(k)
        alpha, sigma = self.schedule.alpha_sigma((k / max(self.steps, 1)).clamp(max=1), ndim)
        reference = (k > self.steps).reshape(alpha.shape)
        return torch.where(reference, 0.0, alpha), torch.where(reference, 1.0, sigma)


def level_log_ratio(logits: Tensor, k: Tensor) -> Tensor:
    """logits[k] - logits[-1] of every row, [B]; k 0-d or [B]."""
    return logits.gather(1, k.expand(len(logits))[:, None])[:, 0] - logits[:, -1]
