"""The laws that guidances name: their score is the guided score on exact models at the level of the data."""

import pytest
import torch

from diffguide import guidance as g
from diffguide.guidance.nested import Nested
from diffguide.guidance.potentials import LGD, NoisyPotentialGuidance, PotentialGuidance
from diffguide.guidance.rules import CFGPlusPlus, Rescale
from diffguide.models.protocols import DenoiserWrapper
from diffguide.models.tilts import Power, Tilt
from diffguide.oracles import GaussianMixture, TiltedLaw
from diffguide.schedules import EDM

LAW = GaussianMixture([0.3, 0.3, 0.4], [[-1.0, 0.0], [1.0, 0.5], [0.5, -1.0]], [0.5, 0.8, 1.2], [0, 1, 2], EDM())
GUIDED = {
    "cfg": lambda d: g.ClassifierFree(d, 3.0),
    "cfg away from a class": lambda d: g.ClassifierFree(d, 1.4, negative=2),
    "negative": lambda d: g.NegativeCondition(d, 2, 1.4),
    "compose": lambda d: g.ClassComposition(d, [0, 1], [1.0, 0.7], 1.5),
    "classifier": lambda d: g.ClassifierGuidance(d, LAW, 2.0),
    "noisy potential": lambda d: NoisyPotentialGuidance(d, lean, 2.0),
    "nested": lambda d: Nested(
        d, {"a": lambda d: g.ClassifierFree(d, 2.0), "b": lambda d: g.ClassifierGuidance(d, LAW, 0.5)}
    ),
    "power": lambda d: g.PowerGuidance(d, 1.7),
    "power of cfg": lambda d: g.PowerGuidance(g.ClassifierFree(d, 2.0), 1.7),
    "around": lambda d: g.ClassifierFree(g.NegativeCondition(d, 2, 1.4), 1.5),
}


def lean(x, y):
    return x[:, 0] - 0.3 * x[:, 1] ** 2


@pytest.mark.parametrize("name", GUIDED)
def test_the_guided_score_is_that_of_the_law_at_the_data(name):
    """At a noise level of 1e-4 the score of the prediction is the gradient of the law's log-density, to 1e-5."""
    guided = GUIDED[name](LAW)
    schedule = guided.schedule
    t = schedule.t_of(torch.tensor(-2.0, dtype=torch.float64) * torch.log(torch.tensor(0.002, dtype=torch.float64)))
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(20) % 3
    score = -guided(x, t, y).eps / schedule.alpha_sigma(t)[1]
    law = TiltedLaw(LAW, guided.tilt())
    for label in range(3):
        rows = y == label
        z = x[rows].requires_grad_()
        (expected,) = torch.autograd.grad(law.of(label).log_product(z).sum(), z)
        torch.testing.assert_close(score[rows], expected, atol=1e-3, rtol=1e-4)


def test_laws_do_not_depend_on_the_rule_and_some_guidances_name_none():
    assert g.ClassifierFree(LAW, 3.0, rule=Rescale()).tilt() == Tilt((Power(3.0), Power(-2.0, -1)))
    assert g.ClassifierFree(LAW, 0.5, rule=CFGPlusPlus()).tilt() is None
    assert g.Autoguidance(LAW, LAW, 2.0).tilt() is None
    assert g.ClassifierFree(g.Autoguidance(LAW, LAW, 2.0), 2.0).tilt() is None
    assert DenoiserWrapper(LAW).tilt() is None and LAW.tilt() == Tilt()
    for kind in (PotentialGuidance, LGD):
        (term,) = kind(LAW, lean, 2.0).tilt().potentials
        assert (term.scale, term.function, term.of_class) == (2.0, lean, False)
    assert g.NegativeCondition(LAW, 2, 1.0).tilt() == Tilt()
