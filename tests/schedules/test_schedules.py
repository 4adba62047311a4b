"""Ends, inverses, rates and float64 of every schedule; test_schedules_papers compares them with their papers."""

import copy
import math

import pytest
import torch
from all_schedules import FINITE, SCHEDULES
from torch import nn

from diffguide.schedules import (
    EDM,
    TRE,
    VE,
    VP,
    Cosine,
    Flow,
    Linear,
    Monotone,
    NoSchedule,
    ResolutionShift,
    ScaledLinear,
    Schedule,
    Sigmoid,
    SigmoidBeta,
    SquaredCosine,
    SubVP,
    ZeroTerminalSNR,
    linear,
    sub_variance_preserving,
    variance_exploding,
    variance_preserving,
)

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
finite_schedules = pytest.mark.parametrize("schedule", FINITE.values(), ids=FINITE)
interior = torch.linspace(0.00345, 0.99712, 331, dtype=torch.float64)
WITH_ENDS = {
    "cosine": Cosine,
    "flow": Flow,
    "linear": Linear,
    "edm": EDM,
    "ve": VE,
    "tre": TRE,
    "scaled_linear": ScaledLinear,
    "sigmoid": Sigmoid,
    "sigmoid_beta": SigmoidBeta,
    "squaredcos_cap_v2": SquaredCosine,
    "vp": VP,
    "sub_vp": SubVP,
    "monotone": lambda high, low: Monotone(high, low, False, 16),
}
with_ends = pytest.mark.parametrize("make", WITH_ENDS.values(), ids=WITH_ENDS)


@every_schedule
def test_ends_are_exact(schedule):
    ends = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == [schedule.log_snr_max, schedule.log_snr_min]
    assert [float(schedule.log_snr(t)) for t in (0, 1)] == ends.tolist()


@with_ends
def test_custom_ends_are_exact(make):
    schedule = make(math.pi * 4, -math.e)  # values that no curve has by chance
    assert schedule.log_snr(torch.tensor([0.0, 1.0])).tolist() == [math.pi * 4, -math.e]


@every_schedule
def test_log_snr_decreases_strictly(schedule):
    log_snr = schedule.log_snr(torch.linspace(0, 1, 4001, dtype=torch.float64))
    assert bool((log_snr[1:] < log_snr[:-1]).all())


@every_schedule
def test_alpha_and_sigma_are_normalised(schedule):
    alpha, sigma = schedule.alpha_sigma(torch.linspace(0, 1, 301, dtype=torch.float64))
    inner = getattr(schedule, "schedule", schedule)
    total = {linear: alpha + sigma, sub_variance_preserving: alpha**2 + sigma, variance_exploding: alpha}.get(
        schedule.normalisation, alpha**2 + sigma**2
    )
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-15, atol=1e-15)
    expected = {Flow: linear, SubVP: sub_variance_preserving, EDM: variance_exploding, VE: variance_exploding}
    assert schedule.normalisation is expected.get(type(inner), variance_preserving)


@every_schedule
def test_alpha_and_sigma_have_the_log_snr(schedule):
    alpha, sigma = schedule.alpha_sigma(interior)
    torch.testing.assert_close(2 * torch.log(alpha / sigma), schedule.log_snr(interior), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sigma / alpha, schedule.noise_level(interior), rtol=1e-12, atol=0)


@every_schedule
def test_t_of_inverts_log_snr(schedule):
    torch.testing.assert_close(schedule.t_of(schedule.log_snr(interior)), interior, rtol=0, atol=1e-10)


def test_a_schedule_shows_its_ends():
    assert repr(Cosine(log_snr_max=5.0)) == "Cosine(log_snr_max=5, log_snr_min=-10)"
    assert repr(NoSchedule()) == "NoSchedule()"


@finite_schedules
def test_rate_is_the_finite_difference(schedule):
    h, t = 1e-7, interior[::9]  # none of them within h of a kink of the linear schedules
    difference = (schedule.log_snr(t + h) - schedule.log_snr(t - h)) / (2 * h)
    torch.testing.assert_close(schedule.rate(t), difference, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, from its forward-mode differentiation
@finite_schedules
def test_rate_is_the_derivative_by_forward_mode(schedule):
    torch.testing.assert_close(schedule.rate(interior), Schedule.rate(schedule, interior), rtol=1e-10, atol=0)


def test_an_infinite_log_snr_min_is_pure_noise():
    schedule = Flow(12.0, -math.inf)
    assert schedule.zero_terminal_snr and not Flow(12.0, -12.0).zero_terminal_snr
    assert [float(a) for a in schedule.alpha_sigma(1.0)] == [0.0, 1.0]


def test_an_infinite_log_snr_max_is_exact_data():
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
@with_ends
def test_float64_survives_a_cast_of_the_network(make, cast):
    network, untouched = cast(Network(make(12.0, -5.0))), make(12.0, -5.0)
    for t in (0.3, torch.tensor(0.3), torch.tensor([0.1, 0.3, 1.0], dtype=torch.float32), interior):
        for name in ("log_snr", "noise_level", "rate"):
            answer = getattr(network.schedule, name)(t)
            assert answer.dtype == torch.float64
            assert torch.equal(answer, getattr(untouched, name)(t))
    assert network.schedule.t_of(torch.tensor([1.0])).dtype == torch.float64
    assert all(a.dtype == torch.float64 for a in network.schedule.alpha_sigma(interior, 4))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Cosine(-3.0, 4.0), "below log_snr_max, got 4 and -3"),
        (lambda: Flow(2.0, 2.0), "log_snr_min must be below log_snr_max"),
        (lambda: Linear(math.nan), "log_snr_max must be"),
        (lambda: Linear(12.0, beta_start=0.02, beta_end=0.01), "beta_start <= beta_end"),
        (lambda: Linear(12.0, beta_start=0.0), "0 < beta_start"),
        (lambda: Linear(12.0, beta_end=1.0), "beta_end < 1"),
        (lambda: Linear(12.0, steps=1), "steps must be .* got 1"),
        (lambda: Linear(9.0), "log_snr_max must be above .* 9.21, got 9"),
        (lambda: Linear(12.0, -20.0), "log_snr_min must be .* the betas, -10.12, got -20"),
        (lambda: EDM(12.0, -math.inf), "log_snr_min must be finite"),
        (lambda: EDM(12.0, -8.0, rho=1e-3), "rho must be in .* got 0.001"),
        (lambda: ScaledLinear(7.0, None, 0.00085, 0.012), "log_snr_max must be above .* 7.069, got 7"),
        (lambda: Sigmoid(9.0, -9.0, 3.0, -3.0, 1.0), "start must be below end, got 3 and -3"),
        (lambda: Sigmoid(9.0, -9.0, -3.0, 3.0, 0.0), "tau must be .* got 0"),
        (lambda: Sigmoid(9.0, -9.0, -3.0, 3.0, 1e-3), "must be within .-600, got -3000 and 3000"),
        (lambda: VP(9.0, -11.0, 0.1, 20.0), "log_snr_min must be .* the rates, -10.05, got -11"),
        (lambda: SubVP(9.0, None, 20.0, 0.1), "0 < beta_min <= beta_max, got 20 and 0.1"),
        (lambda: VE(math.inf, -7.0), "must be finite .* got inf and -7"),
        (lambda: Monotone(12.0, -math.inf, False, 8), "must be finite .* got 12 and -inf"),
        (lambda: Monotone(12.0, -5.0, False, 0), "width must be .* got 0"),
        (lambda: ResolutionShift(Cosine(12.0, -10.0), 0, 64), "resolution must be .* got 0"),
        (lambda: ResolutionShift(Monotone(12.0, -5.0, False, 8), 64, 64), "fixed schedule, got Monotone"),
        (lambda: ZeroTerminalSNR(Flow(12.0, -12.0), 0.0), "schedule must be variance preserving, got Flow"),
        (lambda: ZeroTerminalSNR(Linear(12.0), 1.0), "first must be in .* got 1"),
        (lambda: ZeroTerminalSNR(Linear(math.inf), 0.001), "must be at most 14.27 with first=0.001"),
        (lambda: ZeroTerminalSNR(ScaledLinear(12.0, None, 0.00085, 0.012), 0.001), "at most 9.754 with .* got 12"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_learned_schedule_starts_almost_straight():
    expected = 13.3 - 18.3 * interior
    torch.testing.assert_close(Monotone(13.3, -5.0, False, 1024).log_snr(interior), expected, rtol=0, atol=0.5)


@pytest.mark.parametrize("learned_ends", [False, True])
def test_a_learned_schedule_learns_any_curve_and_stays_monotone(learned_ends):
    """Fitted to EDM's curve; the ends move only where they may. An error of 0.15 in 21 is that of so short a fit."""
    schedule, wanted = Monotone(10.0, -7.0, learned_ends, 64), EDM(10.0, -7.0)
    target = wanted.log_snr(interior) + (0.5 if learned_ends else 0.0)
    optimiser = torch.optim.Adam(schedule.parameters(), lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        (schedule.log_snr(interior) - target).square().mean().backward()
        optimiser.step()
    assert float((schedule.log_snr(interior) - target).detach().square().mean().sqrt()) < 0.15
    assert bool((schedule.log_snr(torch.linspace(0, 1, 4001)).diff() < 0).all())
    ends = [float(schedule.log_snr(t).detach()) for t in (0, 1)]
    assert ends == [schedule.log_snr_max, schedule.log_snr_min]
    assert (ends == [10.0, -7.0]) != learned_ends


def test_gradients_of_a_learned_schedule_reach_all_of_it():
    """By log_snr, the rate and alpha alike, and they are those of finite differences (of float32 parameters: 1 %)."""
    schedule = copy.deepcopy(SCHEDULES["monotone-ends"]).requires_grad_()
    t = interior[::30]

    def value():
        return (
            (schedule.log_snr(t) * t).sum() + schedule.rate(t).square().sum() / 100 + schedule.alpha_sigma(t)[0].sum()
        )

    value().backward()
    assert all(part.grad.abs().max() > 0 for part in schedule.parameters())
    for part in schedule.parameters():
        flat, slope = part.data.reshape(-1), float(part.grad.reshape(-1)[0])
        flat[0] += 0.01
        high = float(value().detach())
        flat[0] -= 0.02
        assert (high - float(value().detach())) / 0.02 == pytest.approx(slope, rel=0.01, abs=1e-3)
        flat[0] += 0.01


def test_a_learned_schedule_is_saved_and_loaded():
    other = Monotone(0.5, -0.5, True, 64)
    other.load_state_dict(SCHEDULES["monotone-ends"].state_dict())
    assert torch.equal(other.log_snr(interior), SCHEDULES["monotone-ends"].log_snr(interior))
    assert other.log_snr_max == SCHEDULES["monotone-ends"].log_snr_max
    assert all(not list(SCHEDULES[name].parameters()) for name in SCHEDULES if not name.startswith("monotone"))
