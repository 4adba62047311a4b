"""Metrics from Python: contexts, errors of denoisers, answers of classifiers, calibration."""

import math

import numpy
import pytest
import torch
from closed_forms import two_classes

from diffguide.datasets import GMM2D, Dataset, Split, Tree
from diffguide.evaluation.auto import Auto
from diffguide.evaluation.classification.calibration import calibration_error
from diffguide.evaluation.classification.metric import Classification
from diffguide.evaluation.denoising import DenoisingError, find_law
from diffguide.evaluation.likelihood.dequantization import UniformDequantization
from diffguide.evaluation.likelihood.metrics import ExactDensity
from diffguide.evaluation.metric import EvalContext, Metric
from diffguide.evaluation.parts import MetricError, Parts
from diffguide.evaluation.results import mean
from diffguide.models.protocols import Classifier, Denoiser, LogDensity, Prediction
from diffguide.oracles import GaussianMixture, GMM2DLaw
from diffguide.schedules import Cosine, Flow

COSINE = Cosine(12.0, -10.0)


def gaussian_data(n: int) -> Dataset:
    """N(0, 0.25 I) in three dimensions, without classes."""
    x = 0.5 * torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    return Dataset(*[Split(x, torch.full((n,), -1))] * 3, class_names=())


def plane(n: int = 400) -> GMM2D:
    return GMM2D(2, None, 4, 10, n, 20, 0)


class Off(Denoiser):
    """The exact denoiser plus a constant in x_0, without classes."""

    has_null = True

    def __init__(self, oracle, offset: float):
        self.oracle, self.offset, self.schedule = oracle, offset, oracle.schedule

    def __call__(self, x_t, t, y=None):
        assert y is None
        x_0, eps = self.oracle(x_t, t)
        return Prediction(x_0 + self.offset, eps)


@pytest.mark.parametrize("schedule", [COSINE, Flow(10.0, -10.0)], ids=["cosine", "flow"])
def test_errors_of_the_perfect_denoiser_are_the_posterior_variances(schedule):
    """Of N(0, v): E |eps - E eps|^2 = a^2 v / (a^2 v + s^2) and E |x_0 - E x_0|^2 = v s^2 / (a^2 v + s^2) per value."""
    law = GaussianMixture([1.0], [[0.0] * 3], 0.25, [0], schedule)
    measured = DenoisingError(6, False, 0).measure(EvalContext(law, gaussian_data(4000)))
    low, high = schedule.log_snr_min, schedule.log_snr_max
    middles = [low + (high - low) * (k + 0.5) / 6 for k in range(6)]
    assert [row["log_snr"] for row in measured.curve] == pytest.approx(middles)
    expected_eps, expected_x_0 = [], []
    for row in measured.curve:
        snr = 0.25 * math.exp(row["log_snr"])
        expected_eps.append(snr / (snr + 1))
        expected_x_0.append(0.25 / (snr + 1))
        assert row["mse_eps"] == pytest.approx(expected_eps[-1], abs=4 * row["mse_eps_se"] + 1e-9)
        assert row["mse_x_0"] == pytest.approx(expected_x_0[-1], abs=4 * row["mse_x_0_se"] + 1e-9)
        assert row["noise_level"] == pytest.approx(math.exp(-row["log_snr"] / 2))
    for name, expected in (("mse_eps", expected_eps), ("mse_x_0", expected_x_0)):
        figure = measured.figures[name]
        assert figure.value == pytest.approx(sum(expected) / 6, abs=4 * figure.standard_error)
        assert 0 < figure.standard_error < 0.01 and figure.n == 4000
    assert measured.facts["law"] is None and "excess" not in measured.figures


def test_data_of_a_known_law_have_an_excess():
    """0 for the oracle; for a constant error its square divided by the posterior variance, within the standard error."""
    law = GMM2DLaw(COSINE)
    metric = DenoisingError(3, True, 5000)
    exact = metric.measure(EvalContext(law, plane()))
    assert exact.facts["law"] == "GMM2DLaw" and exact.figures["excess"].value == pytest.approx(0, abs=1e-9)
    off = metric.measure(EvalContext(Off(law, 0.1), plane(4000)))
    for row in off.curve:  # x_0 - x_0_hat = (x_0 - E x_0) + 0.1, with a cross term of mean 0
        variance = row["mse_x_0"] - 0.01
        if row["log_snr"] < 6:
            assert row["excess"] == pytest.approx(0.01 / variance, rel=0.15)
    assert off.figures["excess"].n == 5000 and off.figures["excess"].standard_error > 0


def test_the_tree_data_have_the_tree_law():
    """The errors of the oracle on these data are those on its own samples."""
    tree = Tree(2, None, 2, 10, 300, 10, 0)
    law = find_law(tree, COSINE)
    measured = DenoisingError(2, True, 0).measure(EvalContext(law, tree)).figures["mse_x_0"]
    x, y = law.sample(300, torch.Generator().manual_seed(1))
    own = Dataset(*[Split(x.float(), y)] * 3, class_names=law.class_names)
    expected = DenoisingError(2, True, 0).measure(EvalContext(law, own)).figures["mse_x_0"]
    assert measured.value == pytest.approx(expected.value, abs=5 * expected.standard_error)
    assert find_law(gaussian_data(3), COSINE) is None


def test_the_answers_of_an_exact_classifier_are_those_of_bayes_rule():
    """Two Gaussian classes: accuracy, log-loss and confidence against the posterior in NumPy."""
    mixture = two_classes()
    x, y = mixture.sample(300, numpy.random.default_rng(0))
    data = Dataset(*[Split(torch.from_numpy(x).float(), torch.from_numpy(y))] * 3, class_names=("a", "b"))
    oracle = GaussianMixture(mixture.weights, mixture.means, mixture.covariances, mixture.labels.tolist(), COSINE)
    metric, context = Classification([0.1, 1.0, 4.0], 15), EvalContext(oracle, data, batch_size=70)
    measured = metric.measure(context)
    eps = torch.cat([context.noise(first).normal(0.0, 0) for first in context.firsts]).double().numpy()
    prior = numpy.log([mixture.weights[mixture.labels == c].sum() for c in (0, 1)])
    for row in measured.curve:
        alpha, sigma = (float(s) for s in COSINE.scales(torch.tensor(-2 * math.log(row["noise_level"])).double()))
        x_t = alpha * x + sigma * eps
        joint = numpy.stack([mixture.log_density(x_t, alpha, sigma, numpy.full(300, c)) for c in (0, 1)], 1) + prior
        posterior = numpy.exp(joint) / numpy.exp(joint).sum(1, keepdims=True)
        right, nll = posterior.argmax(1) == y, -numpy.log(posterior[numpy.arange(300), y])
        assert row["accuracy"] == pytest.approx(right.mean(), abs=0.004)  # up to one example at the border, in float32
        assert row["nll"] == pytest.approx(nll.mean(), abs=1e-4)
        assert row["nll_se"] == pytest.approx(nll.std(ddof=1) / 300**0.5, abs=1e-4)
        assert row["ece"] == pytest.approx(written_out(posterior.max(1), right, 15), abs=0.01)
    assert measured.figures["accuracy"].value == measured.curve[0]["accuracy"]
    everywhere = numpy.mean([row["nll"] for row in measured.curve])
    assert measured.figures["nll_all_levels"].value == pytest.approx(everywhere)
    assert set(measured.details["accuracy_per_class"]) == {"a", "b"}


def written_out(confidence, right, bins: int) -> float:
    """The calibration error, bin by bin."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = ((m - 1) / bins < confidence) & (confidence <= m / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def test_the_calibration_error_is_the_sum_over_bins():
    rng = numpy.random.default_rng(0)
    confidence = numpy.concatenate([rng.uniform(0.1, 1, 500), [1.0, 0.2, 0.4, 1e-9]])
    for chance in (confidence, 0.7 * confidence):
        right = rng.uniform(size=len(confidence)) < chance
        found, error = calibration_error(torch.from_numpy(confidence), torch.from_numpy(right), 15, seed=0)
        assert found == pytest.approx(written_out(confidence, right, 15), rel=1e-12)
        assert 0.005 < error < 0.05
    assert calibration_error(torch.tensor([0.75] * 4), torch.tensor([1, 1, 1, 0]), 15, 0)[0] == 0


def test_figures_do_not_depend_on_the_batch_and_an_example_not_on_the_others():
    """Examples are drawn without replacement; the noise of example i does not depend on n."""
    law = GMM2DLaw(COSINE)
    metric = DenoisingError(4, True, 0)
    whole, parted = (metric.measure(EvalContext(law, plane(), n=50, batch_size=size)) for size in (50, 7))
    for name, figure in whole.figures.items():
        assert parted.figures[name][:3] == pytest.approx(figure[:3], rel=1e-5)
    few, many = EvalContext(law, plane(), n=20), EvalContext(law, plane())
    assert len(set(few.rows.tolist())) == 20 and few.rows.tolist() != list(range(20))
    picked = many.noise(0).normal(0.5, 0)[few.rows[few.rows < 256]]
    assert torch.equal(few.noise(0).normal(0.5, 0)[few.rows < 256], picked)
    assert not torch.equal(EvalContext(law, plane(), seed=1).noise(0).normal(0.5, 0), many.noise(0).normal(0.5, 0))


def test_a_mean_has_its_standard_error():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    figure = mean(values, "nats")
    assert figure == (4.0, pytest.approx(numpy.std(values.numpy(), ddof=1) / 2), 4, "nats", True)
    assert mean(values[:1], "nats").standard_error is None


def test_saved_parts_are_computed_once(tmp_path):
    law, calls = GMM2DLaw(COSINE), []

    def measure(folder) -> EvalContext:
        context = EvalContext(law, plane(), n=30, batch_size=10, parts=Parts(folder))
        for first in context.firsts:

            def compute():
                calls.append(first)
                x, _ = context.batch(first)
                return {"x_0": context.model(x, torch.tensor(0.5).double()).x_0.numpy()}

            assert context.parts.load_or_compute(f"{first}", compute)["x_0"].shape == (10, 2)
        return context

    first, second = measure(tmp_path / "parts"), measure(tmp_path / "parts")
    assert calls == [0, 10, 20] and first.evaluations == second.evaluations == 30
    assert (
        first.parts.restored.evaluations == 0 and second.parts.restored.evaluations == 30 and second.parts.seconds > 0
    )
    (tmp_path / "parts" / "10.npz").write_bytes(b"torn")
    with pytest.raises(MetricError, match="10.npz is damaged"):
        measure(tmp_path / "parts")
    second.parts.remove()
    assert not (tmp_path / "parts").exists()


class Only(Classifier):
    """A classifier that is not a denoiser."""

    num_classes, schedule = 4, COSINE


class Density(Metric):
    name, needs = "density", (LogDensity,)


UNLABELLED = Dataset(*[Split(torch.zeros(5, 2), torch.tensor([0, 1, -1, 2, 3]))] * 3, class_names=tuple("0123"))
REFUSED = {
    "no denoiser": (DenoisingError(3, True, 0), Only(), plane(), "metric=denoising needs a denoiser"),
    "no density": (Density(), Only(), plane(), "metric=density needs a log-density"),
    "no classifier": (
        Classification([1.0], 15),
        Off(GMM2DLaw(COSINE), 0),
        plane(),
        "metric=classification needs a classifier",
    ),
    "no labels": (Classification([1.0], 15), Only(), UNLABELLED, "needs labels"),
    "no classes": (Classification([1.0], 15), Only(), gaussian_data(5), "needs labels"),
}


@pytest.mark.parametrize("metric, model, data, sentence", REFUSED.values(), ids=REFUSED)
def test_a_metric_that_does_not_fit_the_model_raises(metric, model, data, sentence):
    with pytest.raises(ValueError, match=sentence):
        metric.check(EvalContext(model, data))


def test_a_model_that_never_dropped_labels_needs_them():
    law = GMM2DLaw(COSINE)
    law.has_null = False
    with pytest.raises(ValueError, match="metric.conditional=false"):
        DenoisingError(3, False, 0).check(EvalContext(law, plane()))
    with pytest.raises(ValueError, match="metric.conditional=true"):
        DenoisingError(3, True, 0).check(EvalContext(law, UNLABELLED))
    DenoisingError(3, True, 0).check(EvalContext(law, plane()))


@pytest.mark.parametrize(
    "changed, sentence",
    [
        ({"split": "tset"}, "split .*got 'tset'"),
        ({"n": 401}, "n .*1 to 400.*got 401"),
        ({"n": 0}, "n .*1 to 400"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_split_n_and_batch_size_out_of_range_raise(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        EvalContext(GMM2DLaw(COSINE), plane(), **changed)


def test_model_and_data_with_different_numbers_of_classes_raise():
    with pytest.raises(ValueError, match="1 classes.* 4"):
        EvalContext(GaussianMixture([1.0], [[0.0, 0.0]], 0.25, [0], COSINE), plane())


@pytest.mark.parametrize(
    "build, sentence",
    [
        (lambda: DenoisingError(0, True, 0), "levels .*got 0"),
        (lambda: DenoisingError(3, True, 4), "exact .*at least 10"),
        (lambda: Classification([], 15), "noise_levels"),
        (lambda: Classification([0.0, 1.0], 15), "noise_levels"),
        (lambda: Classification([2.0, 1.0], 15), "noise_levels"),
        (lambda: Classification([1.0, math.inf], 15), "noise_levels"),
        (lambda: Classification([math.nan], 15), "noise_levels"),
        (lambda: Classification([1.0], 0), "bins"),
    ],
)
def test_arguments_out_of_range_raise(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


def test_auto_chooses_a_metric_that_the_model_supports():
    """A classifier that is also a denoiser is measured as a denoiser."""
    classifier, denoiser = Classification([1.0], 15), DenoisingError(3, True, 0)
    auto = Auto(classifier, ExactDensity(UniformDequantization(), 1, None, 0, None), denoiser)
    assert auto.resolve(EvalContext(Only(), plane())) is classifier
    assert auto.resolve(EvalContext(GMM2DLaw(COSINE), plane())) is denoiser
    with pytest.raises(ValueError, match="needs labels"):
        auto.check(EvalContext(Only(), UNLABELLED))
