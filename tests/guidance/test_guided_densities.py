"""The log-density of a guided law at a noise level: its gradient is the guided score, and it has the closed form's values."""

import numpy as np
import pytest
import torch
from closed_forms import ExactMixture, Mixture, two_classes
from exact_levels import exact_levels

from diffguide import guidance as g
from diffguide.guidance.nested import Nested
from diffguide.guidance.potentials import LGD, NoisyPotentialGuidance, Potential, PotentialGuidance
from diffguide.models.evaluation_counters import count_evaluations, without_guidance
from diffguide.oracles import GaussianMixture
from diffguide.schedules import EDM, Cosine

PARTS = [0.3, 0.3, 0.4], [[-1.0, 0.0], [1.0, 0.5], [0.5, -1.0]], [0.5, 0.8, 1.2], [0, 1, 2]
LAW = GaussianMixture(*PARTS, Cosine())
WIDER = GaussianMixture(PARTS[0], PARTS[1], [1.0, 1.5, 1.8], PARTS[3], EDM(log_snr_min=-10.1))
X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, -1] * 3)


def lean(x, y):
    return x[:, 0] - 0.3 * x[:, 1] ** 2


class Leaning(Potential):
    of_class = True

    def __call__(self, x, y):
        return lean(x, y) * (1 + y)


GUIDED = {
    "none": lambda d: d,
    "cfg": lambda d: g.ClassifierFree(d, 3.0),
    "cfg 0": lambda d: g.ClassifierFree(d, 0.0),
    "cfg 1": lambda d: g.ClassifierFree(d, 1.0),
    "cfg away from a class": lambda d: g.ClassifierFree(d, 1.4, negative=2),
    "negative": lambda d: g.NegativeCondition(d, 2, 1.4),
    "compose": lambda d: g.ClassComposition(d, [0, 1], [1.0, 0.7], 1.5),
    "compose one": lambda d: g.ClassComposition(d, [1], [1.0], 1.0),
    "autoguidance": lambda d: g.Autoguidance(d, WIDER, 2.0),
    "classifier": lambda d: g.ClassifierGuidance(d, LAW, 2.0),
    "classifier off": lambda d: g.ClassifierGuidance(d, LAW, 0.0),
    "power of cfg": lambda d: g.PowerGuidance(g.ClassifierFree(d, 2.0), 1.7),
    "nested": lambda d: Nested(
        d, {"a": lambda d: g.ClassifierFree(d, 2.0), "b": lambda d: NoisyPotentialGuidance(d, lean, 0.5)}
    ),
    "noisy potential of class": lambda d: NoisyPotentialGuidance(d, Leaning(), 2.0),
    "through the network": lambda d: PotentialGuidance(d, lean, 1.5),
    "potential off": lambda d: PotentialGuidance(d, lean, 0.0),
}


@pytest.mark.parametrize("name", GUIDED)
def test_its_gradient_is_the_guided_score(name):
    """At a level of the middle, with classes and rows without; and for y = None."""
    guided = GUIDED[name](LAW)
    t = torch.tensor(0.4, dtype=torch.float64)
    assert guided.explain_no_density() is None
    for y in (Y, None):
        guided = guided.start(None, t[None])
        x = X.clone().requires_grad_()
        value = guided.guided_log_density(x, t, y)
        assert value.shape == (12,)
        (slope,) = torch.autograd.grad(value.sum(), x)
        torch.testing.assert_close(slope, -guided(X, t, y).eps / LAW.schedule.alpha_sigma(t)[1], atol=1e-8, rtol=1e-7)


def test_its_value_is_the_sum_of_powers():
    """NumPy's closed form of log p(x | y)^3 p(x)^-2."""
    mixture, t = two_classes(), torch.tensor(0.3, dtype=torch.float64)
    parts = (torch.as_tensor(part) for part in (mixture.weights, mixture.means, mixture.covariances, mixture.labels))
    law = GaussianMixture(*parts, Cosine())
    alpha, sigma = (float(part) for part in law.schedule.alpha_sigma(t))
    y = torch.arange(12) % 2
    wanted = 3 * mixture.log_density(X.numpy(), alpha, sigma, y.numpy()) - 2 * mixture.log_density(
        X.numpy(), alpha, sigma
    )
    torch.testing.assert_close(g.ClassifierFree(law, 3.0).guided_log_density(X, t, y), torch.from_numpy(wanted))


def test_a_network_of_levels_has_one_and_counts_it():
    """objective=cdm: both sides are one call; the density is float32's where the network is."""
    counted, tally = count_evaluations(exact_levels(20))
    guided, t = g.ClassifierFree(counted, 3.0), torch.tensor(0.5, dtype=torch.float64)
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(guided.guided_log_density(x, t, Y.abs()).sum(), x)
    assert tally.evaluations == 24 and without_guidance(guided) is counted
    torch.testing.assert_close(slope, -guided(X, t, Y.abs()).eps / counted.schedule.alpha_sigma(t)[1])


def test_what_has_no_density_says_why():
    assert "this model has none" in g.ClassifierFree(ExactMixture(two_classes(), Cosine()), 3.0).explain_no_density()
    three = Mixture(PARTS[0], PARTS[1], [v * np.eye(2) for v in PARTS[2]], PARTS[3])
    blind = g.Autoguidance(LAW, ExactMixture(three, Cosine()), 2.0)
    assert blind.explain_no_density() == "of the guide, this model has none"
    assert "rule apg" in g.ClassifierFree(LAW, 3.0, rule=g.APG()).explain_no_density()
    assert "acts at some noise levels" in NoisyPotentialGuidance(LAW, lean, 1.0, [0.1, 5.0]).explain_no_density()
    assert "lgd draws noise" in LGD(LAW, lean).explain_no_density()
