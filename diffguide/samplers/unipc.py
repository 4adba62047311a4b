"""UniPC: a predictor, and a corrector that costs no evaluation."""

import math

from torch import Tensor

from ..models.protocols import Denoiser
from ..randomness import Noise
from .dpmpp import ExponentialMultistep
from .multistep import Level, accumulate

__all__ = ["UniPC"]


class UniPC(ExponentialMultistep):
    """Predictor: x_0 as a polynomial in lambda through the last p values; corrector: once more with the value at its end.

    Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", 2023,
    arXiv 2302.04867, section 3, in the form for x_0 with B_2(h) = e^h - 1. Its conditions on the weights say that
    polynomials are integrated exactly; only where one difference is left (predictor of order 2, corrector of order 1)
    does the paper take the weight 1/2 instead, and B matters.

    The evaluation at t first corrects x_t, then predicts x_s. The last x is not corrected: that would cost an evaluation.

    Arguments:
        steps, grid: as for every sampler.
        order: p, 1 to 3; the corrector has order p + 1.
    """

    highest = 3

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None, noise: Noise | None, memory: dict
    ) -> Tensor:
        schedule, history = denoiser.schedule, memory.setdefault("history", [])
        start, end = Level.at(schedule, t), Level.at(schedule, s)
        prediction = denoiser(x, t, y)
        x = end.renoised(prediction)
        if math.isinf(start.log_snr):
            return x
        here = self.variable(start)
        if history:
            (base, before), *older = history
            weights = self.weights(schedule, [base, here, *(u for u, _ in older)], start)
            values = [before, prediction.x_0, *(value for _, value in older)]
            corrected = accumulate(memory["plain"], weights, values)
            x = x + (end.sigma / start.sigma) * (corrected - memory["arrived"])
        history.insert(0, (here, prediction.x_0))
        nodes, values = zip(*history[: self.order])
        del history[self.order :]
        memory["plain"] = x.clone()
        memory["arrived"] = accumulate(x, self.weights(schedule, list(nodes), end), values)
        return memory["arrived"]
