"""A small classifier of the noise level after its training: no curl, and a density that integrates to 1, the exact one."""

import math

import numpy as np
import pytest
import torch
from exact_levels import SCHEDULE as SHARP
from exact_levels import exact_levels
from joint_energies import TRUTH
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffguide.backbones import MLP
from diffguide.evaluation.classification.weighting import Bell, Exact
from diffguide.evaluation.classification.zero_shot import Budget, ZeroShot
from diffguide.models.level_classifier import LevelClassifier
from diffguide.objectives import CDM
from diffguide.oracles import GMM2DLaw
from diffguide.schedules import TRE

SCHEDULE, T, STEPS = TRE(6.0, -10.0), 15, 400
LEVELS = [0, 2, 6, 11]


@pytest.fixture(scope="module")
def trained() -> LevelClassifier:
    """Of three Gaussians in the plane, in some seconds."""
    torch.manual_seed(0)
    made = CDM(MLP(2, T + 2, 0, 64, 2, 32, 0.4, False), SCHEDULE, T + 2, 1.0, 1.0, 0, None, True, 0.0)
    optimiser, draws, rng = torch.optim.Adam(made.parameters()), np.random.default_rng(0), torch.Generator()
    ema = AveragedModel(made, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = 0.005 * (1 + math.cos(math.pi * step / STEPS)) / 2
        x = torch.from_numpy(TRUTH.sample(256, draws)[0]).float()
        made(x, None, rng.manual_seed(step)).per_example.mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        ema.update_parameters(made)
    return ema.module.model.eval().requires_grad_(False)


def plane(reach: float, n: int) -> tuple[torch.Tensor, float]:
    """A grid [n^2, 2] over a square, and the area of a cell."""
    line = torch.linspace(-reach, reach, n)
    return torch.cartesian_prod(line, line), (2 * reach / (n - 1)) ** 2


def exact(x: torch.Tensor, k: int) -> torch.Tensor:
    alpha, sigma = (float(part) for part in SCHEDULE.alpha_sigma(k / T))
    return torch.from_numpy(TRUTH.log_density(x.double().numpy(), alpha, sigma))


def time(k: int) -> torch.Tensor:
    return torch.tensor(k / T, dtype=torch.float64)


@pytest.mark.parametrize("k", LEVELS)
def test_its_density_integrates_to_one_and_is_the_exact_one(trained, k):
    """log Z by quadrature, which no loss has seen, and E |log p - exact|, both in nats."""
    x, area = plane(4.0, 161)
    stated = trained.log_density(x, time(k)).double()
    weight = exact(x, k).exp() * area
    assert float(weight.sum()) == pytest.approx(1, abs=2e-3)  # the square holds it
    assert abs(float(stated.logsumexp(0)) + math.log(area)) < 0.05
    error = stated - exact(x, k)
    assert float((weight * error.abs()).sum()) < 0.15
    assert float(((stated.exp() * area) - weight).abs().sum()) / 2 < 0.08  # total variation


def test_its_differences_are_log_ratios(trained):
    """Between levels at one point and between points at one level, where there are data."""
    x = torch.from_numpy(TRUTH.sample(500, np.random.default_rng(1))[0]).float()
    stated = torch.stack([trained.log_density(x, time(k)).double() for k in LEVELS])
    truth = torch.stack([exact(x, k) for k in LEVELS])
    assert float((stated.diff(dim=0) - truth.diff(dim=0)).abs().mean()) < 0.15
    assert float((stated.diff(dim=1) - truth.diff(dim=1)).abs().mean()) < 0.2
    assert float(truth.diff(dim=1).abs().mean()) > 0.5


def test_its_score_has_no_curl(trained):
    """Along a path the score adds up to the difference of log-densities, around a circle to nothing; by the midpoint rule."""
    for k in (2, 6, 11):
        sigma = float(SCHEDULE.alpha_sigma(k / T)[1])
        turn = torch.linspace(0, 2 * math.pi, 4001)
        circle = 0.2 + 0.6 * torch.stack([turn.cos(), turn.sin()], 1)
        middle, step = (circle[1:] + circle[:-1]) / 2, circle.diff(dim=0)
        with torch.no_grad():
            along = (-trained(middle, time(k)).eps / sigma * step).sum(1).double()
            ends = trained.log_density(circle, time(k)).double()
        torch.testing.assert_close(along.cumsum(0), ends[1:] - ends[0], rtol=0, atol=2e-3)
        assert abs(float(along.sum())) < 1e-3 * float(along.abs().sum())


def test_exact_logits_are_a_zero_shot_classifier():
    """By eps at its own levels, and by its density in one pass per class: both are Bayes' rule, the first up to its draws."""
    model, rng = exact_levels(40), np.random.default_rng(3)
    law = GMM2DLaw(SHARP)
    x = torch.from_numpy(rng.uniform(-0.9, 0.9, (30, 2)))
    start = torch.tensor(0.0, dtype=torch.float64)
    truth = torch.stack([law.log_density(x, start, torch.full((30,), label)) for label in range(4)], 1).log_softmax(1)
    torch.testing.assert_close(model.log_prob(x, start), truth, rtol=0, atol=1e-9)
    answers = ZeroShot(Exact(), Bell(3.0, 2.5), Budget(240, [], None), 1.0, 4000)(model, x.float(), range(30)).log_prob
    clear = truth.max(1).values > math.log(0.9)
    assert torch.equal(answers.argmax(1)[clear], truth.argmax(1)[clear]) and int(clear.sum()) > 15
    ours, exactly = (part[:, 0] - part[:, 2] for part in (answers, truth))
    assert np.corrcoef(ours, exactly)[0, 1] > 0.99
    assert abs(float((ours @ exactly) / (exactly @ exactly)) - 1) < 0.05  # temperature 1
