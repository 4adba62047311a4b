"""Training class logits as an energy at every noise level: their gradient denoises, their softmax classifies."""

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..models.noisy_joint_energy import NoisyJointEnergy
from ..randomness import Share, normal
from ..runtime.ranges import check_range
from ..schedules import Schedule
from .base import LevelObjective, Loss, check_weights, drop_condition, label_log_prob, require_labels
from .levels import UNIFORM_TIME, NoiseLevels
from .weights import UNIFORM_WEIGHT, LearnedUncertainty, Weight

__all__ = ["EnergyObjective"]


class EnergyObjective(LevelObjective):
    """mse_weight weight(log_snr) ||F - F*||^2 / D + ce_weight CE,  CE = -log p(y | x_t),  x_t = alpha x_0 + sigma eps.

    F is the energy's gradient read as a velocity, with the target F* = (alpha eps - sigma x_0) / sqrt(alpha^2 + sigma^2). It
    is the gradient of log p_t(x | y), or with probability p_uncond of log p_t(x) = log sum exp f. With weight=uniform_eps the
    first term is ||eps - eps_hat||^2 / D. Denoising score matching and cross-entropy; no Markov chain is needed.

    Guo, Ma, Jiang, Yuan, Yu, Luo, "EGC: Image Generation and Classification via a Diffusion Energy-Based Model", 2023,
    arXiv 2304.02012, whose gradient is that of log sum exp alone: p_uncond = 1.

    Arguments:
        backbone: network (x, log_snr, None) -> [B, number of classes].
        schedule: noise schedule with finite ends.
        weight: weight over noise levels on the error of the velocity.
        levels: distribution of the noise level.
        mse_weight, ce_weight: of the two terms, at least 0, not both 0.
        p_uncond: probability, per example, that the gradient is that of log p_t(x); in [0, 1].

    Raises:
        ValueError: a learned weight, levels that the schedule's ends do not allow, a backbone or schedule that
            `NoisyJointEnergy` rejects.
    """

    compilable = False
    model: NoisyJointEnergy

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule,
        weight: Weight = UNIFORM_WEIGHT,
        levels: NoiseLevels = UNIFORM_TIME,
        mse_weight: float = 1.0,
        ce_weight: float = 0.1,
        p_uncond: float = 0.0,
    ):
        super().__init__()
        self.p_uncond = check_range("p_uncond", p_uncond, "[0, 1]")
        check_weights(ce_weight, mse_weight)
        if isinstance(weight, LearnedUncertainty):
            raise ValueError(
                "weight=learned_uncertainty would cancel the ratio of mse_weight to ce_weight; take another"
            )
        levels.check(schedule)
        self.model = NoisyJointEnergy(backbone, schedule)
        self.weight, self.levels = weight, levels
        self.mse_weight, self.ce_weight = float(mse_weight), float(ce_weight)

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        model = self.model
        learning = torch.is_grad_enabled()
        t, density = self.levels(model.schedule, len(x_0), rng)
        log_snr = model.schedule.log_snr(t)
        alpha, sigma = (part.to(x_0) for part in model.schedule.scales(log_snr, x_0.ndim))
        eps = normal(x_0.shape, rng, x_0.dtype)
        label = torch.full((len(x_0),), -1, device=x_0.device) if y is None else require_labels(y)
        kept = None if y is None else require_labels(drop_condition(label, self.p_uncond, rng))
        with torch.enable_grad():  # the loss holds a gradient, in evaluation too
            z = model.scale_input(alpha * x_0 + sigma * eps, log_snr).requires_grad_()
            parts = model.parts(z, log_snr)
            through = learning and self.mse_weight > 0
            value = model.potential(parts, log_snr, kept).sum()
            (slope,) = torch.autograd.grad(value, z, create_graph=through, retain_graph=learning)
        rows = model.rows(log_snr, z)
        mse = (slope + rows.p * x_0 + rows.q * eps).square().flatten(1).mean(1)
        log_prob = (parts[1] if learning else parts[1].detach()).log_softmax(1)
        known = label >= 0  # an example without class has no cross-entropy
        ce = -label_log_prob(log_prob, label) * known
        loss = self.mse_weight * self.weight.weigh(mse, log_snr, rows, density) + self.ce_weight * ce
        if self.training and learning:
            self.levels.observe(t, loss.detach(), rng)
        accuracy = ((log_prob.argmax(1) == label) & known).to(ce)
        terms = {"mse": mse.detach(), "ce": ce.detach(), "accuracy": accuracy}
        return Loss(self.levels.importance(t).to(loss) * loss, terms, log_snr)

    def figures(self, loss: Loss) -> dict[str, float]:
        """The terms of the held-out loss, averaged over all levels."""
        return {f"validation_{name}": float(values.mean()) for name, values in loss.terms.items()}
