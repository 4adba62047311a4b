"""UniPC: a predictor, and a corrector that costs no evaluation."""

from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser
from .base import Memory
from .dpmpp import ExponentialMultistep
from .grids import UNIFORM_LOG_SNR, Grid
from .multistep import Level, accumulate
from .noise import StepNoise

__all__ = ["UniPC"]


class UniPC(ExponentialMultistep):
    """Predictor: x_0 as a polynomial in lambda through the last p values; corrector: once more with the value at its end.

    Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", 2023,
    arXiv 2302.04867, section 3, in the form for x_0 with B_2(h) = e^h - 1. Its conditions on the weights say that
    polynomials are integrated exactly. With one difference (predictor of order 2, corrector of order 1) the paper takes the
    weight 1/2 instead, which depends on B.

    The evaluation at t first corrects x_t, then predicts x_s. The last x is not corrected, which saves an evaluation.

    Arguments:
        order: p, 1 to 3; the corrector has order p + 1.
    """

    max_order = 3

    def __init__(self, steps: int = 20, grid: Grid = UNIFORM_LOG_SNR, order: int = 3):
        super().__init__(steps, grid, order)

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        schedule = denoiser.schedule
        history = memory.setdefault("history", [])
        start, end = Level.at(schedule, t), Level.at(schedule, s)
        prediction = memory["first"] = denoiser(x, t, y)
        x = end.renoise(prediction)
        here = self.variable(start)
        if history:
            (base, before), *older = history
            weights = self.weights(schedule, [base, here, *(u for u, _ in older)], start)
            values = [before, prediction.x_0, *(value for _, value in older)]
            corrected = accumulate(memory["plain"], weights, values)
            x = x + (end.sigma / start.sigma) * (corrected - memory["arrived"])
        history.insert(0, (here, prediction.x_0))
        del history[self.order :]
        memory["plain"] = x.clone()
        weights = self.weights(schedule, [node for node, _ in history], end)
        memory["arrived"] = accumulate(x, weights, [value for _, value in history])
        return memory["arrived"]
