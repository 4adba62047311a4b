"""Density-ratio estimation: classifiers of neighbouring noise levels, each trained on its own two levels."""

import torch
from torch import Tensor
from torch.nn import functional

from ..backbones import Backbone
from ..backbones.conditions import Condition, concatenate_conditions
from ..models.level_classifier import LevelClassifier
from ..randomness import Share, normal
from ..schedules import Schedule
from .base import Loss, Objective, check_dropout, drop_condition
from .cdm import check_spread, check_values, dequantized
from .levels import places

__all__ = ["DensityRatio"]


class DensityRatio(Objective):
    """(softplus(-r_k(x_k)) + softplus(r_k(x_(k + 1)))) / 2,  r_k = f_k - f_(k + 1) -> log p_k - log p_(k + 1).

    x_k = alpha_k x_0 + sigma_k eps and x_(k + 1) come from the same x_0 and eps; k is one of the levels 0..T, drawn evenly,
    and level T + 1 is eps itself. The best loss is log 2 - JS(p_k, p_(k + 1)). The sum of the ratios from k on is
    log p_k - log N(0, I): of two levels (data and noise alone) this is noise-contrastive estimation, whose one classifier is
    soon always right where the two are far apart, and learns no more; of several, telescoping density-ratio estimation.

    Gutmann & Hyvaerinen, "Noise-contrastive estimation", 2010; Rhodes, Xu, Gutmann, "Telescoping Density-Ratio Estimation",
    2020, arXiv 2006.12204, eq. 5 to 9; there every example is seen at all levels in every step, here at one pair.

    Arguments:
        backbone: network (x, None, y) -> [B, levels].
        schedule: noise schedule that ends in N(0, I).
        levels: T + 2, at least 2: the data, T levels of noise, and N(0, I).
        values: K values of an element of the data, spread by uniform noise as for `CDM`; 0 = continuous data.
        p_uncond: probability, per example, of training without its condition; in [0, 1].

    Raises:
        ValueError: p_uncond, values or levels out of range; a backbone or schedule that `LevelClassifier` refuses.
    """

    compilable = False  # guidance and the flow's divergence differentiate its gradient

    def __init__(self, backbone: Backbone, schedule: Schedule, levels: int, values: int, p_uncond: float):
        super().__init__()
        check_dropout(p_uncond)
        if levels < 2:
            raise ValueError(f"levels must be at least 2 (the data and N(0, I)), got {levels}")
        check_values(values)
        self.model = LevelClassifier(backbone, schedule, levels - 2, p_uncond > 0)
        self.values, self.p_uncond = values, float(p_uncond)

    def check(self, x_0: Tensor) -> None:
        check_spread(x_0, self.values)

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        model, pairs = self.model, self.model.steps + 1
        k = (places(len(x_0), rng, True) * pairs).long().clamp(max=pairs - 1)
        x_0 = dequantized(x_0, self.values, rng)
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
        """The share of the points that the classifiers know the level of: near 1 they learn no more of the ratio."""
        return {"accuracy": float(loss.terms["accuracy"].mean())}
