"""UniPC: a predictor, and a corrector that costs no evaluation."""

import math

from torch import Tensor

from ..denoisers import Denoiser
from ..randomness import Noise
from .ancestral import move
from .dpmpp import ExponentialMultistep
from .multistep import accumulate

__all__ = ["UniPC"]


class UniPC(ExponentialMultistep):
    """Predictor: x_0 as a polynomial in lambda through the last p values; corrector: once more with the value at its end.

    Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", 2023,
    arXiv 2302.04867, eq. 3 and 8, in the form for x_0 with B_2(h) = e^h - 1. Its conditions on the weights say that
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
        prediction = denoiser(x, t, y)
        x = move(prediction, schedule, s, 0.0)
        here = self.variable(schedule, t)
        if math.isinf(here):
            return x
        if history:
            (start, before), *older = history
            corrected = self.weights(schedule, [start, here, *(u for u, _ in older)], t)
            ratio = float(schedule.alpha_sigma(s)[1] / schedule.alpha_sigma(t)[1])
            change = [ratio * (c - p) for c, p in zip(corrected, [0.0, 0.0, *memory["weights"][1:]])]
            accumulate(x, change, [before, prediction.x_0, *(value for _, value in older)])
        history.insert(0, (here, prediction.x_0))
        nodes, values = zip(*history[: self.order])
        memory["weights"] = self.weights(schedule, list(nodes), s)
        del history[self.order :]
        return accumulate(x, memory["weights"], values)
