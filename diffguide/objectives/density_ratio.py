"""Density-ratio estimation: classifiers of neighbouring noise levels, each trained on its own two levels."""

import torch
from torch import Tensor
from torch.nn import functional

from ..backbones import Backbone
from ..backbones.conditions import Condition, concatenate_conditions
from ..models.level_classifier import LevelClassifier
from ..randomness import Share, normal
from ..runtime.ranges import check_range, check_whole
from ..schedules import Schedule
from .base import Loss, Objective, drop_condition
from .cdm import check_quantization_levels, check_quantized, dequantize
from .levels import draw_uniform

__all__ = ["DensityRatio"]


class DensityRatio(Objective):
    """(softplus(-r_k(x_k)) + softplus(r_k(x_(k + 1)))) / 2,  r_k = f_k - f_(k + 1) -> log p_k - log p_(k + 1).

    x_k = alpha_k x_0 + sigma_k eps and x_(k + 1) share x_0 and eps; k is uniform over the levels 0..T, and level T + 1 is
    eps itself. The smallest loss is log 2 - JS(p_k, p_(k + 1)). The sum of the ratios from k on is log p_k - log N(0, I).

    Two levels (data and noise) are noise-contrastive estimation: its only classifier stops learning where data and noise
    are easy to tell apart. More levels are telescoping density-ratio estimation.

    Gutmann & Hyvaerinen, "Noise-contrastive estimation", 2010; Rhodes, Xu, Gutmann, "Telescoping Density-Ratio Estimation",
    2020, arXiv 2006.12204, eq. 5 to 9. Their steps use every example at all levels, these at one pair of levels.

    Arguments:
        backbone: network (x, None, y) -> [B, levels].
        schedule: noise schedule that ends in N(0, I).
        levels: T + 2, at least 2: the data, T levels of noise, and N(0, I).
        quantization_levels: K values of a data element, dequantized as by `CDM`; 0 = continuous data.
        p_uncond: probability of dropping the condition of an example; in [0, 1].

    Raises:
        ValueError: a backbone or schedule that `LevelClassifier` rejects.
    """

    compilable = False  # guidance and the ODE's divergence differentiate the gradient
    model: LevelClassifier

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule,
        levels: int = 12,
        quantization_levels: int = 0,
        p_uncond: float = 0.0,
    ):
        super().__init__()
        self.p_uncond = check_range("p_uncond", p_uncond, "[0, 1]")
        check_quantization_levels(quantization_levels)
        self.model = LevelClassifier(backbone, schedule, check_whole("levels", levels, 2) - 2, p_uncond > 0)
        self.quantization_levels = quantization_levels

    def check(self, x_0: Tensor) -> None:
        check_quantized(x_0, self.quantization_levels)

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        model = self.model
        pairs = self.model.steps + 1
        k = (draw_uniform(len(x_0), rng, True) * pairs).long().clamp(max=pairs - 1)
        x_0 = dequantize(x_0, self.quantization_levels, rng)
        eps = normal(x_0.shape, rng, x_0.dtype)
        y = drop_condition(y, self.p_uncond, rng)
        x = []
        for level in (k, k + 1):
            alpha, sigma = (part.to(x_0) for part in model.scales(level, x_0.ndim))
            x.append(alpha * x_0 + sigma * eps)
        logits = model.logits(torch.cat(x), None if y is None else concatenate_conditions([y, y]))
        place = torch.cat([k, k])[:, None]
        near, far = (logits.gather(1, place) - logits.gather(1, place + 1))[:, 0].chunk(2)
        loss = (functional.softplus(-near) + functional.softplus(far)) / 2
        accuracy = ((near > 0).to(loss) + (far < 0).to(loss)) / 2
        return Loss(loss, {"accuracy": accuracy.detach()})

    def figures(self, loss: Loss) -> dict[str, float]:
        """The mean accuracy of the classifiers; near 1, they stop learning."""
        return {"accuracy": float(loss.terms["accuracy"].mean())}
