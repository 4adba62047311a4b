"""Base of the metrics of log p at a point."""

import math
from typing import Any

import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...models.decoders import Discretized
from ...randomness import Noise
from ...runtime.ranges import check_whole
from ..metric import EvalContext, Report
from .base import NLL, Arrays, Density
from .dequantization import DecoderDequantization, Dequantization

__all__ = ["PointDensity"]


class PointDensity(Density):
    """Base of the metrics of log p at a point: discrete data are dequantized, `draws` times per example.

    Arguments:
        dequantization: of discrete data; None = `DecoderDequantization()`.
        draws: at least 1; the error due to the draws needs at least 2.
        conditional, quantization_levels, log_snr_max: see `Density`.

    Attributes:
        random: whether the density itself is random.
    """

    random = False

    def __init__(
        self,
        dequantization: Dequantization | None = None,
        draws: int = 4,
        conditional: bool | None = None,
        quantization_levels: int | None = None,
        log_snr_max: float | None = None,
    ):
        super().__init__(conditional, quantization_levels, log_snr_max)
        self.dequantization = dequantization or DecoderDequantization()
        self.draws = check_whole("draws", draws, 1)

    def log_density(
        self, context: EvalContext, x: Tensor, y: Condition | None, noise: Noise, index: int, report: Report
    ) -> Tensor:
        """log p(x) in nats, [B], of z_0 = x_0 + s_0 eps at x; `index` counts the draws."""
        raise NotImplementedError

    def num_draws(self, context: EvalContext) -> int:
        """Draws per example: 1 if nothing is random."""
        return self.draws if self.random or self.num_values(context) else 1

    def build_nll(self, context: EvalContext) -> NLL:
        values, start, draws = self.num_values(context), self.start_log_snr(context), self.num_draws(context)

        def nll(x: Tensor, y: Condition | None, noise: Noise, report: Report) -> Arrays:
            if values:
                Discretized(values).check(x)
            costs, corrections = [], []
            for index in range(draws):
                point, correction = x, x.new_zeros(len(x), dtype=torch.float64)
                if values:
                    point, correction = self.dequantization(x, values, start, noise, index)

                def report_draw(share: float) -> None:
                    report((index + share) / draws)

                costs.append(-self.log_density(context, point, y, noise, index, report_draw).double())
                corrections.append(-correction)
                report_draw(1.0)
            cost, correction = torch.stack(costs), torch.stack(corrections)
            results = {"density": cost.mean(0)}
            if values:
                results["dequantisation"] = correction.mean(0)
            if draws > 1:
                results["noise"] = (cost + correction).std(0) / math.sqrt(draws)
            return results

        return nll

    def offset(self, context: EvalContext) -> float:
        values = self.num_values(context)
        return self.dequantization.offset(values) if values else 0.0

    def facts(self, context: EvalContext) -> dict[str, Any]:
        return {
            "dequantisation": self.dequantization.text if self.num_values(context) else "none: continuous",
            "draws": self.num_draws(context),
            "noise_level": math.exp(-self.start_log_snr(context) / 2),
        }
