"""Jumps of a network of two times: one call per step, with or without noise put back in."""

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.evaluation_counters import as_protocol
from ..models.jumps import JumpModel, jump_to
from ..models.protocols import Denoiser, Energy
from ..runtime.ranges import check_range
from .base import Memory, Sampler
from .grids import UNIFORM_T, Grid
from .noise import StepNoise

__all__ = ["Jump"]


class Jump(Sampler):
    """x_s = alpha_s (x_m / alpha_m + sqrt(n_s^2 - n_m^2) z), x_m the jump to noise level n_m = sqrt(1 - renoise^2) n_s.

    With renoise = 0 a step is the jump to s. With renoise = 1 it is the jump to the data, noised again: the multistep
    sampling of consistency models (Song et al. 2023, arXiv 2303.01469, algorithm 1). Between them it is the gamma-sampling
    of consistency trajectory models (Kim et al. 2023, arXiv 2310.02279, algorithm 3). The last jump has no noise.

    Arguments:
        steps, grid: of the ends of the jumps.
        renoise: share of the noise of s that is drawn anew, in [0, 1].
    """

    order = 1
    needs = JumpModel

    def __init__(self, steps: int = 4, grid: Grid = UNIFORM_T, renoise: float = 0.0):
        super().__init__(steps, grid)
        self.renoise = check_range("renoise", renoise, "[0, 1]")
        self.stochastic = renoise > 0

    def check(self, denoiser: Denoiser | Energy) -> None:
        super().check(denoiser)
        model = as_protocol(denoiser, JumpModel)
        if model is not None and not model.jumps:
            raise ValueError(
                "sampler=jump needs a network that jumps, this one was trained with objective.jump=null: take another"
            )

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        model = as_protocol(denoiser, JumpModel)
        assert model is not None
        schedule = denoiser.schedule
        if not self.renoise or s == 0:
            return jump_to(model.predict_jump(x, t, s, y), schedule, s)
        level = float(schedule.noise_level(s))
        lower = max((1 - self.renoise**2) ** 0.5 * level, schedule.noise_level_range[0])
        m = torch.zeros_like(s)
        if lower > schedule.noise_level_range[0]:
            m = schedule.t_of(-2 * torch.tensor(lower, dtype=torch.float64).log()).clamp(0, 1)
        clean = jump_to(model.predict_jump(x, t, m, y), schedule, m) / schedule.alpha_sigma(m)[0].to(x)
        spread = max(level**2 - lower**2, 0.0) ** 0.5
        return schedule.alpha_sigma(s)[0].to(x) * (clean + spread * noise.increment(t, s))
