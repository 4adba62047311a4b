"""log p(x) of any denoiser by its probability-flow ODE, with the continuous change of variables.

Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021, arXiv 2011.13456, eq. 39;
Chen et al., "Neural Ordinary Differential Equations", 2018, arXiv 1806.07366, theorem 1. In z = x_t / alpha and the noise
level s = sigma / alpha, for every schedule:

    dz / ds = eps_hat,    log p_0(z_0) = log N(z_1; 0, s_1^2 I) + int div_z eps_hat ds.

The integration variable is u = log s, the state v = z / sqrt(1 + s^2), which has the scale of the data at every level.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...models.protocols import Denoiser, SamplingError
from ...randomness import Noise
from ...runtime.ranges import check_range, check_whole
from .elbo import start_log_snr
from .flow_slope import FlowSlope

__all__ = ["Adaptive", "ExactTrace", "FixedGrid", "Hutchinson", "Solver", "Trace", "flow_log_density"]

Slope = Callable[[Tensor, Tensor], Tensor]


class Trace:
    """Base of the traces: c sum_k <p_k, J p_k>, for vectors p_k that are a basis or random.

    Attributes:
        random: whether the vectors are random.
        text: description, for metrics.json.
    """

    random = False
    text = "exact"

    def check(self, size: int) -> None:
        """Raises ValueError if examples of `size` values have too many for this trace."""

    def vectors(self, x: Tensor, noise: Noise | None, index: int, evaluation: int) -> tuple[Tensor, float]:
        """p [P, 1 or B, D], independent for each evaluation of a path if they are random, and c; `index` counts the draws."""
        raise NotImplementedError


class ExactTrace(Trace):
    """div eps = sum_i d eps_i / d x_i: one backward pass for each of the D values of an example.

    Arguments:
        largest: maximum of D; prevents millions of backward passes by mistake.

    Raises:
        ValueError: from check and from a call: examples with more values.
    """

    def __init__(self, largest: int = 256):
        self.largest = largest

    def check(self, size: int) -> None:
        if size > self.largest:
            raise ValueError(
                f"an exact trace needs a backward pass for each of {size} values, more than trace.largest={self.largest}: use "
                "metric/trace=hutchinson, or a larger trace.largest"
            )

    def vectors(self, x: Tensor, noise: Noise | None, index: int, evaluation: int) -> tuple[Tensor, float]:
        size = x[0].numel()
        self.check(size)
        return torch.eye(size, dtype=x.dtype, device=x.device)[:, None], 1.0


class Hutchinson(Trace):
    """div eps = E <p, J p> over random signs p: unbiased, exact for a diagonal J.

    Its variance is twice the sum of squares of the off-diagonal elements of (J + J^T) / 2. The signs are functions of an
    example's seed and of the number of the evaluation. Hutchinson, 1989; Grathwohl et al., "FFJORD", 2019, arXiv 1810.01367.

    The path does not depend on the divergence, and a solver with fixed steps weights the slopes by constants. So new signs
    in each evaluation keep the estimate unbiased, and their errors average along the path: one backward pass per evaluation
    has a smaller error than four with signs that are constant along the path. A solver with error control needs constant
    signs, since it takes the difference of two slopes for its error.

    Arguments:
        probes: sign vectors per example and evaluation, at least 1; one backward pass each.
    """

    random = True

    def __init__(self, probes: int = 1):
        self.probes = check_whole("probes", probes, 1)
        self.text = f"Hutchinson, {probes} sign probe{'s' * (probes > 1)} per example and evaluation"

    def vectors(self, x: Tensor, noise: Noise | None, index: int, evaluation: int) -> tuple[Tensor, float]:
        if noise is None:
            raise ValueError("a Hutchinson trace has random probes: pass noise, one seed per example")
        first = evaluation * self.probes
        normals = torch.stack([noise.normal(first + k, 2 * index) for k in range(self.probes)])
        return torch.where(normals > 0, 1.0, -1.0).to(x).flatten(2), 1 / self.probes


class Solver:
    """Base of the ODE solvers of a likelihood.

    Attributes:
        text: description, for metrics.json.
        at_levels: whether it evaluates the slope only at the given levels.
        controls_error: whether it compares slopes, so that random probes must be constant along the path.
    """

    text: str
    at_levels = False
    controls_error = False

    def __call__(self, slope: Slope, state: Tensor, start: float, end: float, levels: Sequence[float] = ()) -> Tensor:
        """The state [B, N] float64 at `end`.

        Arguments:
            levels: the values of u at which the slope is defined, from start to end; () = all.
        """
        raise NotImplementedError


class FixedGrid(Solver):
    """The classical Runge-Kutta method of order 4 in equal steps of the log-SNR.

    The result of an example does not depend on its batch. Twice as many steps divide the error by 16.

    Arguments:
        steps: at least 1, four evaluations each.
    """

    def __init__(self, steps: int = 64):
        self.steps = check_whole("steps", steps, 1)
        self.text = f"Runge-Kutta 4, {steps} equal steps of the log-SNR"

    def __call__(self, slope: Slope, state: Tensor, start: float, end: float, levels: Sequence[float] = ()) -> Tensor:
        h = (end - start) / self.steps
        for k in range(self.steps):
            u = torch.full((len(state),), start + k * h, dtype=state.dtype, device=state.device)
            k_1 = slope(u, state)
            k_2 = slope(u + h / 2, state + h / 2 * k_1)
            k_3 = slope(u + h / 2, state + h / 2 * k_2)
            k_4 = slope(u + h, state + h * k_3)
            state = state + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
        return state


class Adaptive(Solver):
    """Dormand and Prince's 5(4) with an error control per example, by torchode (the extra `ode`).

    Lienen & Guennemann, "torchode", 2022, arXiv 2210.12375.

    Arguments:
        atol: absolute tolerance per step, positive, of the state (on the scale of the data) and of the log-density in nats
            per dimension.
        rtol: relative tolerance per step, positive or 0.
        max_evaluations: of the denoiser, for one batch; at least 9.

    Raises:
        ValueError: a tolerance out of range; torchode is not installed.
        SamplingError: from a call: more than max_evaluations are needed, or values are not finite.
    """

    controls_error = True

    def __init__(self, atol: float = 1e-5, rtol: float = 1e-5, max_evaluations: int = 5000):
        self.atol = check_range("atol", atol, "(0, inf)")
        self.rtol = check_range("rtol", rtol, "[0, inf)")
        self.max_evaluations = check_whole("max_evaluations", max_evaluations, 9)
        try:
            import torchode
        except ImportError:
            raise ValueError("metric/solver=adaptive needs torchode: pip install 'diffguide[ode]'") from None
        self.torchode = torchode
        self.text = f"Dormand-Prince 5(4) per example, atol {atol:g}, rtol {rtol:g}"

    def __call__(self, slope: Slope, state: Tensor, start: float, end: float, levels: Sequence[float] = ()) -> Tensor:
        torchode = self.torchode
        term = torchode.ODETerm(slope)
        control = torchode.IntegralController(atol=self.atol, rtol=self.rtol, term=term)
        steps = (self.max_evaluations - 3) // 6
        solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term), control, max_steps=steps).to(state.device)
        begin, stop = (torch.full((len(state),), u, dtype=state.dtype, device=state.device) for u in (start, end))
        solution = solver.solve(torchode.InitialValueProblem(y0=state, t_start=begin, t_end=stop))
        statuses = solution.status.unique().tolist()
        if torchode.status_codes.INFINITE_NORM in statuses:
            raise SamplingError("the probability-flow ODE reached values that are not finite: is this model trained?")
        if statuses != [torchode.status_codes.SUCCESS]:
            raise SamplingError(
                f"the probability-flow ODE needs more than max_evaluations={self.max_evaluations} evaluations for "
                f"atol={self.atol:g} and rtol={self.rtol:g}: increase max_evaluations or the tolerances"
            )
        return solution.ys[:, -1]


@torch.no_grad()
def flow_log_density(
    denoiser: Denoiser,
    x: Tensor,
    y: Condition | None,
    trace: Trace,
    solver: Solver,
    noise: Noise | None,
    index: int = 0,
    log_snr_max: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """log p_0(x | y) in nats, [B] float64, the density at x of z_0 = x_0 + s_0 eps, where s_0 is the noise level of the start.

    By default s_0 is the smallest noise level of the schedule (0.0025 for schedule=cosine). The ODE ends in
    N(0, sigma_1^2 I), from which samplers start: the density is that of samples of the ODE. For discrete data see
    `UniformDequantization` and `DecoderDequantization`. Only first derivatives are needed, so compiled networks and fused
    attention work.

    Arguments:
        x: [B, ...], on the device of the denoiser, which is evaluated in its dtype; the state is float64.
        y: condition, None = no row has one.
        trace, solver: of the divergence and the ODE.
        noise: one seed per example, in the shape of x; None for an exact trace.
        index: of the draw; each draw has its own probes.
        log_snr_max: where the ODE starts, s_0 = exp(-log_snr_max / 2); None = t = 0. For a model with discrete levels one
            of them.
        progress: called after each evaluation with the fraction of the path done, the minimum over examples; it decreases
            when an adaptive solver repeats a step.

    Raises:
        ValueError: infinite ends, a start outside the schedule, or an error of the trace or the solver.
    """
    schedule, size = denoiser.schedule, x[0].numel()
    ends = -start_log_snr(schedule, log_snr_max) / 2, -schedule.log_snr_min / 2
    redraw = trace.random and not solver.controls_error

    @functools.lru_cache(maxsize=1)
    def probes(evaluation: int) -> tuple[Tensor, float]:
        return trace.vectors(x, noise, index, evaluation)

    slope = FlowSlope(denoiser, y, x.shape[1:], x.dtype, lambda k: probes(k if redraw else 0), ends, progress)
    start, end = (math.exp(u) for u in ends)
    v = x.double().flatten(1) / math.hypot(1, start)
    levels: Sequence[float] = ()
    if denoiser.levels is not None:
        ascending = (-schedule.log_snr(denoiser.levels.cpu()).flip(0) / 2).tolist()
        levels = [u for u in ascending if u >= ends[0] - 1e-9]
    state = solver(slope, torch.cat([v, v.new_zeros(len(x), 1)], dim=1), *ends, levels)
    z = state[:, :-1] * math.hypot(1, end)
    prior = -0.5 * size * math.log(2 * math.pi * end**2) - 0.5 * (z / end).square().sum(1)
    volume = 0.5 * size * math.log((1 + end**2) / (1 + start**2))
    return prior + volume + state[:, -1] / slope.scale
