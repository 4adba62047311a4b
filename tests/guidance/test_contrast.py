"""Contrasts by the table of their endpoints, every rule with every sampler, ramps and intervals."""

import math

import numpy as np
import pytest
import torch
from all_samplers import SAMPLERS, every_sampler
from closed_forms import ExactMixture
from two_class_points import COSINE, EVERYWHERE, either_time, exact, t, x, y

from diffguide.guidance import ClassifierFree
from diffguide.guidance.projections import APG, TCFG
from diffguide.guidance.ramps import (
    Constant,
    CosineRamp,
    ExponentialRamp,
    LinearRamp,
    PowerRamp,
    TableRamp,
    TriangleRamp,
)
from diffguide.guidance.rules import CFGPlusPlus, CFGZero, Linear, Mambo, Rescale, Threshold
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.randomness import Noise
from diffguide.samplers import DDIM, Heun
from diffguide.samplers.grids import UniformLogSNR, UniformT
from diffguide.samplers.inversion import DDIMInversion
from diffguide.schedules import EDM, Cosine, Flow

INF = math.inf
SCHEDULES = {"cosine": COSINE, "flow": Flow(12.0, -12.0), "edm": EDM(12.4, -8.7)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def same(found, expected):
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


# rule: (what scale 1 is, evaluations there, what scale 0 is or None = its own formula)
TABLE = {
    "linear": (Linear(), "strong", 8, "weak"),
    "rescale": (Rescale(0.7), "strong", 8, None),
    "apg": (APG(0.0, 1.0, 0.0), "strong", 8, None),
    "cfg_zero": (CFGZero(0), "strong", 8, None),
    "tcfg": (TCFG(), "strong", 8, None),
    "mambo_g": (Mambo(2.0), "strong", 8, None),
    "threshold": (Threshold(0.5), "thresholded strong", 8, "thresholded weak"),
    "cfgpp": (CFGPlusPlus(), "x_0 of strong, eps of weak", 16, "weak"),
}


def side(name: str, schedule, t):
    """What the table's words mean, from the mixture alone."""
    strong, weak = exact(schedule)(x, t, y), exact(schedule)(x, t)
    if name == "x_0 of strong, eps of weak":
        return strong.x_0, weak.eps
    x_0, eps = strong if name.endswith("strong") else weak
    if not name.startswith("thresholded"):
        return x_0, eps
    s = np.maximum(1, np.quantile(np.abs(x_0.numpy()), 0.5, axis=1, keepdims=True))
    cut = torch.from_numpy(np.clip(x_0.numpy(), -s, s) / s)
    alpha, sigma = schedule.alpha_sigma(t, 2)
    return cut, (x - alpha * cut) / sigma


@every_schedule
@pytest.mark.parametrize("rule, one, evaluations, zero", TABLE.values(), ids=TABLE)
@either_time
def test_scales_zero_and_one_are_the_two_sides(schedule, rule, one, evaluations, zero, t):
    counter = EvaluationCounter(exact(schedule))
    found = ClassifierFree(counter, 1.0, EVERYWHERE, rule)(x, t, y)
    (same if one != "thresholded strong" else torch.testing.assert_close)(tuple(found), tuple(side(one, schedule, t)))
    if not t.ndim:
        assert counter.tally.evaluations == evaluations
    found, weak = ClassifierFree(counter, 0.0, EVERYWHERE, rule)(x, t, y), exact(schedule)(x, t)
    if zero is None:
        assert float((found.x_0 - weak.x_0).abs().max()) > 1e-3
    else:
        torch.testing.assert_close(tuple(found), tuple(side(zero, schedule, t)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", [row[0] for row in TABLE.values()], ids=TABLE)
def test_outside_the_interval_nothing_weak_is_evaluated(rule):
    counter, level = EvaluationCounter(exact()), float(COSINE.noise_level(t))
    guided = ClassifierFree(counter, 0.5, (0.0, level / 2), rule)
    same(guided(x, t, y), exact()(x, t, y))
    assert counter.tally.evaluations == 8


@pytest.mark.parametrize("rule", [row[0] for row in TABLE.values()], ids=TABLE)
def test_rows_follow_their_own_level(rule):
    """t [B] gives each row what a 0-d t at its level gives, inside the interval and outside."""
    times = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    guided = ClassifierFree(
        exact(), 0.5, (float(COSINE.noise_level(times[2])), float(COSINE.noise_level(times[5]))), rule
    )
    rows = guided(x, times, y)
    for k in range(8):
        alone = guided(x[k : k + 1], times[k], y[k : k + 1])
        for field, expected in zip(rows, alone):
            torch.testing.assert_close(field[k : k + 1], expected, rtol=1e-9, atol=1e-9)


def run(make, denoiser, steps=6, y=y, noisy=x):
    sampler = make(steps)
    times = sampler.times(denoiser)
    alpha, sigma = denoiser.schedule.alpha_sigma(times[0])
    noise = Noise(range(len(noisy)), (2,), denoiser.schedule, dtype=torch.float64)
    return sampler(denoiser, sigma * noisy, times, y, noise)


@every_sampler
def test_cfgpp_reaches_every_sampler(make):
    """Neither the unconditional sampler, which it would be from x_t, nor the linear rule at the same scale."""
    found = run(make, ClassifierFree(exact(), 0.6, EVERYWHERE, CFGPlusPlus()))
    for other in (exact(), ClassifierFree(exact(), 0.6, EVERYWHERE)):
        labels = None if isinstance(other, ExactMixture) else y
        assert float((found - run(make, other, y=labels)).abs().max()) > 1e-3


@every_schedule
def test_cfgpp_at_0_is_the_unconditional_ddim(schedule):
    guided = ClassifierFree(exact(schedule), 0.0, EVERYWHERE, CFGPlusPlus())
    assert torch.equal(run(SAMPLERS["ddim"], guided), run(SAMPLERS["ddim"], exact(schedule), y=None))


@every_schedule
def test_cfgpp_where_the_sides_agree_is_ddim(schedule):
    """Without condition in any row, strong and weak are one."""
    guided = ClassifierFree(exact(schedule), 0.7, EVERYWHERE, CFGPlusPlus())
    nothing = torch.full_like(y, -1)
    found, expected = run(SAMPLERS["ddim"], guided, y=nothing), run(SAMPLERS["ddim"], exact(schedule), y=None)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@every_schedule
def test_the_inversion_of_cfgpp_returns_the_start(schedule):
    guided, ddim = ClassifierFree(exact(schedule), 0.3, EVERYWHERE, CFGPlusPlus()), DDIM(12, UniformLogSNR(), eta=0.0)
    times = ddim.times(guided)
    start = schedule.alpha_sigma(times[0])[1] * x
    end = ddim(guided, start, times, y)
    back = DDIMInversion(corrections=60)(guided, end, times, y)
    torch.testing.assert_close(back, start, rtol=1e-9, atol=1e-9)
    assert float((DDIMInversion()(guided, end, times, y) - start).abs().max()) > 1e-3


@every_sampler
@every_schedule
def test_the_interval_changes_nothing_outside(make, schedule):
    """Guided nowhere on the way: the unguided sampler. Guided only in the first half: the same second half from there."""
    plain, times = exact(schedule), make(6).times(exact(schedule))
    middle, lowest = float(schedule.noise_level(times[3])), float(schedule.noise_level(times[-1]))
    above = ClassifierFree(exact(schedule), 3.0, (1.0001 * middle, INF))
    below = ClassifierFree(exact(schedule), 3.0, (0.0, lowest / 2))
    torch.testing.assert_close(run(make, below), run(make, plain), rtol=1e-9, atol=1e-9)
    assert float((run(make, above) - run(make, plain)).abs().max()) > 1e-6
    if "churn" not in str(make) and type(make(6)).__name__ not in ("Restart",):  # those go back up on purpose
        noise = [Noise(range(8), (2,), schedule, dtype=torch.float64) for _ in range(2)]
        tail = [make(6)(d, middle * x, times[3:], y, n) for d, n in zip((above, plain), noise)]
        if not (make(6).off_grid and make(6).stochastic):
            torch.testing.assert_close(*tail, rtol=1e-9, atol=1e-9)


RAMPS = {  # the factor where u of the way from level 8 to level 0.5 is gone
    "constant": (Constant(), lambda u: 1.0),
    "linear": (LinearRamp(8.0, 0.5), lambda u: u),
    "cosine": (CosineRamp(8.0, 0.5), lambda u: (1 - math.cos(math.pi * u)) / 2),
    "power": (PowerRamp(8.0, 0.5, 3.0), lambda u: u**3),
    "table": (
        TableRamp([[1e-4, 1.0], [0.5, 1.0], [2.0, 0.2], [8.0, 0.0], [1e4, 0.0]]),
        lambda u: 0.2 * u / 0.5 if u <= 0.5 else 0.2 + 0.8 * (u - 0.5) / 0.5,
    ),
}


@every_schedule
@pytest.mark.parametrize("ramp, factor", RAMPS.values(), ids=RAMPS)
def test_ramps_are_functions_of_log_snr(schedule, ramp, factor):
    """scale = 1 + (w - 1) r at u of the way in log-SNR, the same on every schedule; all and nothing beyond the ends."""
    guided = ClassifierFree(exact(schedule), 4.0, EVERYWHERE, Linear(), ramp)
    for u in (-0.3, 0.0, 0.25, 0.5, 0.8, 1.0, 1.2):
        level = 8.0 * (0.5 / 8.0) ** u
        time = schedule.t_of(torch.tensor(-2 * math.log(level), dtype=torch.float64))
        expected = 1 + 3.0 * factor(min(max(u, 0.0), 1.0))
        assert float(guided.scale_at(time)) == pytest.approx(expected, abs=1e-8)
        assert float(guided.scale_at(time[None])[0]) == pytest.approx(expected, abs=1e-8)


@every_schedule
@pytest.mark.parametrize("peak", [0.5, 0.3])
def test_the_triangle_is_1_at_both_ends_and_the_scale_on_average(schedule, peak):
    """TV-CFG over the time of a flow: w_n = (2 s / M) n + w - s up to the peak, with s = w - 1, and back."""
    guided = ClassifierFree(exact(schedule), 4.0, EVERYWHERE, Linear(), TriangleRamp(peak))
    times = (np.arange(1000) + 0.5) / 1000
    way, s = 1 - times, 4.0 - 1
    expected = np.where(way <= 1 - peak, 2 * s * way / (1 - peak), 2 * s * (1 - way) / peak) + 4.0 - s
    log_snr = torch.from_numpy(2 * np.log((1 - times) / times))
    found = guided.scale_at(schedule.t_of(log_snr))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert float(found.mean()) == pytest.approx(4.0, abs=1e-4)


@every_schedule
@pytest.mark.parametrize("rate", [math.log(2), 1.0, 0.0])
def test_the_exponential_multiplies_the_whole_scale(schedule, rate):
    """C2FG: w_0 exp(lambda (1 - t)) in the time of a flow."""
    guided = ClassifierFree(exact(schedule), 1.5, EVERYWHERE, Linear(), ExponentialRamp(rate))
    for time in (0.9, 0.5, 0.1):
        t = schedule.t_of(torch.tensor(2 * math.log((1 - time) / time), dtype=torch.float64))
        assert float(guided.scale_at(t)) == pytest.approx(1.5 * math.exp(rate * (1 - time)), rel=1e-6)
    strong, weak = exact(schedule)(x, t, y), exact(schedule)(x, t)
    expected = weak.x_0 + 1.5 * math.exp(rate * 0.9) * (strong.x_0 - weak.x_0)
    torch.testing.assert_close(guided(x, t, y).x_0, expected, rtol=1e-6, atol=1e-6)


def test_a_ramp_at_0_evaluates_nothing_weak():
    counter = EvaluationCounter(exact())
    guided = ClassifierFree(counter, 4.0, EVERYWHERE, Linear(), LinearRamp(0.1, 0.01))
    same(guided(x, t, y), exact()(x, t, y))
    assert counter.tally.evaluations == 8


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: TableRamp([[1.0, 1.0]]), "pairs must be at least two"),
        (lambda: TableRamp([[1.0, 1.0], [0.5, 1.0]]), "increase strictly"),
        (lambda: TableRamp([[0.0, 1.0], [0.5, 1.0]]), "positive noise levels"),
        (lambda: LinearRamp(1.0, 1.0), "start and full must be"),
        (lambda: PowerRamp(1.0, 2.0, 0.0), "exponent must be"),
        (lambda: TriangleRamp(1.0), "peak must be in"),
        (lambda: ExponentialRamp(math.nan), "rate must be"),
        (
            lambda: ClassifierFree(exact(), 2.0, EVERYWHERE, Linear(), TableRamp([[0.1, 1.0], [100.0, 0.0]])),
            "0.1 to 100, .* 0.00247875 to 148.413",
        ),
        (lambda: ClassifierFree(exact(), 1.5, EVERYWHERE, CFGPlusPlus()), "rule=cfgpp, scale"),
        (lambda: ClassifierFree(exact(Cosine(12.0, -INF)), 1.5, EVERYWHERE, TCFG()), "rule=tcfg .* zero terminal SNR"),
    ],
)
def test_invalid_arguments_raise(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_table_may_end_where_the_interval_does():
    guided = ClassifierFree(exact(), 2.0, (0.1, 100.0), Linear(), TableRamp([[0.1, 1.0], [100.0, 0.0]]))
    assert float(guided.scale_at(t)) > 1


MOMENTUM = APG(0.0, INF, -0.5)


def test_momentum_advances_is_computed_again_and_forgotten():
    """By when t falls, at equal t, when it rises; Heun's second look at a level counts once."""
    guided = ClassifierFree(exact(), 3.0, EVERYWHERE, MOMENTUM).start(None, torch.tensor([0.9, 0.1]))
    points = [x * (1 + 0.1 * k) for k in range(7)]
    levels = [0.9, 0.7, 0.7, 0.5, 0.5, 0.8, 0.6]
    before, now, last = 0.0, 0.0, INF
    for point, level in zip(points, levels):
        time = torch.tensor(level, dtype=torch.float64)
        strong, weak = exact()(point, time, y).x_0, exact()(point, time).x_0
        if level != last:
            before = now if level < last else 0.0
        now, last = strong - weak - 0.5 * before, level
        along = (now * strong).sum(1, keepdim=True) / (strong**2).sum(1, keepdim=True) * strong
        torch.testing.assert_close(guided(point, time, y).x_0, strong + 2 * (now - along), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["heun", "ddim", "dpmpp_2m", "restart"])
def test_momentum_belongs_to_a_run(name):
    """The same run twice is equal, whatever ran between, a smaller batch too; a sample does not see its batch."""
    guided = ClassifierFree(exact(), 3.0, EVERYWHERE, MOMENTUM)
    first = run(SAMPLERS[name], guided)
    small = run(SAMPLERS[name], guided, y=y[:3], noisy=x[:3])
    assert torch.equal(run(SAMPLERS[name], guided), first)
    torch.testing.assert_close(small, first[:3], rtol=1e-9, atol=1e-9)
    plain = run(SAMPLERS[name], ClassifierFree(exact(), 3.0, EVERYWHERE, APG(0.0, INF, 0.0)))
    assert float((plain - first).abs().max()) > 1e-6


def test_momentum_needs_one_level_for_all():
    guided = ClassifierFree(exact(), 3.0, EVERYWHERE, MOMENTUM)
    with pytest.raises(ValueError, match="take guidance.rule.momentum=0"):
        SAMPLERS["dopri5"](6).times(guided)
    with pytest.raises(ValueError, match="APG depends on earlier noise levels"):
        guided(x, t.expand(8), y)
    SAMPLERS["dopri5"](6).times(ClassifierFree(exact(), 3.0, EVERYWHERE, APG(0.0, INF, 0.0)))


def test_the_first_steps_of_cfg_zero_do_not_move():
    """On the flow they leave x where it is; a run without them is another run."""
    guided = ClassifierFree(exact(SCHEDULES["flow"]), 2.0, EVERYWHERE, CFGZero(2))
    seen, times = [], DDIM(6, UniformT(), eta=0.0).times(guided)
    DDIM(6, UniformT(), eta=0.0)(guided, x, times, y, on_step=lambda k, at: seen.append(at))
    torch.testing.assert_close(seen[1], x, rtol=1e-9, atol=1e-9)
    assert float((seen[2] - x).abs().max()) > 1e-3
    assert Heun(6, UniformT())(guided, x, times, y).isfinite().all()
