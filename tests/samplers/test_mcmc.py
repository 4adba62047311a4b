"""Markov chains at every level: against plain loops in NumPy, exact detailed balance, closed forms, and by the command."""

import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from closed_forms import ExactMixture, two_classes
from scipy.stats import norm

from diffguide import guidance as g
from diffguide.guidance.potentials import NoisyPotentialGuidance
from diffguide.models.evaluation_counters import count_evaluations
from diffguide.oracles import GaussianMixture, GMM2DLaw
from diffguide.randomness import Noise
from diffguide.sample import main as sample
from diffguide.samplers import DDIM, DDPM, MCMC, AnnealedLangevin, Chain, LangevinPC, UniformLogSNR, generate
from diffguide.samplers.chains import Point, energy_change
from diffguide.samplers.heun import CHURN_DRAW
from diffguide.samplers.mcmc import density_law
from diffguide.sampling import outputs
from diffguide.sampling.run import SampleWriter
from diffguide.schedules import EDM, Flow

SCHEDULE = EDM()
MIXTURE = two_classes()
PARTS = [torch.as_tensor(p) for p in (MIXTURE.weights, MIXTURE.means, MIXTURE.covariances, MIXTURE.labels)]
LAW = GaussianMixture(*PARTS, SCHEDULE)
SCALE, STEPS, CORRECTIONS, ROWS = 3.0, 4, 5, 4


def pair() -> GaussianMixture:
    """Variances 1 and 2."""
    return GaussianMixture([1, 1], [[0.0], [0.0]], [1.0, 2.0], [0, 1], SCHEDULE)


class Reference:
    """One sample's run on VE levels, with the law p(x | y)^3 p(x)^-2 at every level: published formulas, one step at a time."""

    def __init__(self, y: int, momenta, uniforms, step: float, width: float, burn_in: int):
        self.y, self.momenta, self.uniforms = np.array([y]), momenta, uniforms
        self.log_step, self.width, self.burn_in, self.accepted = math.log(step), width, burn_in, []

    def log_q(self, x, sigma):
        both = MIXTURE.log_density(x[None], 1.0, sigma, self.y), MIXTURE.log_density(x[None], 1.0, sigma)
        return float(SCALE * both[0][0] + (1 - SCALE) * both[1][0])

    def score(self, x, sigma):
        both = MIXTURE.score(x[None], 1.0, sigma, self.y), MIXTURE.score(x[None], 1.0, sigma)
        return SCALE * both[0][0] + (1 - SCALE) * both[1][0]

    def decide(self, k: int, level: int, log_ratio: float) -> bool:
        probability = math.exp(min(log_ratio, 0.0))
        if k < self.burn_in:
            self.log_step += 0.5 * (probability - 0.6)
        else:
            self.accepted.append(probability)
        return self.uniforms[level, k] < probability

    def mala(self, x, sigma, level):
        """Roberts & Tweedie's proposal N(x + e score, 2 e), whose densities both ways are in the ratio."""
        for k in range(CORRECTIONS):
            e = math.exp(self.log_step) * (sigma**2 + self.width**2)
            there = x + e * self.score(x, sigma) + math.sqrt(2 * e) * self.momenta[level, k]
            forward = -((there - x - e * self.score(x, sigma)) ** 2).sum() / (4 * e)
            back = -((x - there - e * self.score(there, sigma)) ** 2).sum() / (4 * e)
            if self.decide(k, level, self.log_q(there, sigma) + back - self.log_q(x, sigma) - forward):
                x = there
        return x

    def hmc(self, x, sigma, level, leapfrogs, damping, adjusted=True):
        """Leapfrogs in the units of x; partial refreshment, and the momentum reversed where a step is refused."""
        unit, v = math.sqrt(sigma**2 + self.width**2), None
        for k in range(CORRECTIONS):
            fresh = self.momenta[level, k]
            v = fresh if v is None else damping * v + math.sqrt(1 - damping**2) * fresh
            h, there, w = math.sqrt(2 * math.exp(self.log_step)), x, v
            for _ in range(leapfrogs):
                w = w + h / 2 * unit * self.score(there, sigma)
                there = there + h * unit * w
                w = w + h / 2 * unit * self.score(there, sigma)
            ratio = self.log_q(there, sigma) - self.log_q(x, sigma) + (v @ v - w @ w) / 2
            if not adjusted or self.decide(k, level, ratio):
                x, v = there, w
            else:
                v = -v
        return x


CHAINS = {
    "mala": (Chain(burn_in=2), lambda r, *a: r.mala(*a)),
    "wide mala": (Chain(1.4, width=0.3, burn_in=0), lambda r, *a: r.mala(*a)),
    "hmc": (Chain(0.4, 3, 0.6, burn_in=2), lambda r, *a: r.hmc(*a, 3, 0.6)),
    "ula": (Chain(0.2, adjusted=False, burn_in=0), lambda r, *a: r.hmc(*a, 1, 0.0, False)),
    "uhmc": (Chain(0.1, 2, 0.5, adjusted=False, burn_in=0), lambda r, *a: r.hmc(*a, 2, 0.5, False)),
    "uhmc without memory": (Chain(0.1, 2, 0.0, adjusted=False, burn_in=0), lambda r, *a: r.hmc(*a, 2, 0.0, False)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_every_sample_follows_the_formulas(name):
    """Four samples, four levels of five steps: to 1e-9, with DDIM between levels. ULA and UHMC need no log-density."""
    chain, run = CHAINS[name]
    model = LAW if chain.adjusted else ExactMixture(MIXTURE, SCHEDULE)
    counted, tally = count_evaluations(model)
    sampler, guided = MCMC(DDIM(STEPS, UniformLogSNR()), chain, CORRECTIONS), g.ClassifierFree(counted, SCALE)
    times = sampler.times(guided)
    noise, y = Noise(range(ROWS), (2,), SCHEDULE, dtype=torch.float64), torch.arange(ROWS) % 2
    start = sampler.begin(guided, times, noise)
    x = sampler(guided, start, times, y, noise)
    draws = [[noise.normal(s, CHURN_DRAW + 1 + k).numpy() for k in range(2 * CORRECTIONS)] for s in times[1:]]
    draws = np.array(draws)  # [levels, 2 corrections, rows, 2]
    levels, rates = SCHEDULE.noise_level(times).numpy(), []
    for i in range(ROWS):
        alone = Reference(
            int(y[i]), draws[:, ::2, i], norm.cdf(draws[:, 1::2, i, 0]), chain.step_size, chain.width, chain.burn_in
        )
        z = start[i].numpy()
        for level, (sigma, lower) in enumerate(zip(levels[:-1], levels[1:])):
            z = z + (lower - sigma) * -sigma * alone.score(z, sigma)
            z = run(alone, z, lower, level)
        np.testing.assert_allclose(x[i].numpy(), z, atol=1e-9)
        rates.append(alone.accepted)
    evaluations = CORRECTIONS * chain.leapfrogs + (chain.adjusted or chain.damping > 0)
    assert tally.evaluations == ROWS * STEPS * 2 * (1 + evaluations)
    if not chain.adjusted:
        assert tally.means == {}
        return
    found = tally.means["acceptance"]
    assert list(found) == [pytest.approx(level) for level in levels[1:]]
    wanted = np.array(rates).reshape(ROWS, STEPS, -1)
    assert 0.1 < (wanted < 1).mean()
    np.testing.assert_allclose([total / n for total, n in found.values()], wanted.mean((0, 2)), atol=1e-9)


class Fixed:
    """Noise that is given."""

    def __init__(self, z):
        self.z = z

    def normal(self, level, draw):
        return self.z

    increment = None


@pytest.mark.parametrize("leapfrogs", [1, 3])
@torch.no_grad()
def test_detailed_balance_is_exact(leapfrogs):
    """q(x) N(v) a(x, v) = q(x') N(v') a(x', -v') on a tilted law, where the way back starts from the reversed momentum."""
    t = SCHEDULE.t_of(torch.tensor(2.0, dtype=torch.float64))
    sigma = float(SCHEDULE.alpha_sigma(t)[1])
    law = density_law(g.ClassifierFree(LAW, SCALE), t, torch.arange(40) % 2)
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 40, 2, generator=generator, dtype=torch.float64)
    chain, log_step = Chain(0.8, leapfrogs, burn_in=0), torch.full((40,), math.log(0.8), dtype=torch.float64)
    end, w = chain.leap(law, law(x), v, torch.tensor(1.6, dtype=torch.float64).sqrt(), sigma)
    there = chain.run(law, x, sigma, Fixed(v), t, 1, log_step).acceptance[0]
    back = chain.run(law, end.x, sigma, Fixed(-w), t, 1, log_step).acceptance[0]
    flow, return_flow = (
        point.value - momentum.square().sum(1) / 2 + rate.log()
        for point, momentum, rate in ((law(x), v, there), (end, w, back))
    )
    torch.testing.assert_close(flow, return_flow, atol=1e-9, rtol=0)
    assert float(there.min()) < 0.6


@torch.no_grad()
def test_the_tilted_gaussian_stays_with_acceptance_alone():
    """p^3 q^-2 of variances 1 and 2 at one level, from exact samples: long steps keep its variance, ULA's have a known one.

    x' = (1 - e / v) x + sqrt(2 e) z has the variance v / (1 - e / (2 v)); three standard errors are 5 %.
    """
    guided, n = g.NegativeCondition(pair(), 1, SCALE), 8000
    t = SCHEDULE.t_of(torch.tensor(0.0, dtype=torch.float64))
    v = 1 / (SCALE / 2 + (1 - SCALE) / 3)
    y, noise = torch.zeros(n, dtype=torch.long), Noise(range(n), (1,), SCHEDULE, dtype=torch.float64)
    start = math.sqrt(v) * noise.normal(0.7, 0)
    for adjusted, wanted in ((True, v), (False, v / (1 - 0.6 / (2 * v)))):
        sampler = MCMC(DDIM(1), Chain(0.6, adjusted=adjusted, burn_in=0), 8)
        x = sampler.run_chain(guided, start, t, t, y, noise, {})
        assert float(x.var()) == pytest.approx(wanted, rel=0.05)


def test_a_sample_does_not_depend_on_its_batch():
    """With adaptation: each sample has its own step size."""
    guided, sampler, labels = g.ClassifierFree(LAW, 4.0), MCMC(DDIM(4), Chain(leapfrogs=2), 5), [0, 1] * 4
    whole, parts = (
        torch.cat(list(generate(guided, sampler, range(8), labels, (2,), size, dtype=torch.float64))) for size in (8, 3)
    )
    torch.testing.assert_close(whole, parts, atol=1e-10, rtol=0)
    alone = list(generate(guided, sampler, [5], [1], (2,), 1, dtype=torch.float64))[0]
    torch.testing.assert_close(alone[0], whole[5], atol=1e-10, rtol=0)


def test_where_the_chain_runs():
    """Every third level of six, the last one included; not at exact data; a power begins with its own noise."""
    counted, tally = count_evaluations(LAW)
    guided = g.ClassifierFree(counted, 3.0)
    list(generate(guided, MCMC(DDIM(6), every=3), range(2), [0, 1], (2,), 2))
    levels = tally.means["acceptance"]
    assert len(levels) == 2 and min(levels) == pytest.approx(0.002) and levels[min(levels)][1] == 2 * 7
    with pytest.raises(ValueError, match="every must divide the number of steps, 6, got 4"):
        MCMC(DDIM(6), every=4).times(guided)
    exact = GaussianMixture(*PARTS, Flow(math.inf, -10.0))
    x = list(generate(exact, MCMC(DDIM(4)), range(3), [0, 1, -1], (2,), 3, dtype=torch.float64))[0]
    assert bool(x.isfinite().all())
    cold, sampler = g.PowerGuidance(LAW, 4.0), MCMC(DDIM(2))
    noise, times = Noise(range(3), (2,), SCHEDULE), sampler.times(cold)
    torch.testing.assert_close(2 * sampler.begin(cold, times, noise), DDIM(2).begin(cold, times, noise))


def test_a_place_without_density_is_refused():
    start, end = (
        Point(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor(value)) for value in ([0.0, 1.0], [math.nan, 2.0])
    )
    change = energy_change(start, torch.ones(2, 1), end, torch.ones(2, 1))
    assert change.tolist() == [-math.inf, 1.0]


def variances(scale: float, steps: int, corrections: int | None) -> float:
    """Of predictor-corrector guidance by DDIM on N(0, 1), and for corrections None of CFG with DDPM; weak N(0, 2), VE levels.

    All steps are linear: x_s = a x_t + b z.
    """
    levels = np.exp(np.linspace(math.log(80), math.log(0.002), steps + 1))
    variance = levels[0] ** 2
    for sigma, lower in zip(levels[:-1], levels[1:]):
        removed = 1 - lower**2 / sigma**2

        def precision(sigma, w):
            return w / (1 + sigma**2) + (1 - w) / (2 + sigma**2)

        if corrections is None:
            variance = (1 - sigma**2 * removed * precision(sigma, scale)) ** 2 * variance + lower**2 * removed
            continue
        variance *= (1 - (sigma - lower) * sigma * precision(sigma, 1.0)) ** 2
        e = lower**2 * removed / 2
        for _ in range(corrections):
            variance = (1 - e * precision(lower, scale)) ** 2 * variance + 2 * e
    return variance


@pytest.mark.parametrize("gamma", [1.5, 2.0, 4.0])
def test_predictor_corrector_guidance_becomes_cfg_with_ddpm(gamma):
    """At the scale 2 gamma - 1; the difference is of first order in the steps. 40 corrections lead to the tilted law."""
    few, many = (variances(2 * gamma - 1, n, 1) / variances(gamma, n, None) - 1 for n in (400, 1600))
    assert abs(many) < 0.015 and 3 < few / many < 5
    law = 2 / (1 + 2 * gamma - 1)
    assert variances(2 * gamma - 1, 400, 40) == pytest.approx(law, rel=0.02)
    assert abs(variances(2 * gamma - 1, 400, 1) / law - 1) > 0.04


@pytest.mark.parametrize("corrections", [1, 3])
def test_predictor_corrector_guidance_has_its_variance(corrections):
    """3000 samples with 40 steps: standard error 2.6 %; the mover is the model without guidance, of the row's class."""
    sampler = MCMC(DDIM(40, UniformLogSNR()), Chain(None, adjusted=False, burn_in=0), corrections, guided_moves=False)
    counted, tally = count_evaluations(pair())
    guided = g.NegativeCondition(counted, 1, 3.0)
    x = list(generate(guided, sampler, range(3000), [0] * 3000, (1,), 3000, dtype=torch.float64))[0]
    assert float(x.square().mean()) == pytest.approx(variances(3.0, 40, corrections), rel=0.08)
    assert tally.evaluations == 3000 * 40 * (1 + 2 * corrections)


def test_a_model_without_classes_moves_without_them():
    """A classifier gives the classes: the moves of the generator have none."""
    plain = GaussianMixture([1], [[0.0, 0.0]], [1.0], [0], SCHEDULE)
    plain.num_classes = 0
    guided = g.ClassifierGuidance(plain, LAW, 2.0)
    sampler = MCMC(DDIM(4), Chain(None, adjusted=False, burn_in=0), 1, guided_moves=False)
    assert list(generate(guided, sampler, range(2), [0, 1], (2,), 2))[0].shape == (2, 2)


def test_the_command_states_the_acceptance_and_resumes(tmp_path, command):
    """A run that was stopped has the samples and, per level, the acceptance of one without a break."""
    arguments = ["oracle=gmm2d", "guidance=cfg", "sampler=mcmc", "sampler.inner.steps=3", "sampler.corrections=4"]

    def interrupted(self, first):
        if first == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return begin(self, first)

    begin = SampleWriter.begin_batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "write_metrics", lambda *_: {})  # which are no matter of samplers
        with pytest.MonkeyPatch.context() as stop:
            stop.setattr(SampleWriter, "begin_batch", interrupted)
            stopped = command(sample, *arguments, "n=12", "batch_size=4", at=tmp_path)
        again = command(sample, f"resume={stopped.folder}", at=tmp_path)
    assert (stopped.code, again.code) == (143, 0), again.err
    counted, tally = count_evaluations(GMM2DLaw(EDM()))
    sampler, labels = MCMC(DDIM(3), corrections=4), [0, 1, 2, 3] * 3
    (x,) = generate(g.ClassifierFree(counted, 2.0), sampler, range(12), labels, (2,), 12, dtype=torch.float64)
    folder = tmp_path / again.folder
    np.testing.assert_allclose(np.load(folder / "samples.npz")["arr_0"], x, atol=1e-6)
    header = json.loads((folder / "manifest.jsonl").read_text().split("\n")[0])
    assert header["network_evaluations"] == 2 * 3 * (1 + 5)
    wanted = [[level, total / n] for level, (total, n) in tally.means["acceptance"].items()]
    assert len(wanted) == 3
    np.testing.assert_allclose(header["acceptance"], wanted, atol=1e-9)


def test_what_does_not_fit_is_refused():
    blind = ExactMixture(MIXTURE, SCHEDULE)
    for guided, words in {
        g.ClassifierFree(blind, 3.0): "this model has none",
        g.ClassifierFree(LAW, 3.0, rule=g.APG()): "rule apg departs",
        NoisyPotentialGuidance(LAW, lambda x, y: x.sum(1), 1.0, [0.1, 5.0]): "acts at some noise levels",
    }.items():
        with pytest.raises(ValueError, match=f"log-density at every noise level: .*{words}.* sampler/chain=ula"):
            MCMC(DDIM(5)).times(guided)
        MCMC(DDIM(5), Chain(0.1, adjusted=False, burn_in=0)).times(guided)
    for inner in (LangevinPC(DDPM(5)), AnnealedLangevin(5), MCMC(DDIM(5))):
        with pytest.raises(ValueError, match="inner must be a sampler without Langevin steps"):
            MCMC(inner)
    with pytest.raises(ValueError, match=r"corrections must be more than chain.burn_in.* 3 and 3"):
        MCMC(DDIM(5), corrections=3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"step_size": 0.0}, "step_size"),
        ({"leapfrogs": 0}, "leapfrogs"),
        ({"damping": 1.0}, "damping"),
        ({"width": -0.1}, "width"),
        ({"target": 1.0}, "target"),
        ({"adjusted": False}, "burn_in must be 0"),
        ({"step_size": None}, "burn_in must be 0"),
    ],
)
def test_impossible_chains_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Chain(**arguments)
