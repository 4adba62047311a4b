"""HiGS and momentum guidance against their papers' loops in NumPy, and what belongs to a run."""

import math

import numpy as np
import pytest
import torch
from all_samplers import SAMPLERS
from rule_sides import every_schedule
from scipy.fft import dctn, idctn
from two_class_points import EVERYWHERE, either_time, exact, t, x, y

from diffguide.guidance import APG, ClassifierFree, HiGS, MomentumGuidance, Nested
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.protocols import Denoiser, Prediction
from diffguide.randomness import Noise
from diffguide.samplers import DDIM
from diffguide.samplers.grids import UniformT
from diffguide.schedules import Cosine, Flow

MAKE = {"higs": HiGS, "momentum": MomentumGuidance}
both = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


class Waves(Denoiser):
    """x_0 = cos(x_t + 3 t) of any shape, with the eps that agrees: a smooth function of x_t and t."""

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x_t, t, y=None):
        alpha, sigma = self.schedule.alpha_sigma(t)
        x_0 = torch.cos(x_t + 3 * float(self.schedule.log_snr(t)) / 20)
        return Prediction(x_0, (x_t - alpha * x_0) / sigma)


def steps_of(schedule, guided, start, times):
    """x after each step of DDIM."""
    seen = []
    DDIM(len(times) - 1, UniformT(), eta=0.0)(guided, start, times, None, on_step=lambda k, at: seen.append(at.numpy()))
    return seen


TIMES = torch.tensor([0.95, 0.8, 0.6, 0.5, 0.3, 0.1], dtype=torch.float64)
IMAGES = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("alpha, beta", [(0.5, 0.6), (1.5, 0.0), (0.0, 0.6)])
def test_momentum_is_the_papers_loop_on_a_flow(alpha, beta):
    """Z + dt [v + alpha (v - m)], then m <- (1 - beta) v + beta m, m = v at first; the paper's v runs from noise to data."""
    schedule = Flow(12.0, -12.0)
    found = steps_of(schedule, MomentumGuidance(Waves(schedule), 1 + alpha, EVERYWHERE, beta), IMAGES, TIMES)
    z, m, noise = IMAGES.numpy(), None, schedule.alpha_sigma(TIMES)[1].numpy()
    for k, (a, b) in enumerate(zip(noise, noise[1:])):
        side = Waves(schedule)(torch.from_numpy(z), TIMES[k])
        v = (side.x_0 - side.eps).numpy()
        m = v if m is None else m
        z = z + (a - b) * (v + alpha * (v - m))
        m = (1 - beta) * v + beta * m
        np.testing.assert_allclose(found[k], z, rtol=1e-9, atol=1e-9)


def test_normalised_momentum_has_the_norm_of_the_velocity():
    schedule = Flow(12.0, -12.0)
    guided = MomentumGuidance(Waves(schedule), 1.5, EVERYWHERE, 0.6, normalised=True).start(None, TIMES)
    first, second = guided(IMAGES, TIMES[0]), guided(IMAGES, TIMES[1])
    v_1, v_2 = ((s.eps - s.x_0).numpy() for s in (first, Waves(schedule)(IMAGES, TIMES[1])))
    for row in range(3):
        m = v_1[row] * np.linalg.norm(v_2[row]) / np.linalg.norm(v_1[row])
        expected = v_2[row] + 0.5 * (v_2[row] - m)
        np.testing.assert_allclose((second.eps - second.x_0)[row], expected, rtol=1e-9, atol=1e-9)


@every_schedule
def test_momentum_is_the_same_on_every_schedule(schedule):
    """At equal noise levels, with x / (alpha + sigma) for x: as on the flow."""
    flow, levels = Flow(12.0, -12.0), torch.tensor([3.0, 1.5, 0.7, 0.3, 0.1], dtype=torch.float64)
    ends = []
    for each in (flow, schedule):
        times = each.t_of(-2 * levels.log())
        law = exact(each)
        start = sum(each.alpha_sigma(times[0])) * x
        end = DDIM(4, UniformT(), eta=0.0)(MomentumGuidance(law, 2.0), start, times, y)
        ends.append(end / sum(each.alpha_sigma(times[-1])))
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-7)


@every_schedule
@pytest.mark.parametrize(
    "w, share, eta, cutoff", [(2.0, 0.75, 1.0, 0.05), (1.75, 0.5, 0.0, 0.3), (1.0, 1.0, 0.4, None)]
)
def test_higs_is_the_papers_loop(schedule, w, share, eta, cutoff):
    """D + w(t) iDCT[H DCT(d)], g = sum a (1 - a)^(k - 1 - i) D_i over the past, with SciPy's cosine transform."""
    low, high, times = 0.2, 0.9, TIMES
    guided = HiGS(Waves(schedule), 1 + w, (low / (1 - low), high / (1 - high)), share, eta, cutoff)
    found = steps_of(schedule, guided, IMAGES, times)
    z, past, acted = IMAGES.numpy(), [], 0
    for k in range(len(times) - 1):
        (a, s), (a_next, s_next) = ([float(v) for v in schedule.alpha_sigma(time)] for time in times[k : k + 2])
        x_0 = Waves(schedule)(torch.from_numpy(z), times[k]).x_0.numpy()
        D, time = x_0, s / (a + s)
        if past and low < time <= high:
            acted += 1
            g = sum(share * (1 - share) ** (len(past) - 1 - i) * D_i for i, D_i in enumerate(past))
            D = np.stack([row + w * math.sqrt((time - low) / (high - low)) * term(row, row - mean, eta, cutoff)
                          for row, mean in zip(x_0, g)])  # fmt: skip
        z = a_next * D + s_next * (z - a * D) / s
        past.append(x_0)
        np.testing.assert_allclose(found[k], z, rtol=1e-8, atol=1e-8)
    assert acted


def term(D, d, eta, cutoff):
    along = (d * D).sum() / (D * D).sum() * D
    d = d - along + eta * along
    if cutoff is None:
        return d
    u, v = (np.arange(n) / n for n in d.shape[1:])
    kept = 1 / (1 + np.exp(-50 * (np.sqrt(u[:, None] ** 2 + v**2) - cutoff)))
    return np.stack([idctn(kept * dctn(channel, norm="ortho"), norm="ortho") for channel in d])


def run(name, denoiser, labels=y, start=x):
    sampler = SAMPLERS[name](6)
    times = sampler.times(denoiser)
    noise = Noise(range(len(start)), (2,), denoiser.schedule, dtype=torch.float64)
    return sampler(denoiser, denoiser.schedule.alpha_sigma(times[0])[1] * start, times, labels, noise)


@both
@pytest.mark.parametrize("name", ["heun", "ddim-1", "dpmpp_2m", "dpm2", "restart"])
def test_the_history_belongs_to_a_run_and_a_row(make, name):
    """The same run twice is equal, whatever ran between; a sample does not see its batch; scale 1 is off, bit for bit."""
    guided = make(exact(), interval=EVERYWHERE)
    first = run(name, guided)
    small = run(name, guided, y[:3], x[:3])
    assert torch.equal(run(name, guided), first)
    torch.testing.assert_close(small, first[:3], rtol=1e-9, atol=1e-9)
    plain = run(name, exact())
    assert float((plain - first).abs().max()) > 1e-6
    assert torch.equal(run(name, make(exact(), 1.0, EVERYWHERE)), plain)


@both
def test_the_two_evaluations_of_heun_at_one_level_count_once(make):
    """The second look at a level sees the same past; the next level sees the second look."""
    guided, alone = (make(exact(), interval=EVERYWHERE).start(None, TIMES) for _ in range(2))
    guided(x, TIMES[0], y)
    alone(x, TIMES[0], y)
    guided(1.3 * x, TIMES[1], y)  # Heun's corrector
    for run_ in (guided, alone):  # the next step's predictor
        run_(1.1 * x, TIMES[1], y)
    assert torch.equal(guided(x, TIMES[2], y).x_0, alone(x, TIMES[2], y).x_0)


@both
def test_a_rise_begins_anew(make):
    guided, fresh = (make(exact(), interval=EVERYWHERE).start(None, TIMES) for _ in range(2))
    for time in (TIMES[1], TIMES[2]):
        guided(x, time, y)
    assert torch.equal(guided(x, TIMES[0], y).x_0, exact()(x, TIMES[0], y).x_0)
    fresh(x, TIMES[0], y)
    assert torch.equal(guided(x, TIMES[3], y).x_0, fresh(x, TIMES[3], y).x_0)


@both
def test_outside_the_interval_the_past_is_kept(make):
    """Nothing is guided above it, and the first level inside knows the levels above."""
    level = float(Cosine(12.0, -10.0).noise_level(TIMES[2]))
    late, always = (make(exact(), interval=(0.0, high)).start(None, TIMES) for high in (1.0001 * level, math.inf))
    for time in TIMES[:2]:
        assert torch.equal(late(x, time, y).x_0, exact()(x, time, y).x_0)
        always(x, time, y)
    inside = late(x, TIMES[2], y)
    assert float((inside.x_0 - exact()(x, TIMES[2], y).x_0).abs().max()) > 1e-6
    if make is MomentumGuidance:  # the weight of HiGS depends on its interval
        assert torch.equal(inside.x_0, always(x, TIMES[2], y).x_0)


@both
@either_time
def test_outside_a_run_nothing_changes(make, t):
    assert torch.equal(make(exact())(x, t, y).x_0, exact()(x, t, y).x_0)


@both
def test_it_needs_one_level_for_all_and_no_condition(make):
    guided = make(exact(), interval=EVERYWHERE)
    with pytest.raises(ValueError, match="depends on earlier noise levels"):
        guided.start(None, TIMES)(x, t.expand(8), y)
    with pytest.raises(ValueError):
        SAMPLERS["dopri5"](6).times(guided)
    counter = EvaluationCounter(exact())
    assert run("ddim", make(counter), None).isfinite().all() and counter.tally.evaluations == 48


def test_around_guidance_with_a_memory_of_its_own():
    """APG inside, momentum around it: two memories, one evaluation of each side a step."""
    parts = {
        "apg": lambda d: ClassifierFree(d, 3.0, EVERYWHERE, APG(0.0, math.inf, -0.5)),
        "momentum": lambda d: MomentumGuidance(d, 1.5),
    }
    counter = EvaluationCounter(exact())
    end = run("ddim", Nested(counter, parts))
    assert counter.tally.evaluations == 96 and torch.equal(end, run("ddim", Nested(exact(), parts)))


@pytest.mark.parametrize("arguments, sentence", [
    ({"make": HiGS, "share": 0.0}, "share must be in"), ({"make": HiGS, "eta": math.nan}, "eta must be"),
    ({"make": MomentumGuidance, "decay": 1.0}, "decay must be in"), ({"make": HiGS, "scale": math.inf}, "scale must be"),
])  # fmt: skip
def test_numbers_out_of_range(arguments, sentence):
    make = arguments.pop("make")
    with pytest.raises(ValueError, match=sentence):
        make(exact(), **arguments)
