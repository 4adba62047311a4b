"""Training a classifier of noisy data."""

import itertools
import math

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..models.noisy_classifier import NoisyClassifier
from ..randomness import Share, normal
from ..schedules import Schedule
from .base import LevelObjective, Loss, require_labels
from .levels import UNIFORM_TIME, NoiseLevels

__all__ = ["REPORTED_BANDS", "ClassifierObjective"]

REPORTED_BANDS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, math.inf)  # edges in noise level sigma / alpha


class ClassifierObjective(LevelObjective):
    """-log p(y | x_t) with x_t = alpha x_0 + sigma eps: cross-entropy over all noise levels.

    Dhariwal & Nichol 2021, arXiv 2105.05233, section 4.3.

    Arguments:
        backbone: network (x, log_snr, None) -> F [B, number of classes].
        schedule: noise schedule; the generators that the classifier guides may have another.
        levels: distribution of the noise level.

    Raises:
        ValueError: a backbone without one output per class, levels that the schedule's ends do not allow, or a learned
            schedule, which would lower the loss by avoiding noise.
    """

    model: NoisyClassifier

    def __init__(self, backbone: Backbone, schedule: Schedule, levels: NoiseLevels = UNIFORM_TIME):
        super().__init__()
        levels.check(schedule)
        if schedule.is_learned:
            raise ValueError(
                f"objective=classifier needs a fixed schedule, got {type(schedule).__name__}, which would learn to add no noise"
            )
        self.model = NoisyClassifier(backbone, schedule)
        self.levels = levels

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        schedule = self.model.schedule
        labels = require_labels(y)
        t, _ = self.levels(schedule, len(x_0), rng)
        log_snr = schedule.log_snr(t)
        alpha, sigma = (a.to(x_0) for a in schedule.scales(log_snr, x_0.ndim))
        eps = normal(x_0.shape, rng, x_0.dtype)
        log_prob = self.model.log_prob_at(alpha * x_0 + sigma * eps, log_snr)
        ce = -log_prob.gather(1, labels[:, None])[:, 0]
        if self.training and torch.is_grad_enabled():
            self.levels.observe(t, ce, rng)
        accuracy = (log_prob.argmax(1) == labels).to(ce)
        return Loss(self.levels.importance(t).to(ce) * ce, {"ce": ce.detach(), "accuracy": accuracy}, log_snr)

    def figures(self, loss: Loss) -> dict[str, float]:
        """The accuracy over all levels, and in each non-empty band of noise levels (lo, hi]."""
        assert loss.log_snr is not None
        accuracy = loss.terms["accuracy"].cpu()
        level = torch.exp(-0.5 * loss.log_snr.cpu())
        found = {"accuracy": float(accuracy.mean())}
        for low, high in itertools.pairwise(REPORTED_BANDS):
            inside = (low < level) & (level <= high)
            if inside.any():
                found[f"accuracy_{low:g}_{high:g}"] = float(accuracy[inside].mean())
        return found
