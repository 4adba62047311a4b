"""Likelihoods: stated errors against actual errors, units, the data of the control variate, and discrete levels."""

import pytest
import torch

from diffguide.datasets import GMM2D
from diffguide.datasets.base import Dataset, Split
from diffguide.evaluation.likelihood.comparison import Likelihoods
from diffguide.evaluation.likelihood.control_variate import GaussianFit
from diffguide.evaluation.likelihood.dequantization import DecoderDequantization, UniformDequantization
from diffguide.evaluation.likelihood.elbo import Control, elbo, pieces
from diffguide.evaluation.likelihood.metrics import ELBO, ExactDensity
from diffguide.evaluation.metric import EvalContext
from diffguide.models.decoders import Discretized, Gaussian
from diffguide.models.protocols import DenoiserWrapper
from diffguide.oracles import GaussianMixture, GMM2DLaw
from diffguide.randomness import Noise
from diffguide.schedules import VE, Cosine, Flow

SCHEDULE = Cosine(5.0, -6.0)
LAW = GaussianMixture([1.0], [[0.0]], 0.3, [0], SCHEDULE)


def bound(**changes) -> ELBO:
    return ELBO(**dict(levels=16, draws=4, pilot=16, conditional=False) | changes)


def repeated(n: int) -> Dataset:
    """One pixel of five values, the same in every example: only the draws vary."""
    split = Split(torch.full((n, 1), 0.5), torch.zeros(n, dtype=torch.long))
    return Dataset(split, split, split, class_names=("a",))


def test_the_error_of_the_reconstruction_is_its_spread():
    """With the exact law as control variate the diffusion term does not vary."""
    fit = GaussianFit(torch.zeros(1).double(), torch.tensor([0.3]).double(), torch.ones(1, 1).double())
    terms, noise = pieces(SCHEDULE, 8), Noise(range(2000), (1,), SCHEDULE, dtype=torch.float64)
    x, control = torch.full((2000, 1), 0.5).double(), Control(fit, torch.ones(8).double())
    found = elbo(LAW, x, None, Discretized(5), noise, terms, 2, 3, control)
    assert float(found.diffusion.std()) < 1e-5
    assert float(found.noise.square().mean() / found.nats.var()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("way", [DecoderDequantization(), UniformDequantization()], ids=["decoded", "uniform"])
def test_the_error_of_dequantisation_is_its_spread(way):
    """The spread of density plus correction over independent draws."""
    found = ExactDensity(way, 3, False, 5, None).evaluate_examples(EvalContext(LAW, repeated(2000), batch_size=2000))
    nats = found["density"] + found["dequantisation"]
    assert float(nats.std()) > 1e-3
    assert float(found["noise"].square().mean() / nats.var()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("values, unit", [(5, "bits/dim"), (0, "nats/dim")])
def test_figures_differences_and_curve_have_one_unit(values, unit):
    metric = Likelihoods(
        bound(quantization_levels=values, draws=5), None, ExactDensity(DecoderDequantization(), 2, False, values, None)
    )
    measured = metric.measure(EvalContext(LAW, repeated(50)))
    one, other, gap = measured.figures.values()
    assert {figure.unit for figure in measured.figures.values()} == {unit}
    assert gap.value == pytest.approx(one.value - other.value, rel=1e-9)
    last = measured.curve[-1]  # with all draws of the reconstruction, like the figure
    assert [last["nll_elbo"], last["nll_elbo_se"]] == pytest.approx([one.value, one.standard_error], rel=1e-9)


def test_the_control_variate_is_of_the_training_split():
    """Examples of the split that are not measured do not change the figures."""
    plane = GMM2D(2, None, 4, train=200, validation=40, test=10, seed=0)
    rows = EvalContext(GMM2DLaw(SCHEDULE), plane, n=10).rows
    x = 5 * plane.validation.x
    x[rows] = plane.validation.x[rows]
    other = Dataset(plane.train, plane.validation._replace(x=x), plane.test, class_names=plane.class_names)
    one, two = (bound().measure(EvalContext(GMM2DLaw(SCHEDULE), data, n=10)) for data in (plane, other))
    assert one.figures == two.figures


class DiscreteLevels(DenoiserWrapper):
    """Requires that t is one of its levels, bit for bit."""

    levels = torch.arange(30, 0, -1, dtype=torch.float64) / 30

    def __call__(self, x_t, t, y=None):
        assert bool(torch.isin(t, self.levels).all())
        return self.denoiser(x_t, t, y)


@pytest.mark.parametrize("schedule", [Cosine(12.0, -10.0), Flow(12.0, -12.0), VE(9.2, -7.8)])
def test_a_model_with_discrete_levels_is_evaluated_at_its_levels_only(schedule):
    """Rounding from times to log-SNRs and back does not leave the levels; a bound with other steps is an error."""
    law = GMM2DLaw(schedule)
    model = DiscreteLevels(law)
    terms = pieces(schedule, None, torch.cat([model.levels, torch.zeros(1).double()]))
    x, noise = torch.randn(3, 2, dtype=torch.float64), Noise(range(3), (2,), schedule, dtype=torch.float64)
    found, own = (elbo(denoiser, x, None, Gaussian(), noise, terms, 2, 2, None).nats for denoiser in (model, law))
    torch.testing.assert_close(found, own, rtol=1e-8, atol=1e-8)
    law.levels = model.levels
    with pytest.raises(ValueError, match="metric.steps=4 "):
        bound(steps=4).check(EvalContext(law, GMM2D(2, None, 4, train=20, validation=20, test=10, seed=0)))
