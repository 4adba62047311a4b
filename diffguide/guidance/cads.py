"""Noise on the condition, for more diverse samples of one condition."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser, Prediction
from ..runtime.ranges import check_range
from ..schedules import EVERYWHERE
from .contrast import CONSTANT_RAMP, LINEAR_RULE, ClassifierFree
from .draws import FIRST_DRAW, DrawingContrast
from .embedded import change_embedded, measure
from .ramps import LinearRamp, Ramp
from .rules import Rule

__all__ = ["CADS"]

CONDITION_DRAW = FIRST_DRAW  # the first


class CADS(DrawingContrast, ClassifierFree):
    """Classifier-free guidance with the embedded condition c replaced by psi rescaled(c') + (1 - psi) c',

        c' = sqrt(gamma) c + strength sqrt(1 - gamma) n,    n standard normal,

    rescaled to the mean and standard deviation of c over its values; gamma rises from 0 at the noise level `noisy` to 1 at
    `clean`, linearly in the log-SNR. Sadat, Buhmann, Bradley, Hilliges, Weber, "CADS: Unleashing the Diversity of Diffusion
    Models through Condition-Annealed Sampling", 2023, arXiv 2310.17347, whose gamma is linear in time. The embedding of a
    class is the network's own; of a text, the vectors of its tokens, over all of which one mean and deviation are taken, and
    its pooled vector, by itself. Of several conditions, classes and texts get noise of their own; attributes, numbers and
    pictures have no embedding and stay. Rows without condition keep none.

    Arguments:
        denoiser: network with a condition, trained with the null condition.
        scale, interval, rule, ramp: as in `ClassifierFree`.
        strength: s of the paper, standard deviation of the noise, at least 0.
        clean: noise level sigma / alpha at and below which the condition has no noise, positive.
        noisy: noise level at and above which the condition is pure noise, above `clean`.
        psi: share of rescaling, in [0, 1].

    Raises:
        ValueError: a denoiser without an embedding of its condition; from a call: outside a run, where there is no noise, or
            with t [B].
    """

    option = "cads"
    has_law = False

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 2.0,
        interval: Sequence[float] = EVERYWHERE,
        strength: float = 0.25,
        clean: float = 6.0,
        noisy: float = 60.0,
        psi: float = 1.0,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
    ):
        super().__init__(denoiser, scale, interval, rule, ramp)
        if denoiser.conditioning is not None and not denoiser.conditioning.gives_vectors:
            raise ValueError(
                f"guidance=cads adds noise to embedded classes and texts, and {type(denoiser.conditioning).__name__} has none: "
                "take guidance=cfg"
            )
        if not denoiser.embeds:
            raise ValueError(
                "guidance=cads needs a model with one embedding of its condition; if guidance is nested, list cads before "
                "autoguidance"
            )
        if not 0 < clean < noisy < math.inf:
            raise ValueError(f"clean and noisy must be noise levels with 0 < clean < noisy, got {clean} and {noisy}")
        self.strength, self.psi = check_range("strength", strength, "[0, inf)"), check_range("psi", psi, "[0, 1]")
        self.gamma = LinearRamp(noisy, clean)

    def predict_both(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        return super().predict_both(x_t, t, self.add_noise(t, y))

    def predict_strong(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        return super().predict_strong(x_t, t, self.add_noise(t, y))

    def add_noise(self, t: Tensor, y: Condition | None) -> Condition | None:
        """The embedded condition with noise; y itself where gamma is 1, and outside the interval."""
        gamma = float(self.gamma(-self.schedule.log_snr(t) / 2))
        if y is None or gamma == 1 or not self.acts(t):
            return y

        def change(c: Tensor, mask: Tensor | None, number: int) -> Tensor:
            return self.change_vectors(c, mask, t, gamma, number)

        return change_embedded(self.denoiser.embed(y), change)

    def change_vectors(self, c: Tensor, mask: Tensor | None, t: Tensor, gamma: float, number: int) -> Tensor:
        """Vectors [B, D], or [B, L, D] of tokens with a mask [B, L], with noise; padding stays."""
        n = self.draw(c, c.shape[1:], t, number)
        changed = math.sqrt(gamma) * c + self.strength * math.sqrt(1 - gamma) * n
        mean, deviation = measure(changed, mask)
        wanted_mean, wanted_deviation = measure(c, mask)
        rescaled = (changed - mean) / deviation * wanted_deviation + wanted_mean
        rescaled = torch.where(deviation > 0, rescaled, changed)
        result = self.psi * rescaled + (1 - self.psi) * changed
        return result if mask is None else torch.where(mask[:, :, None], result, c)
