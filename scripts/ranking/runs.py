"""Runs of guidance on a law at an equal number of network evaluations."""

from collections.abc import Iterator, Mapping
from math import nan
from typing import Any

import torch
from torch import Tensor

from diffguide.models.evaluation_counters import count_evaluations
from diffguide.models.protocols import SamplingError
from diffguide.models.tilts import Tilt
from diffguide.samplers import FKC, DPMpp2M, DPMpp2MSDE, Sampler, UniformLogSNR, generate

from .laws import Law
from .measures import Truth, tilt_of_scale
from .methods import METHODS, Method, build_guidance

__all__ = ["EXACT", "TILTED", "Ranking", "make_sampler"]

MIN_STEPS = 2
EXACT, TILTED = "exact samples", "law that cfg names"  # rows that are no methods
ETA = 4.0  # noise of fkc's particles, as by default


def make_sampler(method: Method, value: Any, steps: int) -> Sampler:
    """The sampler of a method: the ODE and the SDE by DPM-Solver++(2M), or particles of the latter."""
    if method.sampler == "ode":
        return DPMpp2M(steps, UniformLogSNR())
    if method.sampler == "sde":
        return DPMpp2MSDE(steps, UniformLogSNR())
    return FKC(DPMpp2MSDE(steps, UniformLogSNR(), ETA), value)


class Ranking:
    """Samples and figures of methods on laws.

    Arguments:
        n: samples of each run.
        evaluations: of the network, per sample; a method with more evaluations a step gets fewer steps.
        seed: of samples and exact sets.
    """

    def __init__(self, n: int, evaluations: int, seed: int):
        self.n, self.evaluations, self.seed = n, evaluations, seed
        self.steps: dict[tuple[str, str], tuple[int, float, float]] = {}

    def sample(self, law: Law, name: str, scale: float, value: Any, steps: int, n: int) -> tuple[Tensor, Any]:
        """Samples [n, D], and the tally of evaluations."""
        denoiser, tally = count_evaluations(law.oracle)
        guided = build_guidance(name, denoiser, law, scale, value)
        sampler = make_sampler(METHODS[name], value, steps)
        seeds = range(10**6 * self.seed, 10**6 * self.seed + n)
        parts = generate(guided, sampler, seeds, [law.label] * n, law.oracle.shape, n, dtype=torch.float64)
        return torch.cat(list(parts)).flatten(1), tally

    def choose_steps(self, law: Law, name: str, scale: float, value: Any) -> tuple[int, float, float]:
        """The most steps within the evaluations; evaluations of the network and of potentials per sample with them."""
        if METHODS[name].counted:
            name, value = METHODS[name].counted, METHODS[METHODS[name].counted].values[0]
        key = name, str(value)
        if key not in self.steps:
            budget = self.evaluations * METHODS[name].cost

            def count(steps: int) -> tuple[int, float, float]:
                tally = self.sample(law, name, scale, value, steps, 1)[1]
                return steps, tally.evaluations, tally.potential_evaluations

            try:
                trial = count(max(budget // 2, MIN_STEPS))
                found = count(max(MIN_STEPS, int(budget * trial[0] / trial[1])))
                while found[1] > budget and found[0] > MIN_STEPS:
                    found = count(found[0] - 1)
            except SamplingError:  # a gradient that is not finite
                found = budget, nan, nan
            self.steps[key] = found
        return self.steps[key]

    def named_law(self, law: Law, name: str, scale: float, value: Any) -> Tilt | None:
        """The law that a method names."""
        method = METHODS[name]
        if method.named is not None:
            return tilt_of_scale(method.named(scale, value))
        return build_guidance(name, law.oracle, law, scale, value).tilt()

    def run(self, truth: Truth, name: str) -> Iterator[dict[str, Any]]:
        """The rows of a method that the law suits, at every scale and value of its knob; or those of exact samples."""
        if name in (EXACT, TILTED):
            scales = [1.0] if name == EXACT else [scale for scale in truth.family if scale > 1]
            yield from (self.describe_exact(truth, name, scale) for scale in scales)
            return
        law, method = truth.law, METHODS[name]
        if method.images and len(law.oracle.shape) != 3:
            return
        for scale, value in method.points():
            steps, evaluations, potentials = self.choose_steps(law, name, scale, value)
            row = {"law": law.name, "method": name, "scale": scale, "knob": method.knob, "value": str(value)}
            try:
                x, _ = self.sample(law, name, scale, value, steps, self.n)
            except SamplingError:  # a gradient that is not finite, far from the law
                x = torch.full_like(truth.exact[0], torch.nan)
            figures = truth.measure(x, self.named_law(law, name, scale, value))
            yield row | figures | {"steps": steps, "evaluations": evaluations, "potential_evaluations": potentials}

    def describe_exact(self, truth: Truth, name: str, scale: float) -> dict[str, Any]:
        """The row of exact samples of p(x | y)^w p(x)^(1 - w), others than those of the truth."""
        row = {"law": truth.law.name, "method": name, "scale": scale, "knob": "", "value": ""}
        figures = truth.measure(self.draw_exact(truth.law, scale), tilt_of_scale(scale))
        return row | figures | {"steps": "", "evaluations": "", "potential_evaluations": ""}

    def draw_exact(self, law: Law, scale: float) -> Tensor:
        x = Truth(law, self.n, self.seed + 1).sample_tilted(tilt_of_scale(scale))
        assert x is not None
        return x

    def draw(self, law: Law, row: Mapping[str, Any]) -> Tensor:
        """The samples [n, D] of a row with the first value of the knob; none, [0, D], if its run fails."""
        name, scale = row["method"], float(row["scale"])
        if name in (EXACT, TILTED):
            return self.draw_exact(law, scale)
        try:
            return self.sample(law, name, scale, METHODS[name].values[0], int(row["steps"]), self.n)[0]
        except SamplingError:
            return law.sample(0, seed=0)
