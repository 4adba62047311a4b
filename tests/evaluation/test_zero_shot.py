"""Zero-shot classification: Bayes' rule for exact denoisers; effects of budget, seeds and chunks."""

import numpy as np
import pytest
import torch
from closed_forms import Mixture, two_classes
from exact_models import oracle
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from diffguide.config.build import config_dir
from diffguide.evaluation.classification.weighting import Bell, Even, Exact, Piecewise, UniformTimeWeighting
from diffguide.evaluation.classification.zero_shot import Budget, ZeroShot
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.protocols import Denoiser, DenoiserWrapper, Prediction
from diffguide.schedules import Cosine, Flow

SCHEDULE = Cosine(14.0, -14.0)


def classifier(
    weighting=None, spacing=None, evaluations=50, stages=(), margin=None, temperature=1.0, chunk=2000
) -> ZeroShot:
    budget = Budget(evaluations, stages, margin)
    return ZeroShot(weighting or Exact(), spacing or Bell(0.0, 2.5), budget, temperature, chunk)


def examples(law: Mixture, n: int, scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(law.sample(n, np.random.default_rng(0))[0] * scale)


def four_classes() -> Mixture:
    means = np.random.default_rng(1).normal(size=(4, 3)) * 2
    return Mixture([0.1, 0.2, 0.3, 0.4], means, [0.2 * np.eye(3)] * 4, [0, 1, 2, 3])


def log_ratio(law: Mixture, x: torch.Tensor) -> np.ndarray:
    """log p(x | 0) - log p(x | 1) of clean data."""
    one, other = (law.log_density(x.numpy(), 1.0, 0.0, np.full(len(x), label)) for label in (0, 1))
    return one - other


@pytest.mark.parametrize("schedule", [SCHEDULE, Flow(14.0, -14.0)], ids=["cosine", "flow"])
@pytest.mark.parametrize("spacing", [Even(), Bell(0.0, 2.5)], ids=["even", "bell"])
def test_exact_weights_are_bayes_rule(schedule, spacing):
    """For an exact denoiser the difference of the bounds of two classes is that of their log-likelihoods."""
    law = two_classes()
    x = examples(law, 60, 0.6)  # closer together, so that many are ambiguous
    answers = classifier(spacing=spacing, evaluations=600)(oracle(law, schedule), x, range(60))
    found = (answers.log_prob[:, 0] - answers.log_prob[:, 1]).numpy()
    error = found - log_ratio(law, x)
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(60) + 0.02
    assert error.std() < 0.8 and np.corrcoef(found, log_ratio(law, x))[0, 1] > 0.98


def test_error_falls_with_evaluations():
    law = two_classes()
    x = examples(law, 60, 0.6)
    errors = []
    for evaluations in (25, 400):
        log_prob = classifier(evaluations=evaluations)(oracle(law, SCHEDULE), x, range(60)).log_prob.numpy()
        errors.append((log_prob[:, 0] - log_prob[:, 1] - log_ratio(law, x)).std())
    assert errors[1] < errors[0] / 3  # independent draws would have 1/4


def test_a_bell_estimates_the_same_with_less_noise():
    law = two_classes()
    x = examples(law, 60, 0.6)
    errors = []
    for spacing in (Even(), Bell(0.0, 3.0)):
        log_prob = classifier(spacing=spacing, evaluations=150)(oracle(law, SCHEDULE), x, range(60)).log_prob.numpy()
        errors.append((log_prob[:, 0] - log_prob[:, 1] - log_ratio(law, x)).std())
    assert errors[1] < 0.9 * errors[0]


class Listening(DenoiserWrapper):
    """Records the log-SNRs at which it is evaluated."""

    def __init__(self, denoiser):
        super().__init__(denoiser)
        self.asked = []

    def __call__(self, x_t, t, y=None):
        self.asked.append(self.schedule.log_snr(t))
        return self.denoiser(x_t, t, y)


@pytest.mark.parametrize("evaluations", [10, 37, 200])
def test_log_snrs_are_spread_evenly_after_any_number_of_evaluations(evaluations):
    """The same for every class; the largest gap is at most 2.7 times the mean (4 to 6 for independent draws)."""
    model = Listening(oracle(four_classes(), SCHEDULE))
    classifier(spacing=Even(), evaluations=evaluations)(model, examples(four_classes(), 1), [5])
    found, counts = torch.cat(model.asked).sort().values.round(decimals=6).unique(return_counts=True)
    assert counts.tolist() == [4] * evaluations
    ends = torch.tensor([-14.0, 14.0], dtype=torch.float64)
    assert float(torch.cat([ends[:1], found, ends[1:]]).diff().max()) < 2.7 * 28 / evaluations


def test_uniform_time_is_another_classifier():
    """It depends on the schedule: the cosine schedule has larger weights in the middle."""
    law = two_classes()
    x = examples(law, 40, 0.6)
    answers = classifier(UniformTimeWeighting(), evaluations=300)(oracle(law, SCHEDULE), x, range(40))
    assert np.abs(answers.log_prob[:, 0].sub(answers.log_prob[:, 1]).numpy() - log_ratio(law, x)).mean() > 5


def test_prior_and_temperature_enter_the_softmax():
    law, x = four_classes(), examples(four_classes(), 8)
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4])
    plain, cold = (classifier(temperature=t)(oracle(law, SCHEDULE), x, range(8)).log_prob for t in (1.0, 5.0))
    weighed = classifier(temperature=5.0)(oracle(law, SCHEDULE), x, range(8), prior).log_prob
    torch.testing.assert_close((plain / 5).log_softmax(1), cold)
    torch.testing.assert_close((plain / 5 + prior.log()).log_softmax(1), weighed)


def test_identical_classes_get_identical_scores():
    """Every class of an image gets the same noise at the same levels."""
    law = Mixture([0.5, 0.2, 0.3], [[1.0, 0.0]] * 2 + [[-1.0, 0.0]], [0.3 * np.eye(2)] * 3, [0, 1, 2])
    log_prob = classifier(evaluations=3)(oracle(law, SCHEDULE), examples(law, 10), range(10)).log_prob
    assert torch.equal(log_prob[:, 0], log_prob[:, 1])
    assert bool((log_prob[:, 0] != log_prob[:, 2]).all())


def test_the_answer_for_an_image_does_not_depend_on_its_batch():
    law = four_classes()
    x, seeds = examples(law, 9), [17, 3, 8, 0, 5, 6, 2, 99, 1]
    ask = classifier(evaluations=30, stages=[[5, 3], [12, 2]])
    together = ask(oracle(law, SCHEDULE), x, seeds)
    for row in (0, 4, 8):
        alone = ask(oracle(law, SCHEDULE), x[row : row + 1], seeds[row : row + 1])
        torch.testing.assert_close(alone.log_prob[0], together.log_prob[row])
    other = ask(oracle(law, SCHEDULE), x, range(100, 109))
    assert not torch.allclose(other.log_prob, together.log_prob)


@pytest.mark.parametrize("chunk", [1, 3, 17, 1000])
def test_the_chunk_size_does_not_change_the_answers(chunk):
    law, x = four_classes(), examples(four_classes(), 7)
    stages = [[4, 3], [9, 2]]
    whole = classifier(evaluations=20, stages=stages, margin=3.0)(oracle(law, SCHEDULE), x, range(7))
    parts = classifier(evaluations=20, stages=stages, margin=3.0, chunk=chunk)(oracle(law, SCHEDULE), x, range(7))
    for ours, theirs in zip(parts, whole):
        torch.testing.assert_close(ours, theirs)


def test_elimination_answers_as_the_full_evaluation_within_its_budget():
    law, x = four_classes(), examples(four_classes(), 50)
    counter = EvaluationCounter(oracle(law, SCHEDULE))
    ask = classifier(evaluations=80, stages=[[10, 3], [30, 2]])
    few = ask(counter, x, range(50))
    assert counter.tally.evaluations == 50 * (4 * 10 + 3 * 20 + 2 * 50) == 50 * 4 * ask.budget.max_evaluations(4)
    assert few.evaluations.tolist() == [200] * 50
    full = classifier(evaluations=80)(oracle(law, SCHEDULE), x, range(50))
    assert torch.equal(few.log_prob.argmax(1), full.log_prob.argmax(1))
    assert Budget(10, [[2, 5]], None).max_evaluations(3) == 10  # a stage may keep more classes than the model has
    exact = oracle(law, SCHEDULE).log_prob(x, None).argmax(1)
    assert (few.log_prob.argmax(1) == exact).double().mean() > 0.95


def test_the_leaders_are_those_of_the_full_evaluation():
    """A dropped class keeps its distance from the leader of its stage; the others have all evaluations."""
    law, x = four_classes(), examples(four_classes(), 20)
    few = classifier(evaluations=40, stages=[[10, 2]])(oracle(law, SCHEDULE), x, range(20)).log_prob
    early, late = (classifier(evaluations=n)(oracle(law, SCHEDULE), x, range(20)).log_prob for n in (10, 40))
    order = early.argsort(1, descending=True)
    gap = lambda log_prob, a, b: log_prob.gather(1, a[:, None]) - log_prob.gather(1, b[:, None])  # noqa: E731
    torch.testing.assert_close(gap(few, order[:, 0], order[:, 1]), gap(late, order[:, 0], order[:, 1]))
    torch.testing.assert_close(gap(few, order[:, 0], order[:, 3]), gap(early, order[:, 0], order[:, 3]))
    torch.testing.assert_close(few.exp().sum(1), torch.ones(20, dtype=torch.float64))


class Told(ZeroShot):
    """A denoiser with given errors, [C, K]."""

    table: torch.Tensor

    def errors(self, denoiser, x_0, seeds, asked, first, last, progress):
        return asked[..., None] * self.table[:, first:last]


def test_a_dropped_class_keeps_its_distance_from_a_leader_that_is_dropped_later():
    """By hand: 3 is dropped 3 nats behind 0; 0 is dropped 4.5 nats behind 1; then 2 is half a nat ahead of 1."""
    ask = Told(Exact(), Even(), Budget(6, [[2, 3], [4, 2]], None), 1.0, 100)
    ask.table = torch.tensor(
        [[0, 0, 10, 10, 0, 0], [1, 1, 0, 0, 3, 3], [2, 2, 0.5, 0.5, 0, 0], [3, 3, 0, 0, 0, 0]]
    ).double()
    found = ask(oracle(four_classes(), SCHEDULE), torch.zeros(1, 3), [0])
    one, two = -8 / 6, -5 / 6
    expected = torch.tensor([[one - 4.5, one, two, one - 4.5 - 3]]).double().log_softmax(1)
    torch.testing.assert_close(found.log_prob, expected)
    assert found.evaluations.tolist() == [4 * 2 + 3 * 2 + 2 * 2]


def test_the_margin_counts_standard_errors_of_paired_differences():
    """Two classes are a nat behind, with differences that vary by 0.12 and by 4.6; all classes have common noise."""
    shared, turns = torch.tensor([0.0, 10.0, -10.0, 0.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    errors = torch.stack([shared, shared + 1 + 0.1 * turns, shared + 1 + 4 * turns])[None].double()
    for margin, expected in ((0.4, [True, False, False]), (0.5, [True, False, True])):  # a standard error is 2.31
        assert Budget(9, [[4, 3]], margin).select_remaining(-errors.mean(2), errors, 3).tolist() == [expected]


def test_the_margin_stops_the_evaluation_of_clear_images():
    """Fewer evaluations than the budget with the same answers; with margin 0 only the leader remains."""
    law, x = four_classes(), examples(four_classes(), 40)
    stages = [[10, 4], [20, 4]]
    counter = EvaluationCounter(oracle(law, SCHEDULE))
    ask = classifier(evaluations=60, stages=stages, margin=2.0)
    answers = ask(counter, x, range(40))
    full = classifier(evaluations=60)(oracle(law, SCHEDULE), x, range(40))
    assert torch.equal(answers.log_prob.argmax(1), full.log_prob.argmax(1))
    assert counter.tally.evaluations == int(answers.evaluations.sum())
    spent = answers.evaluations / 4
    assert 10 <= float(spent.min()) < 20 and float(spent.mean()) < 30 < ask.budget.max_evaluations(4)
    leaders = classifier(evaluations=60, stages=stages, margin=0.0)(oracle(law, SCHEDULE), x, range(40))
    assert leaders.evaluations.tolist() == [40] * 40


def test_running_answers_have_their_number_of_evaluations():
    law, x = four_classes(), examples(four_classes(), 30)
    answers = classifier(evaluations=30, stages=[[4, 2]])(oracle(law, SCHEDULE), x, range(30))
    # after 1, 2, 4, 5, 10, 20, 30 evaluations of each remaining class
    assert answers.spent[:, 0].tolist() == [4, 8, 16, 18, 28, 48, 68]
    assert torch.equal(answers.running[-1], answers.log_prob.argmax(1))
    for place, evaluations in ((0, 1), (1, 2), (2, 4)):
        short = classifier(evaluations=evaluations)(oracle(law, SCHEDULE), x, range(30))
        assert torch.equal(answers.running[place], short.log_prob.argmax(1))


class OfLevels(DenoiserWrapper):
    """Requires that t is one of its levels."""

    levels = torch.linspace(1, 0, 41, dtype=torch.float64)

    def __call__(self, x_t, t, y=None):
        assert bool(torch.isin(t, self.levels).all())
        return self.denoiser(x_t, t, y)


def test_a_model_with_discrete_levels_is_evaluated_at_its_levels_only():
    law, x = two_classes(), examples(two_classes(), 20, 0.6)
    model = OfLevels(oracle(law, SCHEDULE))
    found = classifier(evaluations=200)(model, x, range(20)).log_prob
    assert np.corrcoef((found[:, 0] - found[:, 1]).numpy(), log_ratio(law, x))[0, 1] > 0.9


class Knowing(Denoiser):
    """Predicts the noise of x_0 = 1 exactly for class 0, and with an error of 1 for class 1."""

    schedule, num_classes, levels = SCHEDULE, 2, OfLevels.levels

    def __call__(self, x_t, t, y=None):
        alpha, sigma = self.schedule.alpha_sigma(t, 2)
        return Prediction(x_t, (x_t - alpha) / sigma + y[:, None])


def test_x_t_has_the_noise_of_the_nearest_level():
    """The logit of class 1 is -1/2 D times the range of log-SNR, that of class 0 is 0."""
    found = classifier(spacing=Even(), evaluations=7)(Knowing(), torch.ones(2, 3, dtype=torch.float64), [0, 1]).log_prob
    torch.testing.assert_close(found[:, 1] - found[:, 0], torch.full((2,), -0.5 * 3 * 28).double(), rtol=1e-6, atol=0)


def test_one_class_an_invalid_prior_and_infinite_ends_raise():
    single = Mixture([1.0], [[0.0]], [[[1.0]]], [0])
    x = torch.zeros(1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="two classes, got 1"):
        classifier()(oracle(single, SCHEDULE), x, [0])
    with pytest.raises(ValueError, match="prior .*2 classes"):
        classifier()(oracle(two_classes(), SCHEDULE), x, [0], torch.tensor([1.0, 0.0]))
    infinite = oracle(two_classes(), Flow(torch.inf, -torch.inf))
    with pytest.raises(ValueError, match="metric/weighting=window"):
        classifier()(infinite, torch.zeros(1, 2, dtype=torch.float64), [0])
    window = Piecewise([-6.0, 6.0], [1.0, 1.0])
    assert bool(classifier(window)(infinite, torch.zeros(1, 2, dtype=torch.float64), [0]).log_prob.isfinite().all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, [[2, 2], [2, 1]], None), "stages .*increasing"),
        ((10, [[5, 0]], None), "stages .*>= 1"),
        ((10, [[5, 3], [4, 2]], None), "stages .*increasing"),
        ((10, [[4, 2], [5, 3]], None), "stage .*keep more"),
        ((0, [], None), "evaluations .*got 0"),
        ((10, [], 2.0), "margin .*needs stages"),
        ((10, [[1, 2]], 2.0), "margin .*2 evaluations"),
    ],
)
def test_invalid_budgets_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        Budget(*arguments)


@pytest.mark.parametrize("evaluations, reached", [(400, 6), (257, 6), (100, 4), (64, 3), (8, 0), (1, 0)])
def test_the_default_stages_fit_any_budget(evaluations, reached):
    """Stages beyond the budget are dropped; the margin stays."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        node = compose("metric/zero_shot", [f"metric.evaluations={evaluations}"]).metric
    budget = instantiate(node, _convert_="all").budget
    assert budget.stages == [tuple(stage) for stage in node.stages[:reached]] and budget.margin == 3.0
    assert budget.segments()[-1][1] == evaluations and len(node.stages) == 6
    law, x = two_classes(), torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    answers = classifier(evaluations=evaluations, stages=node.stages, margin=3.0)(oracle(law, SCHEDULE), x, [0])
    assert 2 * min(evaluations, 8) <= float(answers.evaluations) <= 2 * evaluations


def test_temperature_and_chunk_must_be_positive():
    for wrong in ({"temperature": 0.0}, {"chunk": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            classifier(**wrong)
