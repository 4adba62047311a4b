"""Jumps along solved paths: the points where a guided teacher's flow passes, learned as jumps of one call."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..models.jumps import JumpModel
from ..models.parameterizations import Parameterization
from ..models.protocols import Denoiser, Prediction
from ..randomness import Share, uniform
from ..runtime.ranges import check_whole
from ..schedules import Schedule, broadcast_rows
from .denoising import V_PREDICTION
from .flow_fields import DataField, Field, Noised
from .flow_map import FlowMap

__all__ = ["GuidedField", "PathDistillation", "PathSolver", "Paths", "join_points"]

BLOCK = 250  # paths that are solved at a time
CALLS, SCALES = (1, 2, 4), (1.0, 4.0)


@runtime_checkable
class PathSolver(Protocol):
    """A sampler of the ODE, as in `samplers`, which objectives do not import."""

    def times(self, denoiser: Denoiser) -> Tensor:
        """The grid, decreasing, float64 [steps + 1] on the CPU."""

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        times: Tensor,
        y: Condition | None = None,
        noise: Any = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Steps x from times[0] to times[-1], and calls on_step(step from 1, x) after every step."""


class GuidedField(Denoiser):
    """A field as a denoiser on the schedule of a model, at a scale [B] of its own in every row."""

    has_null = True

    def __init__(self, field: Field, model: JumpModel, scale: Tensor):
        self.field, self.model, self.scale = field, model, scale
        self.schedule, self.num_classes = model.schedule, model.num_classes

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        time = t.to(x_t.device).expand(len(x_t))
        return self.field(Noised(x_t, x_t, x_t, time, y, self.scale), self.model)


class Paths(NamedTuple):
    """Points [N, S + 1, ...] of N paths at the times [S + 1], with class [N] (None = no classes) and scale [N]."""

    points: Tensor
    times: Tensor
    y: Tensor | None
    scale: Tensor

    def to(self, device: torch.device) -> "Paths":
        """The same on a device, but the times."""
        y = None if self.y is None else self.y.to(device)
        return Paths(self.points.to(device), self.times, y, self.scale.to(device))


class PathStore:
    """What an objective and its copies share: the average of the weights learns from the same paths."""

    solved: Paths | None = None

    def __deepcopy__(self, memo: dict) -> Self:
        return self


def join_points(x_t: Tensor, x_s: Tensor, schedule: Schedule, t: Tensor, s: Tensor) -> Prediction:
    """The pair (x_0, eps) of a jump from x_t to x_s: alpha x_0 + sigma eps = x at both ends; times [B].

    x_0 = (sigma_s x_t - sigma_t x_s) / d,  eps = (alpha_t x_s - alpha_s x_t) / d,  d = alpha_t sigma_s - alpha_s sigma_t.
    """
    (a_t, s_t), (a_s, s_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    d = a_t * s_s - a_s * s_t
    start, end = (
        [broadcast_rows(part / d, x_t.ndim).to(x_t) for part in parts] for parts in ((s_s, -a_s), (-s_t, a_t))
    )
    x_0, eps = (of_t * x_t + of_s * x_s for of_t, of_s in zip(start, end))
    return Prediction(x_0, eps)


class PathDistillation(FlowMap):
    """|| F(x_t, t, s, w, y) - (p x_0* + q eps*) ||^2 / D with the pair by which x_t jumps to x_s on a path of the teacher.

    A path is the teacher's guided ODE from noise to data at a scale w, solved once, before the first step. A jump goes from
    a point of it to a later one, so its target is no jump of the network itself, whose errors would add up. For one call it
    is the regression of images on their noise (Luhman & Luhman 2021, arXiv 2101.02388); ends between are those that a
    solver reaches in consistency trajectory models (Kim et al. 2023, arXiv 2310.02279, eq. 6). The other rows learn the field
    at noised examples: guidance distillation.

    Arguments:
        backbone, schedule, scales, parameterization, p_uncond: as of `FlowMap`.
        teacher, teacher_guidance: as of `FlowMap`; without a teacher it cannot be trained, only loaded.
        solver: sampler of the ODE, whose grid are the points of a path.
        paths: their number; every class has as many.
        calls: numbers of jumps for which a picture's jumps are learned, each as often; they divide the steps of the solver.
        jump_share: expected share of the examples that jump, in [0, 1].
        seed: of the noise and the scales of the paths.

    A held-out loss is of held-out examples in the rows that learn the field, and of the same paths in the others.

    Raises:
        ValueError: from check: no teacher or solver, a number of calls that does not divide the solver's steps, or a model of
            other conditions than classes.
    """

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule,
        teacher: Denoiser | None = None,
        teacher_guidance: Callable[[Denoiser], Denoiser] | None = None,
        solver: PathSolver | None = None,
        scales: Sequence[float] = SCALES,
        paths: int = 2000,
        calls: Sequence[int] = CALLS,
        jump_share: float = 0.8,
        parameterization: Parameterization = V_PREDICTION,
        p_uncond: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(
            backbone,
            schedule,
            teacher,
            teacher_guidance,
            scales,
            jump_share=jump_share,
            parameterization=parameterization,
            p_uncond=p_uncond,
        )
        self.model.jumps = True
        self.solver, self.count, self.seed = solver, check_whole("paths", paths, 1), seed
        self.calls = [check_whole("calls", each, 1) for each in calls]
        if not self.calls:
            raise ValueError("calls must list at least one number of jumps, got []")
        self.store = PathStore()

    def check(self, x_0: Tensor) -> None:
        super().check(x_0)
        if isinstance(self.field, DataField) or self.solver is None:
            raise ValueError(
                "objective=path_distillation learns from a teacher: set objective.teacher to its run folder"
            )
        if self.model.conditioning is not None:
            raise ValueError(
                "objective=path_distillation knows classes alone: take objective=flow_map for other conditions"
            )
        steps = len(self.solver.times(GuidedField(self.field, self.model, torch.ones(1)))) - 1
        if wrong := [each for each in self.calls if steps % each]:
            raise ValueError(f"objective.calls={wrong[0]} does not divide the {steps} steps of objective.solver")

    def paths_on(self, x_0: Tensor) -> Paths:
        """The paths, on the device of examples; solved at the first call."""
        if self.store.solved is None:
            with torch.autocast(x_0.device.type, enabled=False):
                self.store.solved = self.solve(x_0)
        self.store.solved = self.store.solved.to(x_0.device)
        return self.store.solved

    @torch.no_grad()
    def solve(self, x_0: Tensor) -> Paths:
        """Solves all paths for examples like x_0, a function of `seed`."""
        rng = torch.Generator().manual_seed(self.seed)
        scale = self.draw_scales(self.count, rng)
        classes = self.model.num_classes
        dropped = uniform((self.count,), rng, torch.float64) < self.p_uncond
        y = torch.where(dropped, -1, torch.arange(self.count) % max(classes, 1)) if classes else None
        solver, device, blocks = self.solver, x_0.device, []
        assert solver is not None  # of `check`
        for rows in torch.arange(self.count).split(BLOCK):
            field = GuidedField(self.field, self.model, scale[rows].to(device))
            times = solver.times(field)
            z = torch.randn(len(rows), *x_0.shape[1:], generator=rng, dtype=x_0.dtype)
            points = [float(self.model.schedule.alpha_sigma(times[0])[1]) * z.to(device)]
            labels = None if y is None else y[rows].to(device)
            solver(field, points[0], times, labels, on_step=lambda step, x: points.append(x))  # noqa: B023  # called here
            blocks.append(torch.stack(points, 1).to(x_0.dtype))
        return Paths(torch.cat(blocks), times, None if y is None else y.to(device), scale.to(device))

    def draw(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> tuple[Noised, Tensor, Tensor]:
        """A batch whose jumping rows are points of paths, with their pair in place of (x_0, eps)."""
        batch, density, t = super().draw(x_0, y, rng)
        paths, n, device = self.paths_on(x_0), len(x_0), x_0.device
        chance, path, kind, place = (uniform((n,), rng, torch.float64) for _ in range(4))
        jumping = chance < self.jump_share
        if not bool(jumping.any()):
            return batch, density, t
        path, kind, place = path[jumping], kind[jumping], place[jumping]
        calls = torch.tensor(self.calls, device=device)[(kind * len(self.calls)).long()]
        stride = (len(paths.times) - 1) // calls
        first, row = (place * calls).long() * stride, (path * self.count).long()
        grid = paths.times.to(device)
        start, end = grid[first], grid[first + stride]
        x_t = paths.points[row, first]
        pair = join_points(x_t, paths.points[row, first + stride], self.model.schedule, start, end)
        replaced = [part.clone() for part in (batch.x_0, batch.eps, batch.x_t, t, batch.scale, t)]
        for part, value in zip(replaced, (*pair, x_t, start, paths.scale[row], end)):
            part[jumping] = value
        labels = batch.y
        if paths.y is not None and isinstance(labels, Tensor):
            labels = labels.clone()
            labels[jumping] = paths.y[row].to(labels)
        x_0, eps, x_t, time, scale, s = replaced
        return Noised(x_0, eps, x_t, time, labels, scale), density, s

    def find_target(self, batch: Noised, s: Tensor) -> Prediction:
        """The pair of every row: of the jump, which `draw` found, or of the field."""
        still = s == batch.t
        if not bool(still.any()):
            return Prediction(batch.x_0, batch.eps)
        field = self.field(batch.rows(still), self.model)
        x_0, eps = batch.x_0.clone(), batch.eps.clone()
        x_0[still], eps[still] = field.x_0.to(x_0), field.eps.to(eps)
        return Prediction(x_0, eps)
