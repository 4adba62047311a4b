"""Orders of convergence of the ODE samplers on the exact mixture, between noise levels 3 (or 1) and 0.1, in float64."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from closed_forms import ExactMixture, two_classes
from scipy.integrate import solve_ivp

from diffguide.samplers import (
    DDIM,
    DEIS,
    DPM2,
    IPNDM,
    LMS,
    PNDM,
    DPMpp2M,
    DPMpp2S,
    DPMpp3M,
    Euler,
    Heun,
    LogRhoDEIS,
    UniPC,
)
from diffguide.samplers.grids import UniformT
from diffguide.samplers.multistep import integrals
from diffguide.schedules import EDM, Cosine

GRID, LOW, HIGHEST = UniformT(), 0.1, 4.5
COSINE, UNIFORM_EDM = Cosine(12.0, -10.0), EDM(12.0, -2 * math.log(80), rho=1.0)
VARIABLES = {  # u(t) and t(u)
    "log_snr": (lambda schedule, t: schedule.log_snr(t), lambda schedule, u: schedule.t_of(u)),
    "rho": (lambda schedule, t: schedule.noise_level(t), lambda schedule, u: schedule.t_of(-2 * torch.log(u))),
    "t": (lambda schedule, t: t, lambda schedule, u: u),
}
TABLE = {  # sampler, variable of equal steps, order with exact history, order with its own start, coarsest number of steps
    "ddim": (DDIM(9, GRID, eta=0.0), "rho", 1, None, 20),
    "euler": (Euler(9, GRID), "rho", 1, None, 20),
    "heun": (Heun(9, GRID), "rho", 2, None, 20),
    "dpm2": (DPM2(9, GRID), "log_snr", 2, None, 20),
    "dpmpp_2s": (DPMpp2S(9, GRID), "log_snr", 2, None, 20),
    "dpmpp_2m": (DPMpp2M(9, GRID), "log_snr", 2, 2, 20),
    "dpmpp_3m": (DPMpp3M(9, GRID), "log_snr", 3, 2, 20),
    "unipc-1": (UniPC(9, GRID, order=1), "log_snr", 2, 2, 20),  # p + 1: the corrector adds one
    "unipc-2": (UniPC(9, GRID, order=2), "log_snr", 3, 3, 40),
    "unipc-3": (UniPC(9, GRID, order=3), "log_snr", 4, 3, 20),
    "deis-2": (DEIS(9, GRID, order=2), "t", 2, 2, 20),
    "deis-3": (DEIS(9, GRID, order=3), "t", 3, 2, 20),
    "deis-4": (DEIS(9, GRID, order=4), "t", 4, 2, 40),
    "deis_log_rho-3": (LogRhoDEIS(9, GRID, order=3), "log_snr", 3, 2, 80),
    "deis_log_rho-4": (LogRhoDEIS(9, GRID, order=4), "log_snr", 4, 2, 40),
    "lms-2": (LMS(9, GRID, order=2), "rho", 2, 2, 40),
    "lms-3": (LMS(9, GRID, order=3), "rho", 3, 2, 80),
    "lms-4": (LMS(9, GRID, order=4), "rho", 4, 2, 80),
    "lms-4, unequal steps": (LMS(9, GRID, order=4), "log_snr", 4, 2, 80),
    "ipndm-2": (IPNDM(9, GRID, order=2), "rho", 2, 2, 40),
    "ipndm-4": (IPNDM(9, GRID, order=4), "rho", 4, 2, 80),
    "ipndm-4, unequal steps": (IPNDM(9, GRID, order=4), "log_snr", 2, 2, 20),
    "pndm": (PNDM(9, GRID), "rho", 4, 4, 80),
    "pndm, unequal steps": (PNDM(9, GRID), "log_snr", 2, 2, 20),
}


@cache
def exact_flow(high: float):
    """x / alpha as a function of noise levels from 0.1 to 4.5: dx / dsigma = -sigma score, adaptive to 1e-13."""
    mixture, x = two_classes(), high * np.random.default_rng(0).standard_normal((8, 2))

    def slope(sigma, flat):
        return -sigma * mixture.score(flat.reshape(x.shape), 1.0, sigma).ravel()

    down, up = (
        solve_ivp(slope, (high, end), x.ravel(), method="DOP853", rtol=1e-13, atol=1e-13, dense_output=True).sol
        for end in (LOW, HIGHEST)
    )

    def states(levels):
        return torch.from_numpy(np.where(levels <= high, down(levels), up(levels)).T.reshape(-1, *x.shape))

    return states


def errors(name: str, counts: list[int], high: float, before: int) -> list[float]:
    """RMS distance in x / alpha at noise level 0.1 to the exact flow, with a history of `before` exact steps."""
    sampler, variable, *_ = TABLE[name]
    # its half-way is in t, which is half-way in rho there
    schedule = UNIFORM_EDM if name.startswith("pndm") else COSINE
    (to, back), denoiser, found = VARIABLES[variable], ExactMixture(two_classes(), schedule), []
    start, end = (to(schedule, schedule.t_of(torch.tensor(-2 * math.log(e), dtype=torch.float64))) for e in (high, LOW))
    for n in counts:
        times = back(schedule, start + (end - start) * torch.arange(-before, n + 1, dtype=torch.float64) / n)
        alpha, memory = schedule.alpha_sigma(times)[0], {}
        exact = alpha[:, None, None] * exact_flow(high)(schedule.noise_level(times).numpy())
        for k in range(before):  # the sampler's own steps, each from an exact state, fill its memory
            sampler.step(denoiser, exact[k], times[k], times[k + 1], None, None, memory)
        x = exact[before]
        for t, s in zip(times[before:-1], times[before + 1 :]):
            x = sampler.step(denoiser, x, t, s, None, None, memory)
        found.append(float(((x - exact[-1]) / alpha[-1]).square().mean().sqrt()))
    return found


def slope(found: list[float]) -> float:
    return math.log2(found[0] / found[-1]) / (len(found) - 1)


@pytest.mark.parametrize("name", TABLE)
def test_order_with_an_exact_history(name):
    """Mean slope of the last three halvings within 0.15 of the table, from noise level 3."""
    *_, order, _, coarsest = TABLE[name]
    found = errors(name, [coarsest * 2**k for k in range(4)], high=3.0, before=3)
    assert slope(found) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row[3]])
def test_order_with_its_own_start(name):
    """First steps of first order leave 2 of any order above it; UniPC's corrector adds one, Runge-Kutta keeps all."""
    found = errors(name, [160, 320], high=1.0, before=0)
    assert slope(found) == pytest.approx(TABLE[name][3], abs=0.15 if name != "pndm" else 0.4)


@pytest.mark.parametrize(
    "make, highest",
    [(UniPC, 3), (DEIS, 4), (LogRhoDEIS, 4), (LMS, 4), (IPNDM, 4)],
)
@pytest.mark.parametrize("order", [0, -1, 9, 2.0, True])
def test_an_order_that_is_not_implemented(make, highest, order):
    with pytest.raises(ValueError, match="order must be"):
        make(9, GRID, order)


@pytest.mark.parametrize("nodes", [[1.0], [1.0, 1.7], [1.0, 1.7, 2.1], [1.0, 1.7, 2.1, 3.0]])
@pytest.mark.parametrize("step", [1e-6, 0.6, 6.0])
def test_integrals_are_exact(nodes, step):
    """Against int u^k e^u du in closed form, by the polynomials through powers of u: sum_j w_j u_j^k for every k."""
    end = 1.0 - step
    found = np.array(integrals(nodes, 1.0, end, np.exp))
    for k in range(len(nodes)):
        parts = np.polynomial.polynomial.Polynomial([math.comb(k, j) for j in range(k + 1)])  # (1 + v)^k, u = 1 + v
        exact = sum(c * math.e * moment(j, -step) for j, c in enumerate(parts.coef))
        assert found @ np.array(nodes) ** k == pytest.approx(exact, rel=1e-10)


def moment(k: int, h: float) -> float:
    """int_0^h v^k e^v dv as its power series, which loses nothing for small h."""
    return math.fsum(h ** (k + n + 1) / ((k + n + 1) * math.factorial(n)) for n in range(80))
