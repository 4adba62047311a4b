"""Units, dequantisation, and the metrics elbo, ode, log_density and likelihood on a context."""

import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from diffguide.config.build import config_dir
from diffguide.datasets import GMM2D, Digits
from diffguide.datasets.base import Dataset, Split
from diffguide.evaluation.likelihood.comparison import Likelihoods
from diffguide.evaluation.likelihood.dequantization import (
    DecoderDequantization,
    UniformDequantization,
    bits_offset,
    estimate_likelihood,
)
from diffguide.evaluation.likelihood.elbo import elbo, pieces
from diffguide.evaluation.likelihood.flow_ode import ExactTrace, FixedGrid, Hutchinson, flow_log_density
from diffguide.evaluation.likelihood.metrics import ELBO, ExactDensity, FlowODE
from diffguide.evaluation.metric import EvalContext
from diffguide.models.decoders import Discretized
from diffguide.models.protocols import DenoiserWrapper
from diffguide.objectives.variational import Variational
from diffguide.oracles import Empirical, GaussianMixture, GMM2DLaw
from diffguide.randomness import Noise
from diffguide.schedules import Cosine, Flow

SCHEDULE = Cosine(12.0, -10.0)


def bound(**changes) -> ELBO:
    return ELBO(**dict(levels=8, draws=4, pilot=16, quantization_levels=0) | changes)


def flow(**changes) -> FlowODE:
    return FlowODE(**dict(trace=ExactTrace(2), solver=FixedGrid(16), draws=2, quantization_levels=0) | changes)


def exact(**changes) -> ExactDensity:
    return ExactDensity(**dict(draws=2, quantization_levels=0) | changes)


@pytest.fixture(scope="module")
def plane() -> GMM2D:
    return GMM2D(2, None, 4, train=500, validation=30, test=10, seed=0)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(1, 8, 10)


# units


def test_the_offset_of_k_values_is_log2_of_half_of_k_minus_1():
    assert bits_offset(17) == 3 and bits_offset(0) == 0
    assert bits_offset(256) == pytest.approx(6.9944, abs=1e-4) == math.log2(127.5)


def test_figures_are_means_in_bits_with_standard_errors():
    """-log p of 4 examples in 2 dimensions: means, bits, standard errors of the mean."""
    parts = {"density": torch.tensor([1.0, 2.0, 3.0, 6.0]), "rest": torch.tensor([1.0, 0.0, 1.0, 0.0])}
    found = estimate_likelihood(parts, 2, torch.full((4,), 0.4))
    nats = torch.tensor([1.0, 1.0, 2.0, 3.0])
    assert found.nats_per_dim == pytest.approx(1.75) and found.bits_per_dim == pytest.approx(1.75 / math.log(2))
    assert found.standard_error == pytest.approx(float(nats.std()) / 2 / math.log(2))
    assert found.noise == pytest.approx(0.4 / 2 / 2 / math.log(2))  # 0.4 nats per example, 4 examples, 2 dimensions
    assert found.parts == {"density": 1.5, "rest": 0.25} and found.n == 4
    one = estimate_likelihood({"density": torch.tensor([1.0])}, 2, None)
    assert one.noise is None and one.standard_error is None


def test_a_gaussian_of_digits_has_its_known_bits(digits):
    """The full-covariance Gaussian under uniform dequantisation has 2.967 bits/dim on the test block."""
    noise, test = Noise(range(447), (1, 8, 8), SCHEDULE), Noise(range(1000, 2000), (1, 8, 8), SCHEDULE)
    train = UniformDequantization()(digits.train.x, 17, 12.0, test, 0)[0].flatten(1).double()
    point, correction = UniformDequantization()(digits.test.x, 17, 12.0, noise, 0)
    assert (point - digits.test.x).abs().max() <= 1 / 16 and point.max() > 1  # the outer bins extend beyond [-1, 1]
    law = GaussianMixture([1.0], [train.mean(0).tolist()], [train.T.cov(correction=0).tolist()], [0], SCHEDULE)
    parts = {"density": -law.log_density(point.flatten(1), None), "dequantisation": -correction}
    assert estimate_likelihood(parts, 64, None).bits_per_dim == pytest.approx(2.967, abs=0.02)
    assert estimate_likelihood({"dequantisation": -correction}, 64, None).bits_per_dim == pytest.approx(3)
    flat = -64 * math.log(8 / 17)  # a density of 8/17 on each of the 17 bins of width 1/8
    parts["density"] = torch.full((447,), flat).double()
    assert estimate_likelihood(parts, 64, None).bits_per_dim == pytest.approx(math.log2(17))


def test_decoded_points_have_the_densities_of_the_paper():
    """x + s_0 eps, with the log-densities of decoder and noise by the formulas of the paper."""
    x = torch.tensor([[-1.0, 0.5], [0.0, 1.0]]).double()
    noise = Noise([3, 4], (2,), SCHEDULE, dtype=torch.float64)
    point, correction = DecoderDequantization()(x, 5, 4.0, noise, 1)
    s = math.exp(-2)
    eps = (point - x) / s
    grid = torch.linspace(-1, 1, 5).double()
    normal = torch.distributions.Normal(point[..., None], s)
    decoded = normal.log_prob(x[..., None])[..., 0] - normal.log_prob(grid).logsumexp(-1)
    expected = (decoded - torch.distributions.Normal(0, 1).log_prob(eps) + math.log(s)).sum(1)
    torch.testing.assert_close(correction, expected, rtol=0, atol=1e-10)
    assert eps.abs().max() < 5 and not torch.equal(DecoderDequantization()(x, 5, 4.0, noise, 2)[0], point)


# metrics


def test_bound_ode_and_density_of_continuous_data_equal_the_functions_of_the_library(plane):
    """On the exact law of the data, in nats/dim."""
    context = EvalContext(GMM2DLaw(SCHEDULE), plane, n=20, seed=3, batch_size=8)
    metric = Likelihoods(bound(conditional=False), flow(), exact())
    metric.check(context)
    measured = metric.measure(context)
    names = ["nll_elbo", "nll_ode_given_class", "nll_exact_given_class"]
    assert list(measured.figures) == [*names, "nll_ode_given_class_minus_exact_given_class"]
    gap = measured.figures.pop("nll_ode_given_class_minus_exact_given_class")
    one, other = (measured.figures[name].value for name in names[1:])
    assert gap.value == pytest.approx(one - other, abs=1e-9) and gap.standard_error < 0.02 and gap.unit == "nats/dim"
    x, y = plane.validation.x[context.rows], plane.validation.y[context.rows]
    truth = -GMM2DLaw(SCHEDULE).log_density(x.double(), None, y) / 2
    figure = measured.figures["nll_exact_given_class"]
    assert figure.value == pytest.approx(float(truth.mean()), abs=2e-3) and figure.n == 20 and figure.unit == "nats/dim"
    assert figure.standard_error == pytest.approx(float(truth.std()) / math.sqrt(20), abs=2e-3)
    found = flow_log_density(GMM2DLaw(SCHEDULE), x, y, ExactTrace(2), FixedGrid(16), None)
    assert measured.figures["nll_ode_given_class"].value == pytest.approx(float(-found.mean()) / 2, abs=1e-5)
    facts = measured.facts["nll_elbo"]
    assert set(facts["parts_nats_per_dim"]) == {"prior", "reconstruction", "diffusion"}
    assert sum(facts["parts_nats_per_dim"].values()) == pytest.approx(measured.figures["nll_elbo"].value)
    assert facts["evaluations_per_example"] == 16 and facts["offset_bits_per_dim"] == 0
    assert not facts["given_class"] and measured.facts["nll_ode_given_class"]["given_class"]
    # 16 evaluations of 20 examples, 16 of 16 pilot examples, and 64 of the ODE, which has one draw since nothing is random
    assert context.evaluations == 20 * 16 + 16 * 16 + 20 * 64


def test_the_batch_size_does_not_change_the_figures(plane):
    values = []
    for size in (30, 7):
        context = EvalContext(GMM2DLaw(SCHEDULE), plane, batch_size=size)
        metric = Likelihoods(bound(levels=24), flow(trace=Hutchinson(1)), None)
        measured = metric.measure(context)
        values.append([figure.value for figure in measured.figures.values()])
        elbo_, ode, gap = measured.figures.values()
        assert gap.value == pytest.approx(elbo_.value - ode.value) and 0 < gap.standard_error < elbo_.standard_error
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_the_control_variate_lowers_the_error_and_keeps_the_mean(plane):
    """The stated drawing error is smaller with a pilot run."""
    errors, values = [], []
    for pilot in (0, 16):
        context = EvalContext(GMM2DLaw(SCHEDULE), plane)
        measured = bound(pilot=pilot, levels=24).measure(context)
        errors.append(measured.facts["nll_elbo_given_class"]["drawing_error_bits_per_dim"])
        values.append(measured.figures["nll_elbo_given_class"].value)
    assert errors[1] < 0.7 * errors[0] and abs(values[1] - values[0]) < 4 * errors[0]


@pytest.fixture(scope="module")
def smoothed(digits) -> Empirical:
    """The exact denoiser of some training digits, with so much noise that validation digits are likely."""
    return Empirical(digits.train.x[:100], digits.train.y[:100], SCHEDULE, 0.5)


def test_bound_and_ode_agree_on_discrete_data(digits, smoothed):
    """Bound and ODE through the discretised decoder, uniform dequantisation with its 3 bits, in bits/dim; K from the run."""
    config = {"dataset": {"quantization_levels": 17}}
    context = EvalContext(smoothed, digits, n=6, config=config)
    metrics = {
        "elbo": bound(quantization_levels=None, conditional=False, pilot=0, levels=48),
        "ode": flow(quantization_levels=None, conditional=False, trace=Hutchinson(8), solver=FixedGrid(24)),
        "exact": exact(quantization_levels=17, conditional=False, dequantization=UniformDequantization()),
        "decoded": exact(quantization_levels=17, conditional=False),
    }
    figures, facts = {}, {}
    for name, metric in metrics.items():
        metric.check(context)
        measured = metric.measure(context)
        (figures[name],), (facts[name],) = measured.figures.values(), measured.facts.values()
        assert figures[name].unit == "bits/dim" and facts[name]["values"] == 17
    assert facts["elbo"]["dequantisation"] == "discretised decoder" and facts["ode"]["draws"] == 2
    assert facts["exact"]["offset_bits_per_dim"] == 3 and facts["ode"]["offset_bits_per_dim"] == 0
    x, noise = digits.validation.x[context.rows], context.noise(0)
    found = elbo(smoothed, x, None, Discretized(17), noise, pieces(SCHEDULE, 48), 2, 4, None)
    assert figures["elbo"].value == pytest.approx(float(found.nats.mean()) / 64 / math.log(2))
    for name in ("elbo", "ode"):
        error = facts[name]["drawing_error_bits_per_dim"]
        assert abs(figures[name].value - figures["decoded"].value) < 4 * error + 0.01 and error < 0.1
    # the law is smooth: uniform noise fills the bins of the grid, while the noise of z_0, 0.0025, does not
    bins = math.log2(2 / 16) - math.log2(math.exp(-6) * math.sqrt(2 * math.pi * math.e))
    assert figures["decoded"].value - figures["exact"].value == pytest.approx(bins, abs=0.05)
    later = exact(quantization_levels=17, conditional=False, log_snr_max=6.0).measure(context).figures["nll_exact"]
    assert -0.4 < later.value - figures["exact"].value < 0.05  # noise of 0.05 fills the bins


def test_each_row_of_the_curve_is_the_bound_that_starts_there(digits, smoothed):
    """The last row is the figure; another row is the figure of a metric with that log_snr_max."""
    context = EvalContext(smoothed, digits, n=4, config={"dataset": {"quantization_levels": 17}})
    measured = bound(quantization_levels=None, pilot=0, levels=44, draws=2).measure(context)
    curve, column = measured.curve, "nll_elbo_given_class"
    assert len(curve) == 22 and [row["log_snr_max"] for row in curve[-2:]] == pytest.approx([11.0, 12.0])
    assert curve[-1][column] == pytest.approx(measured.figures[column].value)
    assert curve[-1][f"{column}_se"] == pytest.approx(measured.figures[column].standard_error)
    other = bound(quantization_levels=None, pilot=0, levels=32, draws=2, log_snr_max=6.0).measure(context)
    earlier = other.figures[column].value
    row = next(row for row in curve if row["log_snr_max"] == pytest.approx(6.0))
    assert row[column] == pytest.approx(earlier, abs=0.2) and earlier < measured.figures[column].value - 2
    assert measured.plots[0].panels[0].column == column
    assert measured.facts[column]["lowest_of_curve"] == min(curve, key=lambda row: row[column]) != curve[-1]
    assert Likelihoods(bound(), None, None).measure(EvalContext(smoothed, digits, n=4)).curve


class Guided(DenoiserWrapper):
    """Has another distribution than the model that it wraps."""


def error(metric, model, data, **options) -> str:
    with pytest.raises(ValueError) as caught:
        metric.check(EvalContext(model, data, **options))
    return str(caught.value)


def test_guidance_has_no_likelihood(plane):
    assert "guidance (Guided)" in error(bound(), Guided(GMM2DLaw(SCHEDULE)), plane)


def test_a_likelihood_needs_finite_ends_and_a_start_within_them(plane):
    assert "finite ends" in error(bound(), GMM2DLaw(Flow(math.inf, -math.inf)), plane)
    assert "finite ends" in error(flow(), GMM2DLaw(Flow(12.0, -math.inf)), plane)
    assert "finite ends" in error(exact(), GMM2DLaw(Flow(math.inf, -12.0)), plane)
    assert "-10 to 12, got 13" in error(flow(log_snr_max=13.0), GMM2DLaw(SCHEDULE), plane)
    assert "remove metric.log_snr_max" in error(bound(steps=4, log_snr_max=3.0), GMM2DLaw(SCHEDULE), plane)


def test_an_ode_with_a_fixed_grid_needs_continuous_time(plane):
    discrete = GMM2DLaw(SCHEDULE)
    discrete.levels = torch.linspace(1, 0.1, 10, dtype=torch.float64)
    assert "discrete noise levels" in error(flow(), discrete, plane)
    assert "discrete noise levels" in error(Likelihoods(bound(), flow(), exact()), discrete, plane)
    assert bound().measure(EvalContext(discrete, plane, n=4)).facts["nll_elbo_given_class"]["levels"] == 10


def test_a_conditional_likelihood_needs_classes_and_labels_and_an_unconditional_one_dropped_labels(plane):
    law, never = GMM2DLaw(SCHEDULE), GMM2DLaw(SCHEDULE)
    never.has_null = False
    assert "metric.conditional=true" in error(bound(conditional=False), never, plane)
    bound().check(EvalContext(never, plane))
    unlabelled = Dataset(plane.train, plane.validation._replace(y=torch.full((30,), -1)), plane.test, plane.class_names)
    assert "without a label" in error(bound(), law, unlabelled)
    bound(conditional=False).check(EvalContext(law, unlabelled))
    plain = GaussianMixture([1.0], [[0.0, 0.0]], 1.0, [0], SCHEDULE)
    plain.num_classes = 0
    assert "needs a model with classes" in error(bound(conditional=True), plain, plane)


def test_a_density_up_to_a_constant_is_skipped_or_an_error(plane):
    law = GMM2DLaw(SCHEDULE)
    law.normalized = False
    assert "up to a constant" in error(exact(), law, plane)
    assert "metric.elbo and metric.ode are null" in error(Likelihoods(None, None, exact()), law, plane)
    measured = Likelihoods(bound(), None, exact()).measure(EvalContext(law, plane, n=4))
    assert list(measured.figures) == ["nll_elbo_given_class"]


def test_images_need_known_values_and_a_cheap_trace(plane, digits):
    bound(quantization_levels=None).check(EvalContext(GMM2DLaw(SCHEDULE), plane))  # vectors are continuous
    grey = Split(digits.train.x + 0.01, digits.train.y)
    model, shifted = Empirical(grey.x, grey.y, SCHEDULE, 0.1), Dataset(grey, grey, grey, digits.class_names)
    assert "set metric.quantization_levels (17" in error(bound(quantization_levels=None), model, digits)
    assert "not of 17 values" in error(exact(quantization_levels=17), model, shifted, n=3)
    assert "metric/trace=hutchinson" in error(flow(), model, digits)


def test_the_bound_has_the_steps_of_the_training_unless_the_metric_sets_them(plane):
    """0 steps of the metric are continuous time."""
    node = {"_target_": f"{Variational.__module__}.{Variational.__qualname__}", "steps": 5}

    def measured(config, **changes):
        context = EvalContext(GMM2DLaw(SCHEDULE), plane, n=3, config=config)
        bound(pilot=0, **changes).check(context)
        found = bound(pilot=0, **changes).measure(context)
        facts = found.facts["nll_elbo_given_class"]
        assert context.evaluations == 3 * 2 * facts["levels"]
        return found.figures["nll_elbo_given_class"].value, facts["steps"], facts["steps_of"], facts["levels"]

    trained = {"objective": node}
    assert measured(trained)[1:] == (5, "the model's objective", 5)
    assert measured(trained) == (measured({}, steps=5)[0], 5, "the model's objective", 5)
    assert measured(trained, steps=3)[1:] == (3, "the metric", 3)
    assert measured(trained, steps=0) == measured({}) == measured({"objective": node | {"steps": None}})
    assert measured({"objective": {"_target_": "mine", "steps": 5}})[1:] == (None, "the metric", 8)
    measured(trained, steps=0, log_snr_max=3.0)
    with pytest.raises(ValueError, match="metric.log_snr_max.*metric.steps=0"):
        measured(trained, log_snr_max=3.0)


def test_estimates_with_different_starts_are_not_subtracted(plane):
    """Their densities are of latents with different noise."""
    for start, count in ((None, 6), (12.0, 6), (5.0, 4)):
        metric = Likelihoods(bound(log_snr_max=start), flow(), exact())
        measured = metric.measure(EvalContext(GMM2DLaw(SCHEDULE), plane, n=4))
        assert len(measured.figures) == count, start
    assert "nll_ode_given_class_minus_exact_given_class" in measured.figures


@pytest.mark.parametrize("key, value", dict(levels=0, steps=-1, replicates=1, draws=1, pilot=-1, floor=0.0).items())
def test_options_of_the_bound_out_of_range_raise(key, value):
    with pytest.raises(ValueError, match=f"{key} .*got {value}"):
        bound(**{key: value})


def test_likelihoods_without_an_estimate_a_draw_or_two_values_raise():
    with pytest.raises(ValueError, match="quantization_levels .* got 1"):
        bound(quantization_levels=1)
    with pytest.raises(ValueError, match="draws .* got 0"):
        flow(draws=0)
    with pytest.raises(ValueError, match="metric.elbo, metric.ode, metric.exact"):
        Likelihoods(None, None, None)


def test_saved_parts_are_not_evaluated_again(plane, tmp_path):
    """A second measurement over saved parts evaluates nothing, not even the pilot, and has the same figures."""
    from diffguide.evaluation.parts import Parts

    first, second = (
        EvalContext(GMM2DLaw(SCHEDULE), plane, batch_size=8, parts=Parts(tmp_path / "parts")) for _ in range(2)
    )
    one, other = bound().measure(first), bound().measure(second)
    assert one.figures == other.figures and second.tally.evaluations == 0 < first.tally.evaluations


def test_the_files_compose_bound_ode_and_density():
    """configs/metric: the default composes bound, ODE and exact density, with their nested choices."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = compose("metric/likelihood", ["metric/trace@metric.ode.trace=exact", "metric.elbo.levels=7"]).metric
        metric = instantiate(config, _convert_="all")
        alone = instantiate(compose("metric/ode", ["metric/solver=adaptive", "metric/dequantization=uniform"]).metric)
    elbo_, ode, density = metric.members
    assert elbo_.levels == 7 and elbo_.steps is None
    assert isinstance(ode.trace, ExactTrace) and isinstance(density, ExactDensity)
    assert isinstance(alone.dequantization, UniformDequantization) and type(alone.solver).__name__ == "Adaptive"
