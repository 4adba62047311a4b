"""Contrasts that draw random numbers, of each sample, at every noise level."""

from collections.abc import Sequence
from typing import Self

from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Prediction
from ..randomness import Noise
from .base import repeat_noise
from .contrast import Contrast

__all__ = ["DrawingContrast"]

FIRST_DRAW = 2**40  # of the noise at a level, beyond the draws of samplers


class DrawingContrast(Contrast):
    """A contrast with random numbers: those of sample i are a function of its seed and the noise level alone.

    Attributes:
        draw_space: which numbers are its own, a whole number that no other guidance has.

    Raises:
        ValueError: from a call: outside a run, where there is no noise, or with t [B].
    """

    stateful = True
    draw_space = 1
    noise: Noise | None = None

    def start(self, noise: Noise | None, times: Tensor) -> Self:
        fresh = super().start(noise, times)
        fresh.noise = noise
        return fresh

    def predict_rows(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        raise self.explain_levels()

    def explain_levels(self) -> ValueError:
        """Why samples at several noise levels are refused."""
        return ValueError(
            f"guidance={self.option} draws noise per level, so all samples must have the same noise level"
        )

    def draw(self, x: Tensor, shape: Sequence[int], t: Tensor, number: int) -> Tensor:
        """Standard normals [B, *shape] for the rows of x [B, ...], k times over for k conditions of the samples."""
        if t.ndim:
            raise self.explain_levels()
        if self.noise is None:
            raise ValueError(
                f"guidance={self.option} draws noise: use it in a run, sampler(denoiser, x, times, y, noise)"
            )
        drawn = self.noise.of(shape).normal(t, self.draw_space * FIRST_DRAW + number)
        return repeat_noise(drawn, x, f"guidance={self.option}")
