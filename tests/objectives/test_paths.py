"""Jumps along solved paths: exact at the exact map of guided Gaussians, and what does not fit is refused."""

import copy

import pytest
import torch
from exact_jumps import SCHEDULE, ExactBackbone, Teacher

from diffguide.backbones.mlp import MLP
from diffguide.guidance import ClassifierFree
from diffguide.models.jumps import jump_to
from diffguide.models.protocols import Prediction
from diffguide.objectives.paths import PathDistillation, PathSolver, join_points
from diffguide.oracles import flow_map
from diffguide.samplers import DDPM, DPMpp2M, Heun
from diffguide.samplers.grids import UniformT


class ExactSolver:
    """The closed form of the flow at the scale of every row."""

    def times(self, denoiser):
        return UniformT()(SCHEDULE, 4)

    def __call__(self, denoiser, x, times, y=None, noise=None, on_step=None):
        for step, s in enumerate(times[1:], 1):
            rows = (
                flow_map(ClassifierFree(Teacher(), float(w)), row[None], times[0], s, label[None])
                for row, label, w in zip(x, y, denoiser.scale)
            )
            on_step(step, torch.cat(list(rows)))
        return x


def student(backbone=None, solver=None, **options):
    facts = {"paths": 6, "jump_share": 0.7, "p_uncond": 0.3} | options
    return PathDistillation(
        backbone or ExactBackbone(), SCHEDULE, Teacher(), ClassifierFree, solver or ExactSolver(), (1.0, 4.0), **facts
    )


def batch(n=64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=rng, dtype=torch.float64), torch.zeros(n, dtype=torch.long), rng


def test_the_loss_is_0_at_the_exact_map():
    objective = student()
    objective.check(batch()[0])
    loss = objective(*batch())
    assert float(loss.per_example.abs().max()) < 1e-15
    noised, _, s = objective.draw(*batch(300))
    jumps = {(round(t, 9), round(end, 9)) for t, end in zip(noised.t.tolist(), s.tolist()) if end < t}
    assert jumps == {(1, 0), (1, 0.5), (0.5, 0), (1, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0)}
    assert set(noised.y.tolist()) == {0, -1} and 0.5 < float((s < noised.t).double().mean()) < 0.9


def test_the_error_of_a_solver_is_that_of_its_order():
    losses = [student(solver=Heun(n, UniformT()), jump_share=1.0)(*batch()).per_example.mean().item() for n in (8, 16)]
    assert losses[0] < 1e-3 and losses[0] / losses[1] > 10  # second order, squared: 16


def test_a_pair_reaches_both_points():
    x_t, x_s = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    t, s = torch.full((5,), 0.8, dtype=torch.float64), torch.tensor([0.0, 0.1, 0.3, 0.5, 0.7], dtype=torch.float64)
    pair = join_points(x_t, x_s, SCHEDULE, t, s)
    for time, x in ((t, x_t), (s, x_s)):
        torch.testing.assert_close(jump_to(pair, SCHEDULE, time), x, rtol=1e-12, atol=1e-12)


def test_paths_are_a_function_of_their_seed_and_shared_by_copies():
    network = MLP(3, num_classes=1, width=8, layers=1, further_inputs=2)
    first, again, other = (
        student(network, DPMpp2M(4, UniformT()), seed=seed, jump_share=1.0, paths=300) for seed in (1, 1, 2)
    )
    x_0, y, rng = batch()
    x_0 = x_0.float()
    average = copy.deepcopy(first)
    points = [objective.paths_on(x_0).points for objective in (first, again, other)]
    assert torch.equal(points[0], points[1]) and not torch.equal(points[0], points[2])
    assert average.paths_on(x_0).points is first.paths_on(x_0).points and average.model is not first.model
    assert first(x_0, y, rng).per_example.requires_grad
    assert first(x_0.bfloat16(), y, rng).per_example.dtype == torch.float32  # as it comes in mixed precision


def test_a_teacher_without_classes_and_rows_of_the_field_alone():
    class Plain(Teacher):
        num_classes = 0

        def __call__(self, x_t, t, y=None):
            return Prediction(x_t, torch.zeros_like(x_t))

    network = MLP(3, width=8, layers=1, further_inputs=2).double()
    objective = PathDistillation(
        network, SCHEDULE, Plain(), None, DPMpp2M(4, UniformT()), (1.0, 1.0), 3, jump_share=1.0
    )
    x_0, _, rng = batch(4)
    noised, _, s = objective.draw(x_0, None, rng)
    assert noised.y is None and bool((s < noised.t).all())
    objective.jump_share = 0.0
    noised, _, s = objective.draw(x_0, None, rng)
    assert torch.equal(s, noised.t) and torch.equal(objective.find_target(noised, s).x_0, noised.x_t)


@pytest.mark.parametrize(
    "build, reason",
    [
        (lambda: student(calls=()), "at least one number"),
        (lambda: student(calls=(3,)).check(batch()[0]), "does not divide the 4 steps"),
        (lambda: PathDistillation(ExactBackbone(), SCHEDULE, scales=(1.0, 1.0)).check(batch()[0]), "objective.teacher"),
        (lambda: student(solver=DDPM(4, UniformT()))(*batch()), "draws noise"),
    ],
)
def test_what_does_not_fit_is_refused(build, reason):
    with pytest.raises(ValueError, match=reason):
        build()


def test_samplers_are_solvers():
    assert issubclass(DPMpp2M, PathSolver) and not issubclass(Teacher, PathSolver)
