"""Equilibrium matching: the gradient of an energy without noise levels, trained towards the data."""

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..models.equilibrium_energy import DOT_PRODUCT, EnergyForm, EquilibriumEnergy
from ..models.level_classifier import value_and_gradient
from ..randomness import Share, normal
from ..runtime.ranges import check_range
from ..schedules import NoSchedule, Schedule
from .base import Loss, Objective, drop_condition
from .levels import draw_uniform

__all__ = ["EquilibriumMatching"]


class EquilibriumMatching(Objective):
    """||-grad E(x) - m c(g) (x_0 - eps)||^2 / D  at x = g x_0 + (1 - g) eps,  c(g) = min(1, (1 - g) / (1 - d)), g uniform.

    Wang, Du, "Equilibrium Matching: Generative Modeling with Implicit Energy-Based Models", 2025, arXiv 2510.02300, with
    the truncated decay c, d = 0.8 and m = 4 of the authors' code; here in the forms with an explicit energy.

    Arguments:
        backbone: network (x, None, y) -> F in the shape of x.
        schedule: None or `NoSchedule`: there are no noise levels.
        form: of the energy.
        decay_start: d, the share of data from which the gradient decreases to 0; in [0, 1).
        magnitude: m, of the gradient, above 0.
        p_uncond: probability of dropping the condition of an example; in [0, 1].

    Raises:
        ValueError: a schedule; a backbone that `EquilibriumEnergy` rejects.
    """

    compilable = False
    model: EquilibriumEnergy

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule | None = None,
        form: EnergyForm = DOT_PRODUCT,
        decay_start: float = 0.8,
        magnitude: float = 4.0,
        p_uncond: float = 0.0,
    ):
        super().__init__()
        if schedule is not None and not isinstance(schedule, NoSchedule):
            raise ValueError(f"objective=eqm has no noise levels, got {type(schedule).__name__}: take schedule=none")
        self.p_uncond = check_range("p_uncond", p_uncond, "[0, 1]")
        self.decay_start = check_range("decay_start", decay_start, "[0, 1)")
        self.magnitude = check_range("magnitude", magnitude, "(0, inf)")
        self.model = EquilibriumEnergy(backbone, p_uncond > 0, form)

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        learning = torch.is_grad_enabled()
        share = draw_uniform(len(x_0), rng, True).to(x_0).reshape(-1, *[1] * (x_0.ndim - 1))
        eps = normal(x_0.shape, rng, x_0.dtype)
        y = drop_condition(y, self.p_uncond, rng)
        x = share * x_0 + (1 - share) * eps
        _, field = value_and_gradient(lambda x: self.model.log_density(x, None, y), x)
        target = self.magnitude * ((1 - share) / (1 - self.decay_start)).clamp(max=1) * (x_0 - eps)
        loss = (field - target).square().flatten(1).mean(1)
        return Loss(loss if learning else loss.detach(), {})
