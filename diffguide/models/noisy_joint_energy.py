"""The joint energy at every noise level: class logits that are a log-density, whose gradient denoises."""

from torch import Tensor, nn

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..schedules import Schedule, check_finite_ends
from .joint_energy import joint_log_density
from .level_classifier import check_twice_differentiable, value_and_gradient
from .noisy_classifier import check_outputs
from .parameterizations import Rows, V, at_least_float32
from .protocols import Classifier, Denoiser, LogDensity, Prediction

__all__ = ["NoisyJointEnergy"]


class NoisyJointEnergy(nn.Module, Denoiser, LogDensity, Classifier):
    """f(x, t)[y] = log p_t(x, y) up to a constant per level: log sum exp f is log p_t(x), softmax f is p(y | x_t).

        f = -||z||^2 / 2 + (alpha / sigma) u + (alpha / s) l,    u = mean_y F_y,    l = F - u,
        z = x / s,    s = sqrt(alpha^2 + sigma^2),    F = network(z, log_snr) [B, K]

    The first term is log N(0, s^2 I), so that the network need not learn it. The second cancels in the softmax; its factor
    grows at low noise, as the score does. The factor of the third is bounded and vanishes without signal, as log p(y | x_t)
    is. Hence -grad_z (u + (sigma / alpha) log sum exp (alpha / s) l), or the same with (alpha / s) l[y] in place of the log
    sum exp, is the velocity (alpha eps_hat - sigma x_0_hat) / s, of the scale of the data at every noise level.

    Guo, Ma, Jiang, Yuan, Yu, Luo, "EGC: Image Generation and Classification via a Diffusion Energy-Based Model", 2023,
    arXiv 2304.02012; Grathwohl et al. 2020, arXiv 1912.03263, is the same without noise levels.

    Arguments:
        backbone: network (z, log_snr [B], None) -> F [B, number of classes], twice differentiable.
        schedule: noise schedule with finite ends.

    Raises:
        ValueError: a backbone without noise input, without one output per class, or with a condition input; a schedule that
            is learned or has an infinite end.
    """

    has_null = True  # y = -1 is the sum over the classes

    def __init__(self, backbone: Backbone, schedule: Schedule):
        super().__init__()
        what = "an energy at every noise level"
        check_outputs(backbone, what, "unet_joint")
        if not backbone.noise_conditioned:
            raise ValueError(
                f"{what} needs the noise level as input: set backbone.noise_conditioned=true, or use backbone=unet_joint"
            )
        schedule.check_fixed(what)
        check_finite_ends(what, schedule.log_snr_max, schedule.log_snr_min)
        check_twice_differentiable(backbone, what)
        self.backbone, self.schedule, self.num_classes = backbone, schedule, backbone.out_features

    @property
    def is_compiled(self) -> bool:
        return self.backbone.is_compiled

    def parts(self, z: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """u [B] and (alpha / s) l [B, K] at a log-SNR of the schedule, float64 0-d or [B]; z float32 at least."""
        outputs = self.backbone(z, log_snr.to(z).expand(len(z)), None).to(z.dtype)
        u = outputs.mean(1)
        return u, log_snr.sigmoid().sqrt().to(z).reshape(-1, 1) * (outputs - u[:, None])

    def scale_input(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """z = x / s, float32 at least."""
        x = at_least_float32(x)
        alpha, sigma = self.schedule.scales(log_snr, x.ndim)
        return (alpha**2 + sigma**2).rsqrt().to(x) * x

    def potential(self, parts: tuple[Tensor, Tensor], log_snr: Tensor, y: Condition | None) -> Tensor:
        """u + (sigma / alpha) log sum exp (alpha / s) l, [B]; in rows with a class u + (sigma / alpha) (alpha / s) l[y]."""
        u, logits = parts
        return u + (-log_snr / 2).exp().to(u) * joint_log_density(logits, y)

    def log_density(self, x: Tensor, t: Tensor | None, y: Condition | None = None) -> Tensor:
        """log p_t(x, y), or log p_t(x) in rows without class, [B] nats, up to a constant per level; t None = 0."""
        log_snr = self.schedule.log_snr(0.0 if t is None else t)
        z = self.scale_input(x, log_snr)
        u, logits = self.parts(z, log_snr)
        return (log_snr / 2).exp().to(u) * u + joint_log_density(logits, y) - z.square().flatten(1).sum(1) / 2

    def log_prob(self, x_t: Tensor, t: Tensor | None) -> Tensor:
        """log p(y | x_t), [B, num_classes]; t None = 0."""
        log_snr = self.schedule.log_snr(0.0 if t is None else t)
        return self.parts(self.scale_input(x_t, log_snr), log_snr)[1].log_softmax(1)

    def forward(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        log_snr = self.schedule.log_snr(t)
        z = self.scale_input(x_t, log_snr)
        _, slope = value_and_gradient(lambda z: self.potential(self.parts(z, log_snr), log_snr, y), z)
        rows = self.rows(log_snr, z)
        x_t = x_t.to(z.dtype)
        return Prediction(rows.c_skip * x_t - rows.c_out * slope, rows.e_skip * x_t - rows.e_out * slope)

    def rows(self, log_snr: Tensor, like: Tensor) -> Rows:
        """The coefficients that turn the velocity, minus the gradient of `potential`, into x_0 and eps."""
        return V().rows(*self.schedule.scales(log_snr, like.ndim)).to(like)
