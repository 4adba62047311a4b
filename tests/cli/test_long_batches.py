"""Within a long batch: how far it is, where a signal stops it, and that what was kept before is not lost."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from closed_forms import Mixture
from exact_models import oracle
from small_checkpoint import CONFIG, save

from diffguide.datasets import GMM2D, Dataset, Split
from diffguide.evaluate import main
from diffguide.evaluation.classification.weighting import Bell, Exact
from diffguide.evaluation.classification.zero_shot_metric import ZeroShotClassifier
from diffguide.evaluation.likelihood.dequantization import DecoderDequantization
from diffguide.evaluation.likelihood.flow_ode import Adaptive, ExactTrace, FixedGrid
from diffguide.evaluation.likelihood.metrics import ELBO, FlowODE
from diffguide.evaluation.metric import EvalContext
from diffguide.evaluation.parts import Parts
from diffguide.oracles import GMM2DLaw
from diffguide.runtime.progress import Progress
from diffguide.schedules import Cosine

SCHEDULE = Cosine(12.0, -10.0)
BOUND = ELBO(4, None, 2, 2, 3, 1e-3, None, 0, None)
CLASSES = ZeroShotClassifier(Exact(), Bell(0.0, 2.5), 12, [[6, 2]], None, 1.0, False, 15, 20)


class Interrupted(Exception):
    """What a signal makes of it."""


def flow(solver) -> FlowODE:
    return FlowODE(ExactTrace(2), solver, DecoderDequantization(), 1, None, 0, None)


def plane() -> EvalContext:
    data = GMM2D(2, None, 4, train=50, validation=12, test=5, seed=0)
    return EvalContext(GMM2DLaw(SCHEDULE), data, batch_size=8)


def three() -> EvalContext:
    """Three classes, so that the zero-shot classifier takes six images at a time."""
    law = Mixture([0.5, 0.3, 0.2], [[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], [0.3 * np.eye(2)] * 3, [0, 1, 2])
    x, y = law.sample(12, np.random.default_rng(0))
    split = Split(torch.from_numpy(x).float(), torch.from_numpy(y))
    return EvalContext(oracle(law, SCHEDULE), Dataset(split, split, split, class_names=("0", "1", "2")), batch_size=6)


def told(metric, subject) -> list[tuple[int, int, str, int]]:
    """The progress messages of a measurement, each with the evaluations so far."""
    says = []
    subject.progress = lambda *now: says.append((*now, subject.evaluations))
    metric.measure(subject)
    return says


def test_the_bound_counts_levels_of_the_pilot_run_and_then_examples():
    """Each example is 8 evaluations and every pilot one 8, two at each level; the first call comes before the first one."""
    says = told(BOUND, plane())
    pilot, rest = says[:5], says[5:]
    assert pilot == [(k, 4, "levels of the pilot run", 6 * k) for k in range(5)]
    assert {unit for _, _, unit, _ in rest} == {"examples, elbo"} and {total for _, total, _, _ in rest} == {12}
    first, second = [0, *range(1, 9), 8], [8, 8, 9, 9, 10, 10, 11, 11, 12, 12]  # of 8 examples, and of 4
    assert [done for done, *_ in rest] == first + second
    spent = [8 * k for k in range(9)] + [64, 64] + [64 + 4 * k for k in range(1, 9)] + [96]
    assert [now for *_, now in rest] == [24 + count for count in spent]


@pytest.mark.parametrize("solver", [FixedGrid(4), Adaptive(1e-3, 1e-3, 500)], ids=["fixed", "adaptive"])
def test_an_ode_reports_its_progress(solver):
    says = told(flow(solver), plane())
    done, spent = [now[0] for now in says], [now[3] for now in says]
    assert done[0] == 0 and done[-1] == max(done) == 12 and min(done) == 0 and len(set(done)) > 4
    assert spent[0] == 0 and max(after - before for before, after in zip(spent, spent[1:])) <= 8
    if isinstance(solver, FixedGrid):  # slopes at 0, 1/8, 1/8, 1/4, ... of the way; an adaptive solver tries steps
        assert sorted(done) == done
        assert done[1:17] == [
            int(8 * share) for k in range(4) for share in (k / 4, k / 4 + 1 / 8, k / 4 + 1 / 8, k / 4 + 1 / 4)
        ]


def test_the_zero_shot_classifier_reports_its_progress():
    says = told(CLASSES, three())
    assert [now[0] for now in says] == sorted(now[0] for now in says) and says[-1][:3] == (12, 12, "images")
    spent = [now[3] for now in says]
    assert says[0][0] == spent[0] == 0 and max(after - before for before, after in zip(spent, spent[1:])) <= 20


@pytest.mark.parametrize(
    "metric, make",
    [
        (BOUND, plane),
        (flow(FixedGrid(4)), plane),
        (flow(Adaptive(1e-3, 1e-3, 500)), plane),
        (CLASSES, three),
    ],
    ids=["elbo", "ode", "adaptive", "zero_shot"],
)
def test_a_stop_within_a_batch_loses_only_that_batch(metric, make, tmp_path):
    whole, subject = make(), make()
    expected = metric.measure(whole)
    counts = []

    def stop(done: int, total: int, unit: str) -> None:
        if (tmp_path / "parts").exists():  # the first of two batches is kept
            counts.append(subject.evaluations)
            if counts[-1] > counts[0]:
                raise Interrupted

    subject.begin(Parts(tmp_path / "parts"), stop)
    with pytest.raises(Interrupted):
        metric.measure(subject)
    assert len(list((tmp_path / "parts").iterdir())) == 1 and subject.evaluations < whole.evaluations
    again = make()
    again.begin(Parts(tmp_path / "parts"), lambda done, total, unit: None)
    assert metric.measure(again).figures == expected.figures
    assert again.tally.evaluations < whole.tally.evaluations


def test_a_signal_stops_within_the_first_batch(tmp_path, command, monkeypatch):
    """The command stops, prints the command that resumes, and then gives the figures of an uninterrupted run."""
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    save(tmp_path / "run/checkpoints", CONFIG | {"dataset": CONFIG["dataset"] | {"validation": 10}})
    ask = ["checkpoint=run", "metric=elbo", "metric.levels=4", "metric.pilot=2"]
    whole = command(main, *ask, at=tmp_path)
    assert whole.code == 0, whole.err
    heard, show = [], Progress.show

    def interrupted(self, **figures):
        heard.append((self.count, self.total, figures["evaluations"]))
        if self.unit == "examples, elbo" and self.count == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return show(self, **figures)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "show", interrupted)
        done = command(main, *ask, at=tmp_path)
    assert done.code == 130 and "SIGINT after 5 of 10 examples, elbo; continue with: diffguide-eval" in done.err, (
        done.err
    )
    assert heard[0] == (0, 4, 0) and heard[-1] == (5, 10, 16 + 40)
    again = command(main, f"resume={done.folder}", at=tmp_path)
    assert again.code == 0, again.err
    figures = [json.loads((tmp_path / run.folder / "metrics.json").read_text())["figures"] for run in (whole, again)]
    assert figures[0] == figures[1]


def test_a_bar_is_not_drawn_at_every_evaluation(capfd, monkeypatch):
    """It appears at once, with the figures of its beginning, and costs nothing after."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = Progress("elbo", 1, "examples", every=1e9)
    for k in range(2000):
        progress.show(evaluations=k)
    written = capfd.readouterr().err
    assert "evaluations 0" in written and written.count("elbo") < 200
    progress.close()


def test_no_rate_is_shown_before_the_first_example(capfd, monkeypatch):
    """After an hour without a unit, the line must not predict 10^9 s."""
    progress = Progress("elbo", 2, "examples", every=0.0)
    progress.show(evaluations=3)
    progress.advance(1)
    progress.show(evaluations=6)
    first, second = capfd.readouterr().err.splitlines()
    assert first == "elbo 0/2 examples, 0/s, evaluations 3" and second.endswith(" s left")
