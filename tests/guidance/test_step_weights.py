"""The step lengths of TFG over the steps of a run, against its schedules written out."""

import numpy as np
import pytest
import torch
from potential_laws import COSINE, EVERYWHERE, VE, Towards, White, points

from diffguide.guidance.potentials import TFG
from diffguide.guidance.potentials.steps import DecreasingSteps, EvenSteps, IncreasingSteps
from diffguide.randomness import Noise
from diffguide.samplers import DDIM, Heun
from diffguide.samplers.grids import UniformT

TIMES = torch.tensor([1.0, 0.8, 0.5, 0.3, 0.05], dtype=torch.float64)
x = points(4, 3)


def expected(name: str, schedule) -> np.ndarray:
    """T alpha_t / sum alpha_t, T (1 - alpha_t) / sum (1 - alpha_t), 1; alpha_t = abar_t / abar_{t-1}; arXiv 2409.15761."""
    alpha, sigma = (a.numpy() for a in schedule.alpha_sigma(TIMES))
    abar = alpha**2 / (alpha**2 + sigma**2)
    kept = abar[:-1] / abar[1:]
    weights = {"increase": kept, "decrease": 1 - kept, "constant": np.ones(4)}[name]
    return len(weights) * weights / weights.sum()


KINDS = {"increase": IncreasingSteps(), "decrease": DecreasingSteps(), "constant": EvenSteps()}


@pytest.mark.parametrize("schedule", [COSINE, VE], ids=["vp", "ve"])
@pytest.mark.parametrize("name", KINDS)
def test_weights_are_those_of_the_grid(name, schedule):
    """On the grid, between its times that of the step which passes there, at its end the last; by rows too."""
    weights, factors = KINDS[name].start(schedule, TIMES), expected(name, schedule)
    np.testing.assert_allclose(weights(TIMES[:-1]), factors, rtol=1e-12)
    np.testing.assert_allclose([float(weights(t)) for t in TIMES[:-1]], factors, rtol=1e-12)
    between = torch.tensor([0.9, 0.51, 0.4999, 0.1, 0.05, 0.01], dtype=torch.float64)
    np.testing.assert_allclose(weights(between), factors[[0, 1, 2, 3, 3, 3]], rtol=1e-12)
    if name == "increase" and schedule is COSINE:
        assert (np.diff(factors) > 0).all()
    elif name == "decrease" and schedule is COSINE:
        assert (np.diff(factors) < 0).all()


@pytest.mark.parametrize("rho, mu", [("increase", "decrease"), ("decrease", "constant"), ("constant", "increase")])
def test_tfg_takes_the_step_of_its_level(rho, mu):
    """A step of rho = 0.3 and mu = 0.1 is that of constant ones of rho and mu times the factor; 0-d and by rows."""
    law, near = White(0.2, 0.6), Towards(1.0, 0.8)
    noise = Noise(range(4), (3,), COSINE, dtype=torch.float64)
    guided = TFG(law, near, 1.0, EVERYWHERE, 0.3, 0.1, 2, 0, 0.0, KINDS[rho], KINDS[mu]).start(noise, TIMES)
    at = [
        TFG(law, near, 1.0, EVERYWHERE, 0.3 * a, 0.1 * b, 2, 0, 0.0, EvenSteps(), EvenSteps())(x, t)
        for t, a, b in zip(TIMES[:-1], expected(rho, COSINE), expected(mu, COSINE))
    ]
    rows = guided(x, TIMES[:-1])
    for k, (t, plain) in enumerate(zip(TIMES[:-1], at)):
        torch.testing.assert_close(guided(x, t).x_0, plain.x_0)
        torch.testing.assert_close(rows.x_0[k], plain.x_0[k])


def test_the_weights_are_those_of_the_run():
    """Of its own grid each time; a solver that looks between the grid's times is guided too; outside a run it says so."""
    law = White(0.2, 0.6)
    guided = TFG(law, Towards(1.0, 0.8), 1.0, EVERYWHERE, 0.3, 0.1, 2, 0, 0.0, IncreasingSteps(), DecreasingSteps())
    for sampler in (DDIM(5, UniformT(), eta=0.0), Heun(9, UniformT())):
        times = sampler.times(guided)
        found, plain = (sampler(d, x, times, None, Noise(range(4), (3,), COSINE)) for d in (guided, law))
        assert float((found - 1).norm()) < 0.9 * float((plain - 1).norm())
        assert len(guided.start(Noise(range(4), (3,), COSINE), times).rho_steps.factors) == sampler.steps
    with pytest.raises(ValueError, match=r"IncreasingSteps .* call start"):
        guided(x, TIMES[1])
