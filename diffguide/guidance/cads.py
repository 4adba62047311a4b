"""Noise on the condition, so that the samples of one condition differ more."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser, Prediction
from ..randomness import Noise
from .contrast import CONSTANT, LINEAR, ClassifierFree
from .potentials.base import per_sample
from .ramps import LinearRamp, Ramp
from .rules import Rule

__all__ = ["CADS"]

DRAW = 2**40  # of the condition's noise at its level, beyond what samplers count


class CADS(ClassifierFree):
    """Classifier-free guidance with the embedded condition c replaced by psi rescaled(c') + (1 - psi) c',

        c' = sqrt(gamma) c + strength sqrt(1 - gamma) n,    n standard normal,

    rescaled to the mean and standard deviation of c over its values; gamma goes from 0 at the noise level `noisy` to 1 at
    `clean`, with the log-SNR. Sadat, Buhmann, Bradley, Hilliges, Weber, "CADS: Unleashing the Diversity of Diffusion Models
    through Condition-Annealed Sampling", 2023, arXiv 2310.17347, whose gamma is linear in time. For classes the
    embedding is the network's row of the class; what has no condition stays so.

    Arguments:
        denoiser: network with a condition, trained with the null condition.
        scale, interval, rule, ramp: as in `ClassifierFree`.
        strength: s of the paper, standard deviation of the noise, at least 0.
        clean: noise level sigma / alpha at and below which the condition is left as it is, positive.
        noisy: noise level at and above which it is all noise, above `clean`.
        psi: share of rescaling, in [0, 1].

    Raises:
        ValueError: a number out of range, a denoiser that shows no embedding; as `ClassifierFree`. A call outside a run,
            which brings the noise, or with a level for each row.
    """

    stateful = True

    def __init__(
        self, denoiser: Denoiser, scale: float, interval: Sequence[float], strength: float, clean: float, noisy: float,
        psi: float, rule: Rule = LINEAR, ramp: Ramp = CONSTANT,
    ):  # fmt: skip
        super().__init__(denoiser, scale, interval, rule, ramp)
        if not denoiser.embeds:
            raise ValueError(
                "guidance=cads puts noise on what a network makes of its condition, and this model has no network, or "
                "several: list cads before guidance=autoguidance"
            )
        if not 0 <= strength < math.inf:
            raise ValueError(f"strength must be at least 0, got {strength}")
        if not 0 < clean < noisy < math.inf:
            raise ValueError(f"clean and noisy must be noise levels with 0 < clean < noisy, got {clean} and {noisy}")
        if not 0 <= psi <= 1:
            raise ValueError(f"psi must be in [0, 1], got {psi}")
        self.strength, self.psi, self.gamma = float(strength), float(psi), LinearRamp(noisy, clean)
        self.noise: Noise | None = None

    def start(self, noise: Noise | None, times: Tensor) -> "CADS":
        fresh = super().start(noise, times)
        fresh.noise = noise
        return fresh

    def by_row(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        raise ValueError("guidance=cads draws noise for each level, so all samples must be at one noise level")

    def sides(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        return super().sides(x_t, t, self.noised(t, y))

    def strong(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        return super().strong(x_t, t, self.noised(t, y))

    def noised(self, t: Tensor, y: Condition | None) -> Condition | None:
        """The condition with noise, as vectors; as it is where gamma is 1, and outside the interval."""
        gamma = float(self.gamma(-self.schedule.log_snr(t) / 2))
        if y is None or gamma == 1 or not self.inside(t):
            return y
        if self.noise is None:
            raise ValueError("guidance=cads draws noise: start a run, sampler(denoiser, x, times, y, noise)")
        embedded = self.denoiser.embed(y)
        c = embedded.vectors
        n = per_sample(self.noise.of(c.shape[1:]).normal(t, DRAW), c, "guidance=cads")
        changed = math.sqrt(gamma) * c + self.strength * math.sqrt(1 - gamma) * n
        mean, deviation = changed.mean(1, keepdim=True), changed.std(1, keepdim=True)
        rescaled = (changed - mean) / deviation * c.std(1, keepdim=True) + c.mean(1, keepdim=True)
        rescaled = torch.where(deviation > 0, rescaled, changed)
        return type(embedded)(self.psi * rescaled + (1 - self.psi) * changed, embedded.keep)
