"""The first steps of CFG-Zero* (arXiv 2503.18886) are whole steps: still for every sampler, whatever it evaluates in a step."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from all_samplers import SAMPLERS, every_sampler
from closed_forms import ExactMixture, Mixture, two_classes
from exact_models import oracle
from potential_laws import Towards
from scipy.integrate import solve_ivp

from diffguide.guidance import ClassifierFree
from diffguide.guidance.potentials import PotentialGuidance
from diffguide.guidance.rules import CFGZero
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.protocols import SamplingError
from diffguide.randomness import Noise
from diffguide.samplers import DDIM, DDIMInversion, Heun, Restart, TimeTravel
from diffguide.samplers.grids import UniformT
from diffguide.schedules import EDM, Cosine, Flow, SubVP

EVERYWHERE, SCALE = (0.0, math.inf), 1.5
SCHEDULES = {
    "flow": Flow(12.0, -12.0),
    "vp": Cosine(12.0, -10.0),
    "ve": EDM(12.4, -8.7),
    "sub_vp": SubVP(18.2, None, 0.1, 20.0),
}
Y = torch.arange(12) % 2


def zero(schedule, steps: int, law: Mixture | None = None) -> ClassifierFree:
    return ClassifierFree(ExactMixture(law or two_classes(), schedule), SCALE, EVERYWHERE, CFGZero(steps))


def points(schedule) -> torch.Tensor:
    sigma = float(schedule.alpha_sigma(torch.tensor(1.0, dtype=torch.float64))[1])
    return sigma * torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def noise(schedule) -> Noise:
    return Noise(range(12), (2,), schedule, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@every_sampler
def test_a_skipped_step_moves_and_evaluates_nothing(make, schedule):
    """x as it was, bit for bit, no evaluation; and what follows is a run that begins there, with no memory of it."""
    sampler, counter, x, seen = make(6), EvaluationCounter(ExactMixture(two_classes(), schedule)), points(schedule), []
    guided = ClassifierFree(counter, SCALE, EVERYWHERE, CFGZero(2))
    times = UniformT()(schedule, 6)
    end = sampler(guided, x, times, Y, noise(schedule), lambda k, at: seen.append((at, counter.tally.evaluations)))
    assert all(torch.equal(at, x) and count == 0 for at, count in seen[:2])
    assert not torch.equal(seen[2][0], x) and seen[2][1] > 0
    rest = sampler(zero(schedule, 0), x, times[2:], Y, noise(schedule))
    torch.testing.assert_close(end, rest, rtol=1e-9, atol=1e-9)


def five() -> Mixture:
    angles = 2 * np.pi * np.arange(5) / 5
    means = np.stack([np.cos(angles), np.sin(angles)], 1)
    return Mixture(np.full(5, 0.2), means, np.broadcast_to(0.02 * np.eye(2), (5, 2, 2)), [0, 1, 0, 1, 0])


def exact_end(law: Mixture, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the guided flow dx / dt = eps - x_0 with the rule's velocity, from pure noise at t = 1 to the data."""

    def slope(t, flat):
        z = flat.reshape(x.shape)
        alpha, sigma = 1 - t, t
        strong, weak = (-sigma * law.score(z, alpha, sigma, k) - law.mean(z, alpha, sigma, k) for k in (y, None))
        weak = (strong * weak).sum(1, keepdims=True) / (weak * weak).sum(1, keepdims=True) * weak
        return (weak + SCALE * (strong - weak)).ravel()

    return solve_ivp(slope, (1, 0), x.ravel(), method="DOP853", rtol=1e-9, atol=1e-9).y[:, -1].reshape(x.shape)


ODE = [
    "heun",
    "dpm2",
    "dpmpp_2s",
    "dpmpp_2m",
    "dpmpp_3m",
    "unipc-2",
    "unipc-3",
    "deis",
    "deis_log_rho",
    "lms",
    "ipndm",
    "pndm",
]


@pytest.fixture(scope="module")
def exact_run() -> tuple[Mixture, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The law of five components, 32 starts and their classes, and where SciPy leads them."""
    law = five()
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(32) % 2
    return law, x, y, torch.from_numpy(exact_end(law, x.numpy(), y.numpy()))


@pytest.mark.parametrize("name", ODE)
def test_the_error_falls_with_the_steps_and_is_no_larger_than_eulers(exact_run, name):
    """Against SciPy on the exact flow, five components, uniform grid, with one still step of n."""
    schedule = Flow(math.inf, -math.inf)
    law, x, y, exact = exact_run

    def error(name: str, n: int) -> float:
        end = SAMPLERS[name](n)(zero(schedule, 1, law), x, UniformT()(schedule, n), y)
        distances = (end - exact).norm(dim=1).sort().values[:-3]  # but of those that change modes
        return float(distances.square().mean().sqrt())

    found, euler = ([error(each, n) for n in (10, 20, 40)] for each in (name, "euler"))
    assert all(later < earlier for earlier, later in pairwise(found))
    assert all(own <= 1.05 * plain for own, plain in zip(found, euler))


def test_a_run_must_have_a_step_that_moves():
    schedule = SCHEDULES["flow"]
    with pytest.raises(SamplingError, match="zero_init_steps .* got 3 of 3"):
        Heun(3, UniformT())(zero(schedule, 3), points(schedule), UniformT()(schedule, 3), Y)


def test_outside_the_interval_nothing_is_still():
    """The interval says where the rule acts: a first step above it moves."""
    schedule, seen = SCHEDULES["flow"], []
    guided = ClassifierFree(ExactMixture(two_classes(), schedule), SCALE, (0.0, 5.0), CFGZero(1))
    Heun(8, UniformT())(guided, points(schedule), UniformT()(schedule, 8), Y, on_step=lambda k, at: seen.append(at))
    assert not torch.equal(seen[0], points(schedule))


def test_skipped_steps_inside_another_guidance():
    """The step is still as a whole: what is around moves x after it."""
    schedule, seen = SCHEDULES["flow"], []
    law = oracle(two_classes(), schedule)
    guided = PotentialGuidance(ClassifierFree(law, SCALE, EVERYWHERE, CFGZero(1)), Towards(0.3, 1.0), 2.0, EVERYWHERE)
    Heun(4, UniformT())(guided, points(schedule), UniformT()(schedule, 4), Y, on_step=lambda k, at: seen.append(at))
    assert torch.equal(seen[0], points(schedule)) and not torch.equal(seen[1], seen[0])


def test_repetitions_and_restarts_skip_no_step_of_their_own():
    """No repetition of a still step; a walk back up into its levels moves like any other, as it does without still steps."""
    schedule, seen = SCHEDULES["flow"], []
    times = UniformT()(schedule, 5)
    TimeTravel(DDIM(5, UniformT(), 0.0), 2, EVERYWHERE)(
        zero(schedule, 1), points(schedule), times, Y, noise(schedule), lambda k, at: seen.append(at)
    )
    assert torch.equal(seen[0], points(schedule))
    for high in (1.5, 9.0):  # within the steps that move, and above them
        ends = [
            Restart(Heun(5, UniformT()), [[0.5, high, 2, 1]])(
                zero(schedule, k), points(schedule), u, Y, noise(schedule)
            )
            for k, u in ((1, times), (0, times[1:]))
        ]
        torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def test_an_inversion_leaves_x_where_ddim_does():
    schedule = SCHEDULES["flow"]
    times = UniformT()(schedule, 5)
    with_still, without = (
        DDIMInversion(3)(zero(schedule, k), points(schedule), u, Y) for k, u in ((1, times), (0, times[1:]))
    )
    torch.testing.assert_close(with_still, without, rtol=1e-9, atol=1e-9)
