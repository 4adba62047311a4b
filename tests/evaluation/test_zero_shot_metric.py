"""metric=zero_shot: its figures, its errors, and a trained model of digits."""

import json

import numpy as np
import pytest
import torch
from closed_forms import Mixture
from exact_models import oracle
from small_checkpoint import CONFIG, save

from diffguide.checkpoints.allowlist import construct
from diffguide.datasets import Dataset, Split
from diffguide.evaluation.classification.calibration import calibration_error
from diffguide.evaluation.classification.weighting import Bell, Exact
from diffguide.evaluation.classification.zero_shot import Budget, ZeroShot
from diffguide.evaluation.classification.zero_shot_metric import ZeroShotClassifier
from diffguide.evaluation.metric import EXAMPLE_PURPOSE, EvalContext
from diffguide.evaluation.parts import MetricError, Parts
from diffguide.models.protocols import DenoiserWrapper, Prediction
from diffguide.oracles import GaussianMixture
from diffguide.randomness import fold
from diffguide.schedules import Cosine, Flow

SCHEDULE, NAMES = Cosine(14.0, -14.0), ("a", "b", "c")
LAW = Mixture([0.5, 0.3, 0.2], [[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], [0.3 * np.eye(2)] * 3, [0, 1, 2])


def metric(evaluations=20, stages=((6, 2),), margin=None, temperature=2.0, class_frequencies=False, chunk=100):
    return ZeroShotClassifier(
        Exact(), Bell(0.0, 2.5), evaluations, stages, margin, temperature, class_frequencies, 15, chunk
    )


def data(names=NAMES, unlabelled: bool = False) -> Dataset:
    def split(n: int, seed: int) -> Split:
        x, y = LAW.sample(n, np.random.default_rng(seed))
        return Split(torch.from_numpy(x).float(), torch.full((n,), -1) if unlabelled else torch.from_numpy(y))

    return Dataset(split(100, 0), split(60, 1), split(20, 2), class_names=names)


def test_the_figures_are_those_of_the_posteriors():
    context = EvalContext(oracle(LAW, SCHEDULE), data(), seed=4, batch_size=33)
    measured, y = metric().measure(context), context.labels
    seeds = [fold(4, EXAMPLE_PURPOSE, row) for row in range(60)]
    ask = ZeroShot(Exact(), Bell(0.0, 2.5), Budget(20, [[6, 2]], None), 2.0, 1000)
    expected = ask(oracle(LAW, SCHEDULE), context.data.validation.x, seeds)
    log_prob, answer = expected.log_prob, expected.log_prob.argmax(1)
    right = answer == y
    figures = {name: figure.value for name, figure in measured.figures.items()}
    assert figures["accuracy"] == pytest.approx(float(right.double().mean()))
    assert measured.figures["accuracy"].standard_error == pytest.approx(float(right.double().std()) / 60**0.5, rel=1e-6)
    assert figures["nll"] == pytest.approx(-float(log_prob[torch.arange(60), y].mean()), rel=1e-4)
    assert figures["ece"] == pytest.approx(calibration_error(log_prob.exp().amax(1), right, 15, 4)[0], abs=1e-4)
    assert figures["evaluations"] == measured.facts["most_evaluations"] == (3 * 6 + 2 * 14) / 3
    assert context.evaluations == 60 * (3 * 6 + 2 * 14)
    wrong = {(NAMES[a], NAMES[b]): int(((y == a) & (answer == b)).sum()) for a in range(3) for b in range(3) if a != b}
    found = {(row["class"], row["answer"]): row["n"] for row in measured.details["confusions"]}
    assert found == {pair: n for pair, n in wrong.items() if n} and sum(found.values()) == int((~right).sum())
    assert measured.details["recall"] == {
        name: pytest.approx(float(right[y == label].double().mean())) for label, name in enumerate(NAMES)
    }
    json.dumps([measured.facts, measured.curve, measured.details])
    kept = measured.arrays["posteriors"]
    assert kept["row"].tolist() == list(range(60)) and kept["classes"].tolist() == list(NAMES)
    assert kept["label"].tolist() == y.tolist() and kept["answer"].tolist() == answer.tolist()
    np.testing.assert_allclose(kept["posterior"], log_prob.exp(), rtol=1e-3, atol=1e-5)


def test_posteriors_are_written_with_their_rows(tmp_path, command):
    """For a subset; the arrays have no objects."""
    from diffguide.evaluate import main

    (tmp_path / "run/checkpoints").mkdir(parents=True)
    save(tmp_path / "run/checkpoints", CONFIG | {"dataset": CONFIG["dataset"] | {"validation": 30}})
    done = command(main, "checkpoint=run", "metric=zero_shot", "metric.evaluations=8", "n=9", at=tmp_path)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / done.folder / "metrics.json").read_text())
    with np.load(tmp_path / done.folder / "posteriors.npz", allow_pickle=False) as file:
        kept = dict(file)
    examples = construct(CONFIG["dataset"] | {"validation": 30}, "dataset", ()).validation
    assert len(set(kept["row"])) == 9 and kept["label"].tolist() == examples.y[kept["row"]].tolist()
    assert kept["posterior"].shape == (9, 4) and kept["classes"].tolist() == list("0123")
    np.testing.assert_allclose(kept["posterior"].sum(1), 1)
    assert (kept["posterior"].argmax(1) == kept["answer"]).all()
    assert found["figures"]["accuracy"]["value"] == pytest.approx((kept["answer"] == kept["label"]).mean())
    nll = -np.log(kept["posterior"][np.arange(9), kept["label"]]).mean()
    assert found["figures"]["nll"]["value"] == pytest.approx(nll) and found["stages"] == []


def test_the_curve_ends_at_the_figure_and_never_costs_less():
    measured = metric(evaluations=40, stages=((5, 2), (12, 2))).measure(EvalContext(oracle(LAW, SCHEDULE), data()))
    spent = [row["evaluations"] for row in measured.curve]
    assert spent == sorted(set(spent)) and spent[0] == 1
    assert spent[-1] == measured.figures["evaluations"].value == measured.facts["most_evaluations"]
    assert measured.curve[-1]["accuracy"] == measured.figures["accuracy"].value
    (plot,) = measured.plots
    assert plot.x in measured.curve[0] and plot.panels[0].column in measured.curve[0]


def test_frequencies_of_the_training_split_are_the_prior():
    context = EvalContext(oracle(LAW, SCHEDULE), data())
    counts = context.data.train.y.bincount()
    measured = metric(class_frequencies=True, stages=()).measure(context)
    assert measured.facts["prior"] == pytest.approx((counts / counts.sum()).tolist(), rel=1e-6)
    plain = metric(stages=()).measure(context)
    assert plain.facts["prior"] == pytest.approx([1 / 3] * 3)
    assert plain.figures["nll"].value != measured.figures["nll"].value


def test_neither_batches_nor_chunks_nor_a_subset_change_an_answer():
    whole = EvalContext(oracle(LAW, SCHEDULE), data(), batch_size=250)
    expected = metric().classify(whole, torch.full((3,), 1 / 3)).log_prob
    for batch_size, chunk, n in ((7, 100, None), (250, 4, None), (10, 31, 25)):
        context = EvalContext(oracle(LAW, SCHEDULE), data(), batch_size=batch_size, n=n)
        found = metric(chunk=chunk).classify(context, torch.full((3,), 1 / 3)).log_prob
        torch.testing.assert_close(found, expected[context.rows], rtol=1e-4, atol=1e-4)


def test_saved_parts_are_not_computed_again(tmp_path):
    first, second = (
        EvalContext(oracle(LAW, SCHEDULE), data(), batch_size=20, parts=Parts(tmp_path / "parts")) for _ in range(2)
    )
    expected, done = metric(chunk=30).measure(first), []
    second.progress = lambda *now: done.append(now)
    found = metric(chunk=30).measure(second)
    kept, again = (measured.arrays["posteriors"] for measured in (expected, found))
    assert found._replace(arrays={}) == expected._replace(arrays={}) and kept.keys() == again.keys()
    assert all((kept[name] == again[name]).all() for name in kept)
    assert second.tally.evaluations == 0 and second.evaluations == first.evaluations
    assert done == [(10 * (k + 1), 60, "images") for k in range(6)]


class Broken(DenoiserWrapper):
    """A model with predictions that are not finite."""

    def __call__(self, x_t, t, y=None):
        return Prediction(x_t, x_t * float("nan"))


class Moving(DenoiserWrapper):
    stateful = True


def test_models_and_data_that_do_not_fit_raise():
    other = GaussianMixture([1.0] * 3, LAW.means, 0.3, [0, 1, 2], SCHEDULE, class_names=["a", "b", "d"])
    endless = oracle(LAW, Flow(torch.inf, -torch.inf))
    unseen = data()
    unseen.train.y[unseen.train.y == 1] = 0
    single = GaussianMixture([1.0], [[0.0, 0.0]], 1.0, [0], SCHEDULE)
    named = GaussianMixture([1.0] * 3, LAW.means, 0.3, [0, 1, 2], SCHEDULE, class_names=NAMES)
    for model, examples, message in (
        (other, data(), "classes a, b, d.* a, b, c"),
        (single, data(("a",)), "two classes"),
        (Moving(named), data(), "x_t, t and y only"),
        (endless, data(("0", "1", "2")), "metric/weighting=window"),
        (named, data(unlabelled=True), "needs labels"),
    ):
        with pytest.raises(ValueError, match=message):
            metric().check(EvalContext(model, examples))
    with pytest.raises(ValueError, match="every class; b has none"):
        metric(class_frequencies=True).check(EvalContext(named, unseen))
    metric().check(EvalContext(named, data()))
    with pytest.raises(MetricError, match="not finite"):
        metric().measure(EvalContext(Broken(named), data()))
    with pytest.raises(ValueError, match="bins"):
        ZeroShotClassifier(Exact(), Bell(0.0, 2.0), 10, [], None, 1.0, False, 0, 10)


def test_an_unconditional_model_is_a_one_line_error(tmp_path, command):
    from diffguide.evaluate import main

    (tmp_path / "run/checkpoints").mkdir(parents=True)
    save(tmp_path / "run/checkpoints", CONFIG | {"backbone": CONFIG["backbone"] | {"num_classes": 0}}, class_names=[])
    done = command(main, "checkpoint=run", "metric=zero_shot", at=tmp_path)
    assert done.code == 1 and "metric=zero_shot needs a model with classes" in done.err
    assert len(done.err.strip().splitlines()) == 1
