"""Dormand and Prince's adaptive Runge-Kutta method, through torchode, with error control per sample."""

import math

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser, Energy
from ..runtime.ranges import check_range, check_whole
from ..schedules import broadcast_rows
from .ancestral import renoise
from .base import Memory, Sampler, SamplingError
from .grids import UNIFORM_T, Grid
from .noise import StepNoise

__all__ = ["Dopri5"]

FIRST_EVALUATIONS = 3  # at the start, and for torchode's choice of a first step
EVALUATIONS_PER_STEP = 6  # of every attempted step; the seventh stage is reused
MIN_EVALUATIONS = FIRST_EVALUATIONS + EVALUATIONS_PER_STEP


class Dopri5(Sampler):
    """dz / dphi = cos(phi) eps - sin(phi) x_0, with tan(phi) = sigma / alpha and z = cos(phi) x_0 + sin(phi) eps.

    The probability-flow ODE in the angle of Salimans & Ho, 2022, arXiv 2202.00512, where it defines v: z has the same law
    on every schedule, and both ends are finite and regular, pure noise (alpha = 0) included. The method is Dormand &
    Prince's 5(4), 1980. Every sample has its own steps (Lienen & Guennemann, "torchode", 2022, arXiv 2210.12375), so it
    does not depend on its batch; the whole batch is evaluated until its slowest sample is done. The state is float64, which
    the device must support.

    Evaluates at t [B], off the grid. Guidance that changes eps (CFG++) has no ODE: its slope is followed, its jumps are
    not. No denoiser is evaluated at sigma = 0: the last piece, from `noise_level_min`, is one DDIM step.

    Arguments:
        steps, grid: times at which the solution stops, each exact up to the tolerance; 1 step is the whole way.
        atol: absolute tolerance per step, positive, in units of the data (whose range is -1 to 1).
        rtol: relative tolerance per step, positive or 0; the RMS over a sample of error / (atol + rtol |z|) is at most 1.
        max_evaluations: of the denoiser, in one run; at least 9.
        noise_level_min: sigma / alpha where the last step to sigma = 0 begins, positive; other ends are reached exactly.

    Raises:
        ValueError: torchode is not installed; from `times`, a noise_level_min above the start.
        SamplingError: a run that needs more evaluations, or has numbers that are not finite.
    """

    order = 5
    off_grid = True

    def __init__(
        self,
        steps: int = 1,
        grid: Grid = UNIFORM_T,
        atol: float = 1e-5,
        rtol: float = 1e-5,
        max_evaluations: int = 1000,
        noise_level_min: float = 0.002,
    ):
        super().__init__(steps, grid)
        self.atol, self.rtol = check_range("atol", atol, "(0, inf)"), check_range("rtol", rtol, "[0, inf)")
        self.max_evaluations = check_whole("max_evaluations", max_evaluations, MIN_EVALUATIONS)
        self.noise_level_min = check_range("noise_level_min", noise_level_min, "(0, inf)")
        try:
            import torchode
        except ImportError:
            raise ValueError("sampler=dopri5 needs torchode: pip install 'diffguide[ode]'") from None
        self.torchode = torchode

    def times(self, denoiser: Denoiser | Energy) -> Tensor:
        if isinstance(denoiser, Denoiser) and denoiser.stateful:
            raise ValueError(
                "Dopri5 evaluates every sample at its own time, this guidance needs all samples at one time (it has "
                "momentum, or draws noise): take guidance.rule.momentum=0, another guidance, or another sampler"
            )
        times = super().times(denoiser)
        assert denoiser.schedule is not None
        top = float(denoiser.schedule.noise_level(times[0]))
        if denoiser.schedule.noise_level(times[-1]) == 0 and self.noise_level_min >= top:
            raise ValueError(
                f"noise_level_min must be below the noise level where sampling starts, {top:.6g}, got "
                f"{self.noise_level_min:g}: the run would be one DDIM step"
            )
        return times

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        schedule = denoiser.schedule
        end = s
        if schedule.noise_level(s) == 0:
            end = schedule.t_of(torch.tensor(-2 * math.log(self.noise_level_min), dtype=torch.float64))
        if end < t:
            x = self.solve(denoiser, x, t, end, y, memory)
            t = end
        return x if end == s else renoise(denoiser(x, t, y), schedule, s, 0.0)

    def solve(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, memory: Memory) -> Tensor:
        """x at s, by torchode in z and phi."""
        torchode, schedule, shape = self.torchode, denoiser.schedule, x.shape
        (alpha, sigma), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        start, end = (torch.atan2(b, a).to(x.device).expand(len(x)) for a, b in ((alpha, sigma), (alpha_s, sigma_s)))
        left = self.max_evaluations - memory.get("evaluations", 0)
        if left < MIN_EVALUATIONS:
            raise self.budget_error()
        prediction = denoiser(x, t, y)
        dtype = prediction.x_0.dtype  # of the model; rounding of a float32 state would decide about steps

        def slope(phi: Tensor, z: Tensor) -> Tensor:
            times = schedule.t_of(-2 * phi.tan().log()).clamp(float(s), float(t))
            scale = torch.hypot(*schedule.alpha_sigma(times, len(shape)))
            x_0, eps = denoiser((scale * z.reshape(shape)).to(dtype), times, y)
            phi = broadcast_rows(phi, len(shape))
            return (phi.cos() * eps - phi.sin() * x_0).flatten(1)

        z = (alpha * prediction.x_0.double() + sigma * prediction.eps) / torch.hypot(alpha, sigma)
        term = torchode.ODETerm(slope)
        control = torchode.IntegralController(atol=self.atol, rtol=self.rtol, term=term)
        solver = torchode.AutoDiffAdjoint(
            torchode.Dopri5(term), control, max_steps=(left - FIRST_EVALUATIONS) // EVALUATIONS_PER_STEP
        )
        problem = torchode.InitialValueProblem(y0=z.flatten(1), t_start=start, t_end=end)
        solution = solver.to(x.device).solve(problem)
        memory["evaluations"] = memory.get("evaluations", 0) + 1 + int(solution.stats["n_f_evals"].max())
        states = solution.status.unique().tolist()
        if torchode.status_codes.INFINITE_NORM in states:
            raise SamplingError(
                f"sampler=dopri5 met numbers that are not finite between t = {float(t):g} and {float(s):g}"
            )
        if states != [torchode.status_codes.SUCCESS]:
            raise self.budget_error()
        return (torch.hypot(alpha_s, sigma_s) * solution.ys[:, -1].reshape(shape)).to(dtype)

    def budget_error(self) -> SamplingError:
        return SamplingError(
            f"sampler=dopri5 needs more than max_evaluations={self.max_evaluations} evaluations for atol={self.atol:g} "
            f"and rtol={self.rtol:g}: raise max_evaluations or the tolerances"
        )
