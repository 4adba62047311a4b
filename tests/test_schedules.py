"""Schedules against the papers' formulas: ends, curves, inverses, rates, and the promise of float64."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from diffguide.schedules import EDM, Cosine, Flow, Linear, Schedule

SCHEDULES = {
    "cosine": Cosine(12.0, -10.0),
    "cosine-exact": Cosine(math.inf, -math.inf),
    "flow": Flow(12.0, -12.0),
    "flow-exact": Flow(math.inf, -math.inf),
    "linear": Linear(12.0),
    "linear-cut": Linear(10.0, -7.3),
    "edm": EDM(-2 * math.log(0.002), -2 * math.log(80)),
    "edm-exact": EDM(math.inf, -2 * math.log(80)),
}
FINITE = [name for name in SCHEDULES if not name.endswith("exact")]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
finite_schedules = pytest.mark.parametrize("schedule", [SCHEDULES[name] for name in FINITE], ids=FINITE)
interior = torch.linspace(0.00345, 0.99712, 331, dtype=torch.float64)


@every_schedule
def test_ends_are_exact(schedule):
    ends = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == [schedule.log_snr_max, schedule.log_snr_min]
    assert [float(schedule.log_snr(t)) for t in (0, 1)] == ends.tolist()


@pytest.mark.parametrize("make", [Cosine, Flow, Linear, EDM])
def test_custom_ends_are_exact(make):
    schedule = make(math.pi * 4, -math.e)  # no value that a curve would hit by luck
    assert schedule.log_snr(torch.tensor([0.0, 1.0])).tolist() == [math.pi * 4, -math.e]


@every_schedule
def test_log_snr_decreases_strictly(schedule):
    log_snr = schedule.log_snr(torch.linspace(0, 1, 4001, dtype=torch.float64))
    assert bool((log_snr[1:] < log_snr[:-1]).all())


@every_schedule
def test_normalisation(schedule):
    alpha, sigma = schedule.alpha_sigma(torch.linspace(0, 1, 301, dtype=torch.float64))
    kind = type(schedule)
    total = alpha**2 + sigma**2 if kind in (Cosine, Linear) else alpha + sigma if kind is Flow else alpha
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-15, atol=1e-15)


@every_schedule
def test_alpha_and_sigma_have_the_log_snr(schedule):
    alpha, sigma = schedule.alpha_sigma(interior)
    torch.testing.assert_close(2 * torch.log(alpha / sigma), schedule.log_snr(interior), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sigma / alpha, schedule.noise_level(interior), rtol=1e-12, atol=0)


@every_schedule
def test_t_of_inverts_log_snr(schedule):
    torch.testing.assert_close(schedule.t_of(schedule.log_snr(interior)), interior, rtol=0, atol=1e-10)


@finite_schedules
def test_rate_is_the_finite_difference(schedule):
    h, t = 1e-7, interior[::9]  # none of them within h of a kink of the linear schedules
    difference = (schedule.log_snr(t + h) - schedule.log_snr(t - h)) / (2 * h)
    torch.testing.assert_close(schedule.rate(t), difference, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, from its forward-mode differentiation
@finite_schedules
def test_rate_is_the_derivative_by_forward_mode(schedule):
    torch.testing.assert_close(schedule.rate(interior), Schedule.rate(schedule, interior), rtol=1e-10, atol=0)


def test_cosine_is_cos_and_sin():
    alpha, sigma = Cosine(math.inf, -math.inf).alpha_sigma(interior)
    np.testing.assert_allclose(alpha, np.cos(np.pi / 2 * interior.numpy()), rtol=1e-13)
    np.testing.assert_allclose(sigma, np.sin(np.pi / 2 * interior.numpy()), rtol=1e-13)


def test_flow_is_the_straight_line():
    alpha, sigma = Flow(math.inf, -math.inf).alpha_sigma(interior)
    np.testing.assert_allclose(alpha, 1 - interior.numpy(), rtol=1e-13)
    np.testing.assert_allclose(sigma, interior.numpy(), rtol=1e-13)


@pytest.mark.parametrize("make", [Cosine, Flow])
def test_truncation_only_rescales_time(make):
    exact, cut = make(math.inf, -math.inf), make(9.0, -6.0)
    first, last = exact.t_of(torch.tensor([9.0, -6.0]))
    expected = exact.log_snr(first + (last - first) * interior)
    torch.testing.assert_close(cut.log_snr(interior), expected, rtol=1e-12, atol=1e-12)


def test_linear_is_ddpm():
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    alpha, sigma = Linear(12.0).alpha_sigma(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    np.testing.assert_allclose(alpha**2, abar, rtol=1e-12)
    np.testing.assert_allclose(sigma**2, 1 - abar, rtol=1e-12)


def test_linear_interpolates_log_abar():
    log_abar = np.concatenate([[0.0], np.log(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))])  # abar_0 = 1
    alpha, _ = Linear(math.inf).alpha_sigma(interior)
    np.testing.assert_allclose(2 * alpha.log(), np.interp(1000 * interior, np.arange(1001), log_abar), rtol=1e-11)


@pytest.mark.parametrize("rho", [7.0, 1.0])
def test_edm_noise_levels_are_those_of_karras(rho):
    t, low, high = interior.numpy(), 0.002, 80.0
    expected = (low ** (1 / rho) + t * (high ** (1 / rho) - low ** (1 / rho))) ** rho
    schedule = EDM(-2 * math.log(low), -2 * math.log(high), rho=rho)
    np.testing.assert_allclose(schedule.noise_level(interior), expected, rtol=1e-12)


def test_pure_noise_end():
    schedule = Flow(12.0, -math.inf)
    assert schedule.zero_terminal_snr and not Flow(12.0, -12.0).zero_terminal_snr
    assert [float(a) for a in schedule.alpha_sigma(1.0)] == [0.0, 1.0]


def test_exact_data_end():
    assert [float(a) for a in EDM(math.inf, -8.0).alpha_sigma(0.0)] == [1.0, 0.0]


@every_schedule
def test_shapes_broadcast_over_the_data(schedule):
    assert [a.shape for a in schedule.alpha_sigma(torch.tensor(0.5), 4)] == [(), ()]
    assert [a.shape for a in schedule.alpha_sigma(torch.full((3,), 0.5), 4)] == [(3, 1, 1, 1)] * 2
    assert [a.shape for a in schedule.alpha_sigma(torch.full((3,), 0.5), 2)] == [(3, 1)] * 2
    assert [a.shape for a in schedule.alpha_sigma(torch.full((3,), 0.5))] == [(3,)] * 2


@every_schedule
def test_a_number_is_a_float64_time(schedule):
    """A Python number is a double; read as float32 it would be another time from the eighth digit on."""
    t = torch.tensor(0.3, dtype=torch.float64)
    for method in (schedule.log_snr, schedule.noise_level, schedule.rate, schedule.t_of):
        assert float(method(0.3)) == float(method(t))


class Network(nn.Module):
    def __init__(self, schedule: Schedule):
        super().__init__()
        self.layer, self.schedule = nn.Linear(2, 2), schedule


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half()], ids=["bfloat16", "half"])
@pytest.mark.parametrize("make", [Cosine, Flow, Linear, EDM])
def test_float64_survives_a_cast_of_the_network(make, cast):
    network, untouched = cast(Network(make(12.0, -8.0))), make(12.0, -8.0)
    for t in (0.3, torch.tensor(0.3), torch.tensor([0.1, 0.3, 1.0], dtype=torch.float32), interior):
        for name in ("log_snr", "noise_level", "rate"):
            answer = getattr(network.schedule, name)(t)
            assert answer.dtype == torch.float64
            assert torch.equal(answer, getattr(untouched, name)(t))
    assert network.schedule.t_of(torch.tensor([1.0])).dtype == torch.float64
    assert all(a.dtype == torch.float64 for a in network.schedule.alpha_sigma(interior, 4))


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: Cosine(-3.0, 4.0), "log_snr_min must be below log_snr_max, got 4 and -3"),
        (lambda: Flow(2.0, 2.0), "log_snr_min must be below log_snr_max"),
        (lambda: Linear(math.nan), "log_snr_max must be"),
        (lambda: Linear(12.0, beta_start=0.02, beta_end=0.01), "beta_start <= beta_end"),
        (lambda: Linear(12.0, beta_start=0.0), "0 < beta_start"),
        (lambda: Linear(12.0, beta_end=1.0), "beta_end < 1"),
        (lambda: Linear(12.0, steps=1), "steps must be at least 2, got 1"),
        (lambda: Linear(9.0), "above the log-SNR of the first step, 9.21, got 9"),
        (lambda: Linear(12.0, -20.0), "not be below what the betas reach, -10.12, got -20"),
        (lambda: EDM(12.0, -math.inf), "must be finite for a variance-exploding schedule"),
        (lambda: EDM(12.0, -8.0, rho=0.0), "rho must be positive, got 0"),
    ],
)
def test_bad_arguments_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        make()
