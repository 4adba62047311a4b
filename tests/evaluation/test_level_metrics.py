"""Metrics of a classifier of noise levels: closed forms for exact logits."""

import math

import pytest
import torch
from exact_levels import SCHEDULE, exact_levels

from diffguide.backbones import MLP
from diffguide.datasets import GMM2D, Dataset, Mixture, Split
from diffguide.evaluation.classification.level_metric import LevelAccuracy
from diffguide.evaluation.classification.metric import Classification
from diffguide.evaluation.denoising import DenoisingError, find_law
from diffguide.evaluation.likelihood.comparison import Likelihoods
from diffguide.evaluation.likelihood.density_error import DensityError
from diffguide.evaluation.likelihood.dequantization import DecoderDequantization, UniformDequantization
from diffguide.evaluation.likelihood.discrete_ode import LevelSteps
from diffguide.evaluation.likelihood.flow_ode import ExactTrace, FixedGrid
from diffguide.evaluation.likelihood.metrics import ELBO, ExactDensity, FlowODE
from diffguide.evaluation.metric import EvalContext
from diffguide.models.level_classifier import LevelClassifier
from diffguide.models.protocols import Prediction
from diffguide.oracles import GaussianMixture, GMM2DLaw
from diffguide.schedules import TRE

EXACT_DATA = TRE(math.inf, -10.0)


def plane(n: int = 200) -> GMM2D:
    return GMM2D(2, None, 4, 10, n, 20, 0)


def context(model, n: int = 200, **config) -> EvalContext:
    return EvalContext(model, plane(n), config=config)


def density(**changes) -> ExactDensity:
    options = dict(dequantization=UniformDequantization(), draws=2, conditional=False, quantization_levels=0)
    return ExactDensity(**options | changes)


def test_the_error_of_a_density_is_its_offset():
    exact = DensityError(4, 200, False).measure(context(exact_levels(12)))
    assert exact.figures["abs_error"].value < 1e-4 and exact.figures["abs_error_all_levels"].value < 1e-4
    assert abs(exact.figures["excess"].value) < 1e-6 and len(exact.curve) == 5
    off = DensityError(4, 200, False).measure(context(exact_levels(12, offset=-0.3)))
    assert off.figures["abs_error"].value == pytest.approx(0.3, abs=1e-4)
    assert off.curve[0]["error"] == pytest.approx(-0.3, abs=1e-4)
    assert off.figures["abs_error_all_levels"].value < 1e-4
    x, _ = GMM2DLaw(SCHEDULE).sample(100000, torch.Generator().manual_seed(5))
    entropy = -float(GMM2DLaw(SCHEDULE).log_density(x, None).mean())
    figure = exact.figures["entropy"]
    assert abs(figure.value - entropy) < 4 * figure.standard_error < 0.1


def test_the_excess_is_that_of_the_slope():
    """An error c of the score along one of two axes increases the error of eps by sigma^2 c^2 / 2."""
    found = DensityError(100, 50, False).measure(context(exact_levels(4, slope=0.5))).curve
    assert [row["time"] for row in found] == [0, 0.25, 0.5, 0.75, 1]
    law, t = GMM2DLaw(SCHEDULE), torch.tensor(0.5, dtype=torch.float64)
    alpha, sigma = SCHEDULE.alpha_sigma(t)
    rng = torch.Generator().manual_seed(0)
    x, eps = law.sample(20000, rng)[0], torch.randn(20000, 2, generator=rng, dtype=torch.float64)
    best = (law(alpha * x + sigma * eps, t).eps - eps).square().mean()
    assert found[2]["excess"] == pytest.approx(float(sigma**2 * 0.25 / 2 / best), rel=0.25)
    assert abs(found[4]["excess"]) < 1e-6


@pytest.mark.parametrize("schedule", [SCHEDULE, EXACT_DATA], ids=["finite", "exact data"])
def test_the_exact_density_is_that_of_the_law(schedule):
    data = plane()
    for conditional in (False, True):
        found = density(conditional=conditional).measure(context(exact_levels(6, schedule))).figures
        (figure,) = found.values()
        x, y = data.validation
        t = torch.tensor(0.0, dtype=torch.float64)
        alpha = float(schedule.alpha_sigma(t)[0])
        truth = GMM2DLaw(schedule).log_density(alpha * x.double(), t, y if conditional else None)
        assert figure.value == pytest.approx(-float(truth.mean()) / 2 - math.log(alpha), abs=1e-5)
        assert figure.unit == "nats/dim"


def test_the_start_of_a_likelihood_is_the_nearest_level():
    metric = density(log_snr_max=2.3)
    start = metric.start_log_snr(context(exact_levels(10)))
    levels = [float(SCHEDULE.log_snr(k / 10)) for k in range(11)]
    assert start == min(levels, key=lambda level: abs(float(SCHEDULE.t_of(level) - SCHEDULE.t_of(2.3))))
    (figure,) = metric.measure(context(exact_levels(10))).figures.values()
    alpha, t = math.sqrt(1 / (1 + math.exp(-start))), SCHEDULE.t_of(start)
    truth = GMM2DLaw(SCHEDULE).log_density(alpha * plane().validation.x.double(), t) / 2 + math.log(alpha)
    assert figure.value == pytest.approx(-float(truth.mean()), abs=1e-5)


def test_bound_and_ode_from_level_to_level_approach_the_law():
    """Bound and ODE of a model with exact logits are those of its law, up to the distance of the levels."""
    flow = FlowODE(ExactTrace(2), LevelSteps(), UniformDequantization(), 1, False, 0, None)
    bound = ELBO(8, None, 2, 2, 0, 0.001, False, 0, None)
    measured = Likelihoods(bound, flow, density()).measure(context(exact_levels(24), 4))
    fine, lowest = measured.figures, measured.facts["nll_elbo"]["lowest_of_curve"]["nll_elbo"]
    assert abs(fine["nll_ode_minus_exact"].value) < 0.01
    # the last step of the chain is long: a decoder before it has a better bound
    assert 0 < lowest - fine["nll_exact"].value < 1
    coarse = Likelihoods(None, flow, density()).measure(context(exact_levels(12), 4)).figures
    later = FlowODE(ExactTrace(2), LevelSteps(), UniformDequantization(), 1, False, 0, 2.3)
    part = Likelihoods(None, later, density(log_snr_max=2.3)).measure(context(exact_levels(12), 4)).figures
    assert abs(part["nll_ode_minus_exact"].value) < 0.02
    assert 2.5 < coarse["nll_ode_minus_exact"].value / fine["nll_ode_minus_exact"].value < 8


def test_levels_are_classified_as_by_bayes_rule():
    model = exact_levels(8, EXACT_DATA)
    found = LevelAccuracy(20, True, 9).measure(context(model, 400))
    law, rng = GMM2DLaw(EXACT_DATA), torch.Generator().manual_seed(0)
    costs, right, errors = [], [], []
    for k in range(10):  # new draws, with the posterior over levels of the oracle
        x, y = law.sample(2000, rng)
        eps = torch.randn(2000, 2, generator=rng, dtype=torch.float64)
        t = torch.tensor(min(k / 8, 1.0), dtype=torch.float64)
        alpha, sigma = EXACT_DATA.alpha_sigma(t) if k < 9 else (0.0, 1.0)
        x = alpha * x + sigma * eps
        joint = [law.log_density(x, torch.tensor(j / 8, dtype=torch.float64), y) for j in range(9)]
        joint = torch.stack([*joint, -0.5 * (x.square() + math.log(2 * math.pi)).sum(1)], 1)
        costs.append(-joint.log_softmax(1)[:, k])
        right.append((joint.argmax(1) == k).double())
        if 0 < k < 9:
            errors.append((law(x, t, y).eps - eps).square().mean())
    expected = {
        "cross_entropy": torch.cat(costs).mean(),
        "accuracy": torch.cat(right).mean(),
        "mse_eps": sum(errors) / 8,
    }
    for name, value in expected.items():
        figure = found.figures[name]
        assert abs(figure.value - float(value)) < 4 * figure.standard_error < 0.1, name
    assert found.facts["guessing"] == pytest.approx({"cross_entropy": math.log(10), "accuracy": 0.1})
    assert len(found.curve) == 9 and "mse_eps" not in found.curve[-1] or found.curve[-1]["level"] != 9
    assert found.figures["cross_entropy"].value < math.log(10)


def test_the_guessing_line_follows_the_frequencies_of_the_levels():
    """Levels with frequencies 1 : 2 : 1 : 4: accuracy 1/2, entropy 1.75 bits."""
    model = LevelClassifier(MLP(2, 4, 4, 8, 1, 4, 0.5, False), SCHEDULE, 2, True, [1, 2, 1, 4])
    found = LevelAccuracy(2, False, 4).measure(context(model, 20))
    lines = {panel.column: panel.reference[1] for panel in found.plots[0].panels}
    assert lines == pytest.approx({"cross_entropy": 1.75 * math.log(2), "accuracy": 0.5, "mse_eps": 1.0})


class Cut(Dataset):
    """Values -1, 0, 1 in the plane."""

    def __init__(self):
        x = torch.randint(-1, 2, (50, 2), generator=torch.Generator().manual_seed(0)).float()
        super().__init__(*[Split(x, torch.arange(50) % 4)] * 3, class_names=tuple("0123"))


def test_discrete_values_get_uniform_noise_as_in_training():
    """Without noise the model would get the grid of the data at small noise levels, which it never got in training."""
    seen = []

    class Looking(LevelClassifier):
        def logits(self, x, y=None):
            seen.append(x.detach())
            return super().logits(x, y)

    model = exact_levels(4, EXACT_DATA)
    model.__class__ = Looking
    LevelAccuracy(6, True, 3).measure(EvalContext(model, Cut(), config={"objective": {"quantization_levels": 3}}))
    whole = torch.cat(seen)
    assert not (whole == whole.round()).any()
    seen.clear()
    LevelAccuracy(6, True, 3).measure(EvalContext(model, Cut(), config={"objective": {"quantization_levels": 0}}))
    assert (torch.cat(seen) == torch.cat(seen).round()).all(1).float().mean() > 0.1  # the level without noise


def test_denoising_is_measured_at_the_levels_of_the_model():
    for schedule, last in ((SCHEDULE, 0), (EXACT_DATA, 1)):  # t = 0 without noise is skipped
        found = DenoisingError(15, True, 10).measure(context(exact_levels(3, schedule), 20))
        levels = [float(schedule.log_snr(k / 3)) for k in range(3, last - 1, -1)]
        assert [row["log_snr"] for row in found.curve] == pytest.approx(levels)
        assert found.figures["excess"].value == pytest.approx(0, abs=1e-6)
        assert f"{len(levels)} levels of the model" in found.facts["weighting"]


def test_classification_is_measured_at_the_nearest_levels_by_bayes_rule():
    model, levels = exact_levels(5), [0.1, 0.2, 0.3, 1.0, 100.0]
    found = Classification(levels, 5).measure(context(model, 120))
    own = [math.exp(-float(SCHEDULE.log_snr(k / 5)) / 2) for k in range(6)]
    nearest = []
    for level in levels:
        t = float(SCHEDULE.t_of(max(-2 * math.log(level), -10.0)))
        nearest.append(own[round(5 * t)])
    assert [row["noise_level"] for row in found.curve] == pytest.approx(nearest)
    expected = Classification(nearest, 5).measure(context(GMM2DLaw(SCHEDULE), 120)) if len(set(nearest)) == 5 else None
    whole = Classification(sorted(set(nearest)), 5).measure(context(GMM2DLaw(SCHEDULE), 120))
    assert found.figures["nll"].value == pytest.approx((expected or whole).figures["nll"].value, abs=1e-5)
    assert found.curve[-1]["nll"] == pytest.approx(whole.curve[-1]["nll"], abs=1e-5)
    assert 0 < found.facts["seconds_per_image_and_level"] < 1


def test_a_configured_mixture_has_its_law_and_moments():
    numbers = {
        "weights": [3.0, 1.0],
        "means": [[0.5, -0.2, 0.1], [-0.4, 0.3, 0.0]],
        "covariances": [
            [[0.2, 0.1, 0.0], [0.1, 0.3, 0.0], [0.0, 0.0, 0.05]],
            [[0.1, 0.0, 0.0], [0.0, 0.02, 0.0], [0.0, 0.0, 0.4]],
        ],
        "labels": [1, 0],
    }
    facts = {"channels": 3, "size": None, "num_classes": 2, "train": 20000, "validation": 5, "test": 5, "seed": 1}
    data = Mixture(**numbers, **facts)
    x, y = data.train
    for row, (mean, covariance, label) in enumerate(zip(*list(numbers.values())[1:])):
        own = x[y == label].double()
        assert abs(len(own) / 20000 - [0.75, 0.25][row]) < 0.02
        torch.testing.assert_close(own.mean(0), torch.tensor(mean).double(), atol=0.03, rtol=0)
        torch.testing.assert_close(own.T.cov(), torch.tensor(covariance).double(), atol=0.03, rtol=0)
    law = find_law(data, SCHEDULE)
    assert isinstance(law, GaussianMixture)
    truth = GaussianMixture(*(torch.tensor(part) for part in numbers.values()), SCHEDULE)
    points = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(law.log_density(points, None), truth.log_density(points, None))


MIXTURE = {"weights": [3.0, 1.0], "means": [[0.5], [-0.4]], "covariances": [[[0.2]], [[0.1]]], "labels": [1, 0]}


@pytest.mark.parametrize("change", [
    {"covariances": [[[-0.2]], [[0.1]]]}, {"weights": [1.0, -1.0]}, {"labels": [0, 2]}, {"means": [[0.0, 0.0], [1.0]]},
    {"means": [[0.0, 0.0], [0.0, 1.0]], "covariances": [[[0.2, 0.1], [0.0, 0.3]]] * 2},
])  # fmt: skip
def test_a_mixture_without_a_law_raises(change):
    facts = {"channels": len(change.get("means", [[0.0]])[0]), "num_classes": 2, "train": 5, "validation": 5, "test": 5}
    with pytest.raises(ValueError, match="K symmetric positive"):
        Mixture(**MIXTURE | change, **facts)


def test_a_mixture_with_another_number_of_classes_raises():
    with pytest.raises(ValueError, match="dataset.num_classes is 3"):
        Mixture(**MIXTURE, channels=1, num_classes=3, train=5, validation=5, test=5)


class Smooth(GMM2DLaw):
    """An oracle in continuous time whose density is known up to a constant."""

    normalized = False

    def __call__(self, x_t, t, y=None) -> Prediction:
        return super().__call__(x_t, t, y)


def discrete(model, **objective) -> EvalContext:
    return EvalContext(model, Cut(), config={"objective": objective})


def flow(solver) -> FlowODE:
    return FlowODE(ExactTrace(2), solver, UniformDequantization(), 1, False, 0, None)


def decoded() -> ExactDensity:
    return density(dequantization=DecoderDequantization(), quantization_levels=3)


LEVELS, CONTINUOUS, CLEAN = exact_levels(4), GMM2DLaw(SCHEDULE), exact_levels(4, EXACT_DATA)
UNIFORM = "metric/dequantization=uniform"
REFUSED = {
    "ode between": (flow(FixedGrid(2)), context(LEVELS), "metric/solver=levels"),
    "ode of levels": (flow(LevelSteps()), context(CONTINUOUS), "metric/solver=fixed_grid"),
    "no classes": (Classification([1.0], 5), context(exact_levels(4, classes=0)), "needs a model with classes"),
    "no levels": (
        LevelAccuracy(2, True, 2),
        context(CONTINUOUS),
        "objective=cdm",
    ),
    "no law": (DensityError(2, 10, True), discrete(LEVELS), "known distribution"),
    "up to a constant": (DensityError(2, 10, True), context(Smooth(SCHEDULE)), "up to a constant only"),
    "values that were spread": (decoded(), discrete(LEVELS, quantization_levels=3), f"{UNIFORM}, .*log_snr_max"),
    "no noise": (decoded(), discrete(CLEAN), f"t = 0 .*{UNIFORM}"),
    "bound of exact data": (ELBO(8, None, 2, 2, 0, 0.001, False, 3, None), discrete(CLEAN), "finite ends"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_metric_that_does_not_fit_the_model_raises(case):
    metric, asked, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        metric.check(asked)


@pytest.mark.parametrize(
    "make", [lambda: LevelAccuracy(0, True, 2), lambda: DensityError(0, 10, True), lambda: DensityError(1, 9, True)]
)
def test_numbers_below_the_minimum_raise(make):
    with pytest.raises(ValueError, match="draws|levels|exact"):
        make()
