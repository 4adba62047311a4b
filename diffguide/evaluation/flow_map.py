"""The error of the jumps of a network of two times, on data of a known distribution, against the exact guided flow."""

import copy
import math
from collections.abc import Callable, Sequence

import numpy
import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..figures.plot_spec import Panel, Plot
from ..guidance import ClassifierFree
from ..models.jumps import JumpModel, jump_to
from ..models.protocols import Denoiser
from ..oracles import Oracle, flow_map
from ..randomness import fold
from ..runtime.ranges import check_range, check_whole
from .class_conditional import ClassConditionalMetric
from .denoising import find_law
from .metric import EvalContext
from .results import Figure, MetricResult

__all__ = ["FlowMapError"]

FLOW_PURPOSE = 17  # purpose of the seed


class FlowMapError(ClassConditionalMetric):
    """sqrt(E |z_s_hat - z_s|^2 / D) with z_s = x_s / sqrt(alpha_s^2 + sigma_s^2), for every pair of times s < t and scale.

    x_t is a noised exact example, z_s_hat the network's jump from it in one call, z_s the end of the probability-flow ODE of
    the exact distribution, guided at the same scale. `relative` is the error divided by sqrt(E |z_s - z_t|^2 / D), how far
    the flow goes: 0 = exact, 1 = as bad as no move. A network that learned from a teacher has the teacher's error too.

    Arguments:
        times: of the pairs, k / times for k = 0 ... times; 1 to 100.
        exact: exact examples per start and scale, at least 10.
        scales: of guidance, within those that the network learned; None = the lowest, the middle and the highest of them.
        guidance: exact denoiser -> guided denoiser, that of `objective.teacher_guidance`; None = classifier-free guidance.
        conditional: whether a model with classes gets labels.
        tolerance: of the ODE, in (0, 1).

    Raises:
        ValueError: a number out of range; from check: data of an unknown distribution, a network that does not jump, a scale
            that it did not learn, guidance with memory.
    """

    name = "flow_map"
    needs = (JumpModel,)

    def __init__(
        self,
        times: int = 4,
        exact: int = 200,
        scales: Sequence[float] | None = None,
        guidance: Callable[[Denoiser], Denoiser] | None = None,
        conditional: bool = True,
        tolerance: float = 1e-6,
    ):
        super().__init__(conditional)
        self.times = check_whole("times", times, 1, 100)
        self.exact = check_whole("exact", exact, 10)
        self.scales = None if scales is None else [float(scale) for scale in scales]
        self.build_guided = guidance or ClassifierFree
        self.tolerance = check_range("tolerance", tolerance, "(0, 1)")

    def check(self, context: EvalContext) -> None:
        super().check(context)
        model = context.require(JumpModel)
        if not model.jumps:
            raise ValueError(
                "metric=flow_map needs a network that jumps, this one was trained with objective.jump=null"
            )
        law = find_law(context.data, context.schedule)
        if law is None:
            raise ValueError(
                "metric=flow_map needs data of a known distribution, such as dataset=gmm2d, tree or anisotropic"
            )
        for scale in self.find_scales(model):
            model.at_scale(scale)
            if self.guide(law, scale).stateful:
                raise ValueError("metric.guidance depends on its earlier calls (momentum, noise), so it has no flow")

    def find_scales(self, model: JumpModel) -> list[float]:
        """The scales that are measured, each once."""
        low, high = model.scales
        return list(dict.fromkeys(self.scales or (low, (low + high) / 2, high)))

    def guide(self, law: Oracle, scale: float) -> Denoiser:
        """The exact denoiser at a scale of guidance."""
        guided = copy.copy(self.build_guided(law))
        if hasattr(guided, "scale"):
            guided.scale = scale
        elif scale != 1:
            raise ValueError(f"metric.guidance has no scale, and the network is measured at scale {scale:g}")
        return guided

    @torch.no_grad()
    def measure(self, context: EvalContext) -> MetricResult:
        law = find_law(context.data, context.schedule)
        assert law is not None  # see check
        scales = self.find_scales(context.require(JumpModel))
        curve, figures, everything = list[dict[str, float | None]](), dict[str, Figure](), list[Tensor]()
        for index, scale in enumerate(scales):
            for k in range(self.times, 0, -1):
                found = context.parts.load_or_compute(
                    f"{index:04d}_{k:04d}", lambda: self.measure_start(context, law, scale, k)
                )
                errors, moves = (torch.from_numpy(found[name]) for name in ("errors", "moves"))
                for j, (error, move) in enumerate(zip(errors, moves)):
                    figure = root_mean(error, "per value of z")
                    row: dict[str, float | None] = {"scale": scale, "time": k / self.times, "end": j / self.times}
                    row |= {"error": figure.value, "error_se": figure.standard_error}
                    curve.append(row | {"relative": figure.value / root_mean(move, "").value})
                everything.append(errors.mean(0))
                if k == self.times:
                    figures[f"one_call_{scale:g}"] = root_mean(errors[0], "per value of z")
                context.progress(index * self.times + self.times - k + 1, len(scales) * self.times, "starts of jumps")
        figures = {"error": root_mean(torch.cat(everything), "per value of z"), **figures}
        facts = {
            "law": type(law).__name__,
            "given_class": self.uses_labels(context),
            "scales": scales,
            "one_call": f"from t = 1 to s = 0, at scales {', '.join(f'{scale:g}' for scale in scales)}",
        }
        panels = [
            Panel("error", "error of a jump from t to each s"),
            Panel("relative", "error / way of the flow", ("no move", 1.0), True),
        ]
        return MetricResult(figures, facts, curve, [Plot("flow_map", "time", "time t", False, panels)])

    def measure_start(self, context: EvalContext, law: Oracle, scale: float, k: int) -> dict[str, numpy.ndarray]:
        """Of jumps from t = k / times: |z_s_hat - z_s|^2 / D and |z_s - z_t|^2 / D, [k, exact], a row per s, s = 0 first."""
        schedule, rng = law.schedule, torch.Generator().manual_seed(fold(context.seed, FLOW_PURPOSE, k))
        x_0, labels = law.sample(self.exact, rng)
        y = labels if self.uses_labels(context) else None
        t = torch.tensor(k / self.times, dtype=torch.float64)
        alpha, sigma = schedule.alpha_sigma(t)
        x_t = alpha * x_0 + sigma * torch.randn(x_0.shape, generator=rng, dtype=torch.float64)
        model, guided = context.require(JumpModel).at_scale(scale), self.guide(law, scale)
        start, given = x_t.float().to(context.device), None if y is None else y.to(context.device)
        x, time, errors, moves = x_t, t, list[Tensor](), list[Tensor]()
        for j in range(k - 1, -1, -1):  # the flow to s goes on from the flow to the time before
            s = torch.tensor(j / self.times, dtype=torch.float64)
            x = flow_map(guided, x, time, s, y, self.tolerance)
            predicted = self.jump(model, start, t, s, given)
            size = math.hypot(*schedule.alpha_sigma(s))
            errors.append(((predicted - x) / size).square().flatten(1).mean(1))
            moves.append((x / size - x_t / math.hypot(alpha, sigma)).square().flatten(1).mean(1))
            time = s
        return {"errors": torch.stack(errors[::-1]).numpy(), "moves": torch.stack(moves[::-1]).numpy()}

    def jump(self, model: JumpModel, x_t: Tensor, t: Tensor, s: Tensor, y: Condition | None) -> Tensor:
        """x_s by one call, float64 on the CPU."""
        return jump_to(model.predict_jump(x_t, t, s, y), model.schedule, s).double().cpu()


def root_mean(squares: Tensor, unit: str) -> Figure:
    """The root of the mean of independent squares [N], with its standard error (that of the mean, to first order)."""
    value = math.sqrt(float(squares.mean()))
    error = float(squares.std()) / math.sqrt(len(squares)) / (2 * value) if value > 0 else None
    return Figure(value, error, len(squares), unit)
