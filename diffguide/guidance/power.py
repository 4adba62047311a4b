"""A power of a law: p(x | y)^beta, colder for beta above 1."""

from collections.abc import Sequence

from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser, Prediction, WeightedPrediction, keep_variance
from ..models.tilts import Tilt
from ..schedules import EVERYWHERE
from .base import ScaledGuidance, per_row_float
from .contrast_laws import squared_norm

__all__ = ["PowerGuidance"]


class PowerGuidance(ScaledGuidance):
    """eps -> scale eps: the score of p_t(x | y)^scale at every noise level.

    The powers of noised laws are not the noised powers, so that plain samplers do not reach p^scale; `sampler=fkc` does, with
    d log W = scale (scale - 1) / 2 |eps|^2 per log-SNR. Skreta et al., "Feynman-Kac Correctors in Diffusion", 2025, arXiv
    2503.02819. The weights grow with the number of values in a sample.

    Arguments:
        denoiser: what is guided.
        scale: beta; 1 = off, above 1 = colder: more of the likeliest samples.
        interval: (lo, hi] in noise level sigma / alpha.

    Raises:
        ValueError: a schedule that starts from pure noise.
    """

    def __init__(self, denoiser: Denoiser, scale: float = 2.0, interval: Sequence[float] = EVERYWHERE):
        super().__init__(denoiser, scale, interval)
        if denoiser.schedule.zero_terminal_snr:
            raise ValueError("guidance=power needs a finite log_snr_min: this schedule starts from pure noise")

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        return self.scale_noise(self.denoiser(x_t, t, y), t)

    def scale_noise(self, prediction: Prediction, t: Tensor) -> Prediction:
        """The prediction with eps times the scale where it acts, and x_0 moved so that x_t stays."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        excess = per_row_float((self.scale - 1) * self.acts(t).double(), prediction.eps)
        eps = excess.to(prediction.eps) * prediction.eps
        x_0 = prediction.x_0 - per_row_float(sigma / alpha, eps).to(eps) * eps
        return keep_variance(Prediction(x_0, prediction.eps + eps), prediction)

    def tilt(self) -> Tilt | None:
        inner = self.denoiser.tilt()
        return None if inner is None else inner.raised(self.scale)

    def explain_no_law(self) -> str | None:
        if self.interval != EVERYWHERE:
            return "a power that changes with the noise level has none; take no guidance.interval"
        inner = self.denoiser.tilt()
        if inner is not None and inner.potentials:
            return "a power around a potential has none; list potentials after it"
        return self.denoiser.explain_no_law()

    def predict_weighted(self, x_t: Tensor, t: Tensor, y: Condition | None) -> WeightedPrediction:
        """With exponents scale w_i: scale times the spread inside, and scale (1 - scale) |eps|^2."""
        inner = self.denoiser.predict_weighted(x_t, t, y)
        guided = self.scale_noise(inner.guided, t)
        spread = self.scale * inner.spread + self.scale * (1 - self.scale) * squared_norm(inner.guided.eps)
        return WeightedPrediction(guided, guided, spread)

    def guided_log_density(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        return self.scale * self.denoiser.guided_log_density(x_t, t, y)
