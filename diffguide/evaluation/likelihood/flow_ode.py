"""log p(x) of any denoiser by its probability-flow ODE, the continuous change of variables.

Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021, arXiv 2011.13456, eq. 39;
Chen et al., "Neural Ordinary Differential Equations", 2018, arXiv 1806.07366, theorem 1. In z = x_t / alpha and the noise
level s = sigma / alpha, the same for every schedule:

    dz / ds = eps_hat,    log p_0(z_0) = log N(z_1; 0, s_1^2 I) + int div_z eps_hat ds.

It is integrated over u = log s, in v = z / sqrt(1 + s^2), which has the size of the data at every level.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...models.protocols import Denoiser, SamplingError
from ...randomness import Noise
from .elbo import nearest_level, start_log_snr

__all__ = ["Adaptive", "ExactTrace", "FixedGrid", "FlowDensity", "Hutchinson", "Solver", "Trace", "flow_log_density"]

Slope = Callable[[Tensor, Tensor], Tensor]


class FlowDensity(NamedTuple):
    """log p_0 in nats, [B] float64, and the number of evaluations of the denoiser, the slowest example's."""

    log_density: Tensor
    evaluations: int


class Trace:
    """Base of the ways to a divergence: sum_k <p_k, J p_k> times a number, for vectors p_k that span the space or sample it.

    Attributes:
        random: whether the vectors are drawn.
        text: what it is, for whoever reads the figure.
    """

    random = False
    text = "exact"

    def check(self, size: int) -> None:
        """Raises ValueError where examples of so many values cost more than was allowed."""

    def vectors(self, x: Tensor, noise: Noise | None, index: int) -> tuple[Tensor, float]:
        """p [P, 1 or B, D], the same along the whole way of an example, and the number; `index` counts the draws."""
        raise NotImplementedError


class ExactTrace(Trace):
    """div eps = sum_i d eps_i / d x_i: one backward pass for each of the D values of an example.

    Arguments:
        largest: D at most, so that nobody waits for a million backward passes without having said so.

    Raises:
        ValueError: from check and from a call: examples with more values.
    """

    def __init__(self, largest: int):
        self.largest = largest

    def check(self, size: int) -> None:
        if size > self.largest:
            raise ValueError(
                f"an exact trace is a backward pass for each of {size} values, and trace.largest allows {self.largest}: take "
                "metric/trace=hutchinson, or a larger trace.largest"
            )

    def vectors(self, x: Tensor, noise: Noise | None, index: int) -> tuple[Tensor, float]:
        size = x[0].numel()
        self.check(size)
        return torch.eye(size, dtype=x.dtype, device=x.device)[:, None], 1.0


class Hutchinson(Trace):
    """div eps = E <p, J p> over random signs p: unbiased, exact where J is diagonal.

    Its variance is twice the sum of squares of what stands off the diagonal of (J + J^T) / 2.

    Hutchinson, 1989; Grathwohl et al., "FFJORD", 2019, arXiv 1810.01367. The signs are functions of an example's seed.

    Arguments:
        probes: sign vectors per example, at least 1.

    Raises:
        ValueError: no probe.
    """

    random = True

    def __init__(self, probes: int):
        if probes < 1:
            raise ValueError(f"probes must be at least 1, got {probes}")
        self.probes, self.text = probes, f"Hutchinson, {probes} sign probes per example"

    def vectors(self, x: Tensor, noise: Noise | None, index: int) -> tuple[Tensor, float]:
        if noise is None:
            raise ValueError("a Hutchinson trace draws its probes: give it noise, one seed per example")
        normals = torch.stack([noise.normal(k, 2 * index) for k in range(self.probes)])
        return torch.where(normals > 0, 1.0, -1.0).to(x).flatten(2), 1 / self.probes


class Solver:
    """Base of the ODE solvers of a likelihood.

    Attributes:
        text: what it is, for whoever reads the figure.
        at_levels: whether it asks at the given levels alone.
    """

    text: str
    at_levels = False

    def __call__(
        self, slope: Slope, state: Tensor, start: float, end: float, levels: Sequence[float] = ()
    ) -> tuple[Tensor, int]:
        """The state [B, N] float64 at `end`, and the evaluations that took, the slowest example's.

        Arguments:
            levels: where alone the slope is known, from start to end; none = everywhere.
        """
        raise NotImplementedError


class FixedGrid(Solver):
    """The classical Runge-Kutta method of order 4 in equal steps of the log-SNR.

    An example's result does not know its batch. How good it is shows a second run with twice the steps: the error falls by 16.

    Arguments:
        steps: at least 1, four evaluations each.

    Raises:
        ValueError: no step.
    """

    def __init__(self, steps: int):
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.steps, self.text = steps, f"Runge-Kutta 4, {steps} equal steps of the log-SNR"

    def __call__(
        self, slope: Slope, state: Tensor, start: float, end: float, levels: Sequence[float] = ()
    ) -> tuple[Tensor, int]:
        h = (end - start) / self.steps
        for k in range(self.steps):
            u = torch.full((len(state),), start + k * h, dtype=state.dtype, device=state.device)
            k_1 = slope(u, state)
            k_2 = slope(u + h / 2, state + h / 2 * k_1)
            k_3 = slope(u + h / 2, state + h / 2 * k_2)
            k_4 = slope(u + h, state + h * k_3)
            state = state + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
        return state, 4 * self.steps


class Adaptive(Solver):
    """Dormand and Prince's 5(4) with an error control of its own for every example, by torchode (the extra `ode`).

    Lienen & Guennemann, "torchode", 2022, arXiv 2210.12375.

    Arguments:
        atol: absolute tolerance per step, positive, of the state (whose size is that of the data) and of the log-density
            in nats per dimension.
        rtol: relative tolerance per step, positive or 0.
        max_evaluations: of the denoiser, for one batch; at least 9.

    Raises:
        ValueError: a tolerance out of range; torchode is not installed.
        SamplingError: from a call: more evaluations needed, or numbers that are not finite.
    """

    def __init__(self, atol: float, rtol: float, max_evaluations: int):
        if not 0 < atol < math.inf or not 0 <= rtol < math.inf or max_evaluations < 9:
            raise ValueError(
                "metric/solver=adaptive needs atol above 0, rtol of at least 0 and max_evaluations of at least 9, got "
                f"atol={atol}, rtol={rtol}, max_evaluations={max_evaluations}"
            )
        try:
            import torchode
        except ImportError:
            raise ValueError("metric/solver=adaptive needs torchode: pip install 'diffguide[ode]'") from None
        self.torchode, self.atol, self.rtol, self.max_evaluations = torchode, atol, rtol, max_evaluations
        self.text = f"Dormand-Prince 5(4) per example, atol {atol:g}, rtol {rtol:g}"

    def __call__(
        self, slope: Slope, state: Tensor, start: float, end: float, levels: Sequence[float] = ()
    ) -> tuple[Tensor, int]:
        torchode = self.torchode
        term = torchode.ODETerm(slope)
        control = torchode.IntegralController(atol=self.atol, rtol=self.rtol, term=term)
        steps = (self.max_evaluations - 3) // 6
        solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term), control, max_steps=steps).to(state.device)
        begin, stop = (torch.full((len(state),), u, dtype=state.dtype, device=state.device) for u in (start, end))
        solution = solver.solve(torchode.InitialValueProblem(y0=state, t_start=begin, t_end=stop))
        statuses = solution.status.unique().tolist()
        if torchode.status_codes.INFINITE_NORM in statuses:
            raise SamplingError("the probability-flow ODE met numbers that are not finite: is this model trained?")
        if statuses != [torchode.status_codes.SUCCESS]:
            raise SamplingError(
                f"the probability-flow ODE needs more than max_evaluations={self.max_evaluations} evaluations for "
                f"atol={self.atol:g} and rtol={self.rtol:g}: raise the one or the others"
            )
        return solution.ys[:, -1], int(solution.stats["n_f_evals"].max())


@torch.no_grad()
def flow_log_density(
    denoiser: Denoiser, x: Tensor, y: Condition | None, trace: Trace, solver: Solver, noise: Noise | None,
    index: int = 0, log_snr_max: float | None = None, progress: Callable[[float], None] | None = None,
) -> FlowDensity:  # fmt: skip
    """log p_0(x | y) in nats, the density at x of z_0 = x_0 + s_0 eps, where s_0 is the noise level of the start.

    The ODE starts where the schedule does, or later: what it knows is the law of data with that little noise (0.0025 on
    schedule=cosine). For discrete data see `likelihood.Uniform` and `likelihood.Decoded`. It ends in the law
    N(0, sigma_1^2 I) from which samplers start, so that the density is that of their samples, by the ODE.

    First derivatives of the network are all it takes: compiled networks and fused attention will do.

    Arguments:
        x: [B, ...], on the denoiser's device; the denoiser is evaluated in its dtype, the state is float64.
        y: condition, None = of no row.
        trace, solver: how the divergence and the ODE are computed.
        noise: one seed per example, in the shape of x; None where the trace needs none.
        index: of the draw, for other probes of the same examples.
        log_snr_max: where the ODE starts, s_0 = exp(-log_snr_max / 2); None = at the schedule's end, t = 0. For a model of
            discrete levels one of theirs.
        progress: called after every evaluation with the share of the way at which it was, the slowest example's; trial
            steps of an adaptive solver come back.

    Raises:
        ValueError: infinite ends, a start beyond the schedule, or what the trace or the solver say.
    """
    schedule, (batch, *shape) = denoiser.schedule, x.shape
    size, ends = math.prod(shape), (-start_log_snr(schedule, log_snr_max) / 2, -schedule.log_snr_min / 2)
    vectors, factor = trace.vectors(x, noise, index)
    per_root = 1 / math.sqrt(size)  # the log-density's column counts in an error norm as much as all of the others

    def slope(u: Tensor, state: Tensor) -> Tensor:
        t = nearest_level(schedule.t_of(-2 * u).clamp(0, 1), denoiser.levels)
        scale = torch.hypot(*schedule.scales(-2 * u, 2))
        with torch.enable_grad():
            v = state[:, :-1].detach().requires_grad_()
            x_0, eps = denoiser((scale * v).to(x.dtype).unflatten(1, shape), t, y)
            eps = eps.flatten(1)
            divergence = torch.zeros(batch, dtype=state.dtype, device=state.device)
            for k, vector in enumerate(vectors):
                product = torch.autograd.grad(eps, v, vector.expand_as(eps).to(eps), retain_graph=k + 1 < len(vectors))[
                    0
                ]
                divergence += (product * vector).sum(1)
        phi = u.exp().atan()[:, None]
        x_0, eps = x_0.detach().flatten(1).double(), eps.detach().double()
        if progress is not None:
            progress(min(1.0, (float(u.min()) - ends[0]) / (ends[1] - ends[0])))
        way = phi.sin() * phi.cos() * (phi.cos() * eps - phi.sin() * x_0)  # dv / du
        grown = (
            factor * phi.sin() * divergence[:, None] - size * phi.sin() ** 2
        )  # volume of v: that of z grows by itself
        return torch.cat([way, per_root * grown], dim=1)

    start, end = (math.exp(u) for u in ends)
    v = x.double().flatten(1) / math.hypot(1, start)
    levels: Sequence[float] = ()
    if denoiser.levels is not None:
        rising = (-schedule.log_snr(denoiser.levels.cpu()).flip(0) / 2).tolist()
        levels = [u for u in rising if u >= ends[0] - 1e-9]
    state, evaluations = solver(slope, torch.cat([v, v.new_zeros(batch, 1)], dim=1), *ends, levels)
    z = state[:, :-1] * math.hypot(1, end)
    prior = -0.5 * size * math.log(2 * math.pi * end**2) - 0.5 * (z / end).square().sum(1)
    volume = 0.5 * size * math.log((1 + end**2) / (1 + start**2))
    return FlowDensity(prior + volume + state[:, -1] / per_root, evaluations)
