"""The learned variance of ancestral sampling, against a loop written by hand and against diffusers' scheduler."""

import sys
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from all_samplers import published
from learned_variance import VarianceNetwork, output
from test_diffusers import ABAR, CONFIG, SCHEDULE

from diffguide import guidance
from diffguide.guidance.potentials.training_free import MPGD
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.parameterizations import Eps, V
from diffguide.models.preconditioned import Preconditioned
from diffguide.models.protocols import (
    Classifier,
    DenoiserWrapper,
    Prediction,
    SamplingError,
    StackedPrediction,
    VariancePrediction,
)
from diffguide.samplers import DDPM, Restart, TimeTravel
from diffguide.samplers.discrete_grids import Linspace
from diffguide.samplers.grids import UniformT
from diffguide.schedules import tabulate
from diffguide.training.preflight import report_data

NETWORK = VarianceNetwork()
MODEL = Preconditioned(NETWORK, SCHEDULE, Eps(), has_null=True)
x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
y = torch.tensor([0, 2, -1, 1])
t = torch.tensor(0.4, dtype=torch.float64)


class Recorded:
    """The noise of step k, kept."""

    def __init__(self):
        self.rng, self.drawn = torch.Generator().manual_seed(1), []

    def increment(self, t, s):
        self.drawn.append(torch.randn(x.shape, generator=self.rng, dtype=torch.float64))
        return self.drawn[-1]


def sampled(model, sampler):
    """The states of a run, its times and its noise."""
    noise, states = Recorded(), []
    times = sampler.times(model)
    sampler(model, x, times, y, noise, lambda step, state: states.append(state.numpy()))
    return states, times.numpy(), [z.numpy() for z in noise.drawn]


@pytest.mark.parametrize("n, grid", [(10, UniformT()), (250, UniformT()), (10, Linspace(1000)), (250, Linspace(1000))])
def test_a_run_is_the_loop_of_the_paper(n, grid):
    states, times, noise = sampled(MODEL, published(DDPM(n, grid, "learned")))
    abar = np.append(1.0, ABAR)[np.round(1000 * times).astype(int)]
    state = x.numpy()
    for step in range(len(times) - 1):
        here, there = abar[step], abar[step + 1]
        eps, v = output(state, np.log(here / (1 - here)), y.numpy())
        beta = 1 - here / there  # of the spaced step, as in ADM's respacing
        beta_tilde = beta * (1 - there) / (1 - here)
        x_0 = (state - np.sqrt(1 - here) * eps) / np.sqrt(here)
        state = np.sqrt(there) * beta / (1 - here) * x_0 + np.sqrt(here / there) * (1 - there) / (1 - here) * state
        if there < 1:
            f = (v + 1) / 2
            state = state + np.exp(0.5 * (f * np.log(beta) + (1 - f) * np.log(beta_tilde))) * noise[step]
        np.testing.assert_allclose(states[step], state, rtol=1e-9, atol=1e-9, err_msg=f"step {step}")
    assert len(noise) == len(times) - 2  # none in the step to exact data


@pytest.mark.parametrize("n", [10, 250])
def test_a_run_is_that_of_diffusers(n, monkeypatch):
    """With linspace, whose last index is 0. With trailing spacing diffusers leaves noise in the data (findings)."""
    states, times, noise = sampled(MODEL, published(DDPM(n, Linspace(1000), "learned")))
    scheduler = diffusers.DDPMScheduler(
        variance_type="learned_range", clip_sample=False, timestep_spacing="linspace", **CONFIG
    )
    scheduler.set_timesteps(n)
    scheduler.alphas_cumprod = torch.from_numpy(ABAR)
    drawn = iter(noise)
    monkeypatch.setattr(
        sys.modules[type(scheduler).__module__], "randn_tensor", lambda *_, **__: torch.from_numpy(next(drawn))
    )
    state = x
    for step, index in enumerate(scheduler.timesteps):
        log_snr = np.log(ABAR[index] / (1 - ABAR[index]))
        both = np.concatenate(output(state.numpy(), log_snr, y.numpy()), axis=1)
        state = scheduler.step(torch.from_numpy(both), int(index), state).prev_sample
        np.testing.assert_allclose(states[step], state, rtol=1e-9, atol=1e-9, err_msg=f"step {step}")


def test_a_wide_step_has_the_variance_of_the_posterior():
    """As with a fixed variance: nothing removes the noise of the level before (`step_limits`)."""
    times = torch.tensor([0.112, 0.001], dtype=torch.float64)  # a fall by a factor of 36
    ends = [DDPM(1, UniformT(), variance)(MODEL, x, times, y, Recorded()) for variance in ("learned", 0.0)]
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], published(DDPM(1, UniformT(), "learned"))(MODEL, x, times, y, Recorded()))


class Linear(Classifier):
    """log p(y | x_t) of random weights."""

    schedule, num_classes = SCHEDULE, 3

    def log_prob(self, x_t, t):
        return torch.stack([x_t.flatten(1).sum(1) * k for k in range(3)], dim=1).log_softmax(1)


GUIDED = {  # each with a rule or a scale that changes the prediction
    "cfg": lambda model: guidance.ClassifierFree(model, 3.0),
    "rescale": lambda model: guidance.ClassifierFree(model, 3.0, rule=guidance.Rescale(0.7)),
    "negative": lambda model: guidance.NegativeCondition(model, 1, 3.0),
    "pag": lambda model: guidance.PAG(model, 3.0, layers=[0]),
    "slg": lambda model: guidance.SLG(model, [0], 3.0, unconditional=False),
    "autoguidance": lambda model: guidance.Autoguidance(model, Preconditioned(NETWORK, SCHEDULE, V(), True), 3.0),
    "classifier": lambda model: guidance.ClassifierGuidance(model, Linear(), 2.0),
    "mpgd": lambda model: MPGD(model, scale=0.3),
    "nested": lambda model: guidance.ClassifierFree(guidance.PAG(model, 3.0, layers=[0]), 3.0),
    "counted": EvaluationCounter,
}


@pytest.mark.parametrize("times", [t, t.expand(4)], ids=["one level", "rows"])
@pytest.mark.parametrize("name", GUIDED)
def test_guidance_keeps_the_variance_of_the_network(name, times):
    """Of the strong side, as ADM and DiT; guidance changes the two fields."""
    model = GUIDED[name](MODEL)
    assert model.learned_variance
    guided, plain = model(x, times, y), MODEL(x, times, y)
    assert torch.equal(guided.v, plain.v) and not guided.v.requires_grad
    assert name == "counted" or not torch.allclose(guided.x_0, plain.x_0)


def test_a_composition_keeps_the_variance_of_its_first_condition():
    guided = guidance.ClassComposition(MODEL, [1, 2], [1.0, 1.0], 2.0)(x, t, y)
    assert torch.equal(guided.v, MODEL(x, t, torch.ones(4, dtype=torch.long)).v)


def test_the_weak_side_alone_has_its_own_variance():
    assert torch.equal(guidance.ClassifierFree(MODEL, 0.0)(x, t, y).v, MODEL(x, t, None).v)


def test_a_tabulated_run_predicts_the_same():
    times = UniformT()(SCHEDULE, 5, None)
    for time in times[:-1]:
        found, expected = MODEL.start(None, times)(x, time, y), MODEL(x, time, y)
        assert isinstance(found, VariancePrediction) and type(tabulate(SCHEDULE, times)) is not type(SCHEDULE)
        for a, b in zip((*found, found.v), (*expected, expected.v)):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_error_is_that_of_the_first_half():
    log_snr = torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    error, rows = MODEL.error(x, torch.ones_like(x), log_snr, y)
    x_t = torch.sigmoid(log_snr).sqrt().view(-1, 1, 1, 1) * x + torch.sigmoid(-log_snr).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(error, NETWORK(x_t, log_snr, y)[:, :2] - 1)


def test_other_networks_have_the_predictions_of_before():
    class Plain(VarianceNetwork):
        learned_variance = False

        def forward(self, *inputs):
            return super().forward(*inputs)[:, :2]

    model, times = Preconditioned(Plain(), SCHEDULE, Eps(), True), UniformT()(SCHEDULE, 5, None)
    assert not model.learned_variance and type(model(x, t, y)) is Prediction
    assert type(guidance.ClassifierFree(model, 3.0)(x, t, y)) is Prediction
    run = guidance.ClassifierFree(model, 3.0).start(None, times)
    assert type(run(x, times[1], y)) is StackedPrediction


@pytest.mark.parametrize("wrap", [lambda sampler: sampler, TimeTravel, Restart])
def test_a_model_without_a_learned_variance_is_refused(wrap):
    class Plain(VarianceNetwork):
        learned_variance = False

    model = Preconditioned(Plain(), SCHEDULE, Eps(), True)
    with pytest.raises(ValueError, match=r"variance=learned needs a network .* sampler\.variance=0"):
        wrap(DDPM(5, UniformT(), "learned")).times(model)


def test_guidance_that_drops_the_variance_is_named():
    class Clip(DenoiserWrapper):
        def __call__(self, x_t, t, y=None):
            return Prediction(*self.denoiser(x_t, t, y))

    with pytest.raises(SamplingError, match="dropped the learned variance"):
        sampled(Clip(MODEL), DDPM(5, UniformT(), "learned"))


def test_training_says_that_the_variance_is_not_trained(capsys):
    data, objective = SimpleNamespace(warnings=lambda: []), SimpleNamespace(model=MODEL)
    report_data(SimpleNamespace(data=data, note=None, objective=objective))
    assert "sample it with sampler.variance=0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["learnt", -0.1, 1.5, float("nan")])
def test_other_variances_are_refused(wrong):
    with pytest.raises(ValueError, match="variance must be"):
        DDPM(5, UniformT(), wrong)
