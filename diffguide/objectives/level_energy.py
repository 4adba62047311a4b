"""Training a normalized energy at every noise level: dual score matching and diffusive classification."""

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition, concatenate_conditions
from ..models.level_energy import LevelEnergy, unit_scales
from ..randomness import Share, normal
from ..runtime.ranges import check_range, check_whole
from ..schedules import Schedule
from .base import LevelObjective, Loss, drop_condition
from .levels import NoiseLevels, UniformLogSNR
from .resampling import LossSecondMoment

__all__ = ["DiffusiveClassification", "DualScore"]

EVEN_LOG_SNR = UniformLogSNR()


class LevelEnergyObjective(LevelObjective):
    """The base: a `LevelEnergy` and the distribution of its noise levels."""

    compilable = False
    model: LevelEnergy

    def __init__(self, backbone: Backbone, schedule: Schedule, levels: NoiseLevels, p_uncond: float):
        super().__init__()
        self.p_uncond = check_range("p_uncond", p_uncond, "[0, 1]")
        levels.check(schedule)
        self.model = LevelEnergy(backbone, schedule, p_uncond > 0)
        self.levels = levels


class DualScore(LevelEnergyObjective):
    """||eps - eps_hat||^2 / D + time_weight (d log p / d log_snr - (D - ||eps||^2) / 2)^2 / D^2, at fixed x / alpha.

    In x / alpha = x_0 + sqrt(v) eps, with v = 1 / SNR and log p the density of that variable: the gradient in space and the
    derivative by log v = -log_snr, each a regression on that of log N(x / alpha; x_0, v I). Both vanish in the mean at the
    true log-density. The first determines each level up to a constant (and, where modes are far apart, one per mode), the
    second how it changes, from noise, where it is N(0, I).

    Guth, Kadkhodaie, Simoncelli, "Learning normalized image densities via dual score matching", 2025, arXiv 2506.05310,
    eq. 3 to 8, with their weights (v / D) and (v / D)^2 and p(v) ~ 1 / v. Their constant is fitted at the noisiest level; here
    the model has none there.

    Arguments:
        backbone: network (z, log_snr, y) -> [B, 1].
        schedule: noise schedule with finite ends that ends in almost pure noise.
        levels: distribution of the noise level.
        time_weight: of the second term, at least 0; 1 in the paper.
        p_uncond: probability of dropping the condition of an example; in [0, 1].

    Raises:
        ValueError: a backbone or schedule that `LevelEnergy` rejects.
    """

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule,
        levels: NoiseLevels = EVEN_LOG_SNR,
        time_weight: float = 1.0,
        p_uncond: float = 0.0,
    ):
        super().__init__(backbone, schedule, levels, p_uncond)
        self.time_weight = check_range("time_weight", time_weight, "[0, inf)")

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        learning = torch.is_grad_enabled()
        t, _ = self.levels(self.model.schedule, len(x_0), rng)
        log_snr = self.model.schedule.log_snr(t)
        eps = normal(x_0.shape, rng, x_0.dtype)
        y = drop_condition(y, self.p_uncond, rng)
        a, b = unit_scales(log_snr, x_0)
        with torch.enable_grad():  # the loss holds gradients, in evaluation too
            z, level = (a * x_0 + b * eps).requires_grad_(), log_snr.to(x_0).requires_grad_()
            ratio = self.model.log_ratio(z, level, y).sum()
            slope, rate = torch.autograd.grad(ratio, (z, level), create_graph=learning)
        z, noise = z.detach(), (b**2).flatten()
        mse = (eps - b * (z - slope)).square().flatten(1).mean(1)
        # at fixed x / alpha, z moves by (b^2 / 2) z, and the density of x / alpha is a^D times that of z
        drift = (z * (slope - z)).flatten(1).sum(1) + z[0].numel()
        found = rate + noise / 2 * drift
        time = (found / z[0].numel() - (1 - eps.square().flatten(1).mean(1)) / 2).square()
        loss = mse + self.time_weight * time
        if self.training and learning:
            self.levels.observe(t, loss.detach(), rng)
        terms = {"mse": mse.detach(), "time": time.detach()}
        return Loss(self.levels.importance(t).to(loss) * loss, terms, log_snr)


class DiffusiveClassification(LevelEnergyObjective):
    """mean_j ||eps_j - eps_hat_j||^2 / D - ce_weight mean_j log softmax_i(log p_i(z_j))[j], k levels i, j of one example.

    Each example is noised to k levels, z_j = a_j x_0 + b_j eps_j; the log-densities of all k levels at each z_j classify its
    own level. Cross-entropy alone leaves a factor that all levels share; denoising fixes it. k = 2 is their binary loss.

    OuYang, Grenioux, Hernandez-Lobato, "A Diffusive Classification Loss for Learning Energy-based Generative Models", 2026,
    arXiv 2601.21025, and the authors' code (random levels). They add a free constant per level to the energies, which is part
    of the network here, and weight the denoising as EDM.

    Arguments:
        backbone: network (z, log_snr, y) -> [B, 1].
        schedule: noise schedule with finite ends that ends in almost pure noise.
        levels: distribution of each of the k noise levels.
        compared: k, at least 2: k^2 evaluations per example, of which k are differentiated twice.
        ce_weight: of the cross-entropy, at least 0.
        p_uncond: probability of dropping the condition of an example; in [0, 1].

    Raises:
        ValueError: a backbone or schedule that `LevelEnergy` rejects; levels that follow the losses.
    """

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule,
        levels: NoiseLevels = EVEN_LOG_SNR,
        compared: int = 4,
        ce_weight: float = 1.0,
        p_uncond: float = 0.0,
    ):
        super().__init__(backbone, schedule, levels, p_uncond)
        if isinstance(levels, LossSecondMoment):
            raise ValueError("objective=diffclf draws several levels of an example: take levels=uniform_log_snr")
        self.compared = check_whole("compared", compared, 2)
        self.ce_weight = check_range("ce_weight", ce_weight, "[0, inf)")

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        learning = torch.is_grad_enabled()
        n, k = len(x_0), self.compared
        draws = [self.levels(self.model.schedule, n, rng)[0] for _ in range(k)]
        log_snr = self.model.schedule.log_snr(torch.cat(draws))  # row j n + b: level j of example b
        eps = torch.cat([normal(x_0.shape, rng, x_0.dtype) for _ in range(k)])
        y = drop_condition(y, self.p_uncond, rng)
        y = None if y is None else concatenate_conditions([y] * k)
        a, b = unit_scales(log_snr, eps)
        with torch.enable_grad():  # the loss holds a gradient, in evaluation too
            z = (a * x_0.repeat(k, *[1] * (x_0.ndim - 1)) + b * eps).requires_grad_()
            own = self.model.log_ratio(z, log_snr, y)
            (slope,) = torch.autograd.grad(own.sum(), z, create_graph=learning, retain_graph=learning)
        z = z.detach()
        mse = (eps - b * (z - slope)).square().flatten(1).mean(1)
        rows = [own if learning else own.detach()]
        for shift in range(1, k):  # log N(z; 0, I) is the same at all levels
            rows.append(self.model.log_ratio(z, log_snr.roll(-shift * n), y))
        log_prob = torch.stack(rows).log_softmax(0)
        mse, ce, accuracy = (
            part.unflatten(0, (k, n)).mean(0) for part in (mse, -log_prob[0], (log_prob.argmax(0) == 0).to(mse))
        )
        terms = {"mse": mse.detach(), "ce": ce.detach(), "accuracy": accuracy}
        return Loss(mse + self.ce_weight * ce, terms)

    def figures(self, loss: Loss) -> dict[str, float]:
        """The terms of the held-out loss, averaged over all examples."""
        return {f"validation_{name}": float(values.mean()) for name, values in loss.terms.items()}
