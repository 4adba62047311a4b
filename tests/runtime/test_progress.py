"""Progress of the commands, and warnings on untrained models."""

import re
import time

import pytest
from short_run import RUN

from diffguide.checkpoints import store as checkpoints
from diffguide.checkpoints.explanations import explain_untrained
from diffguide.checkpoints.store import Loaded
from diffguide.evaluate import main as evaluate_main
from diffguide.evaluation import bar as evaluate
from diffguide.evaluation.bar import Bar
from diffguide.runtime.progress import Progress
from diffguide.runtime.signals import Interrupts
from diffguide.sample import main as sample


def record_counts(monkeypatch) -> list[tuple[str, int, int, str]]:
    """The title and counts of every bar at every show()."""
    counts, show = [], Progress.show

    def record(self, **figures):
        counts.append((self.title, self.count, self.total, self.unit))
        return show(self, **figures)

    monkeypatch.setattr(Progress, "show", record)
    return counts


def test_a_sampling_bar_counts_images(at, command, monkeypatch):
    """Ten images in batches of 4, 4 and 2 with four steps each; a step counts as its share of the images."""
    seen = record_counts(monkeypatch)
    done = command(sample, f"checkpoint={RUN}", "n=10", "batch_size=4", "sampler.steps=4", at=at)
    assert done.code == 0, done.err
    counts = [1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9, 10]
    assert seen == [("sampling", count, 10, "images") for count in counts]


@pytest.mark.parametrize(
    "images, warmup, warning",
    [
        (0, 0, "saw no image"),
        (0, 3000, "saw no image"),
        (2999, 3000, "saw 2999 images"),
        (3000, 3000, None),
        (1, 0, None),
    ],
)
def test_a_model_within_its_warm_up_is_untrained(images, warmup, warning):
    note = explain_untrained(Loaded(None, {"training": {"warmup_images": warmup}}, {"images": images}))
    assert note is None if warning is None else warning in note and "noise" in note


def test_a_model_that_started_from_another_is_trained_within_its_warm_up():
    config = {"training": {"warmup_images": 3000}, "ancestry": {"images": 0}}
    assert explain_untrained(Loaded(None, config, {"images": 64})) is None


def test_a_config_without_valid_warm_up_gives_no_warning():
    for training in (None, 3, {"warmup_images": "x"}):
        assert explain_untrained(Loaded(None, {"training": training}, {"images": 1})) is None


def test_samples_and_figures_of_an_untrained_model_have_a_warning(at, command):
    assert checkpoints.find(at / RUN).stem == "0000000064"
    ask = ["metric=denoising", "n=4", "metric.levels=2"]
    for main, arguments in ((sample, ["n=1", "sampler.steps=2"]), (evaluate_main, ask)):
        done = command(main, f"checkpoint={RUN}", *arguments, at=at)
        assert done.code == 0 and "saw 64 images" in done.err, done.err


class Context:
    n, evaluations = 7, 3


def test_a_measurement_without_reports_shows_that_it_runs(capfd, monkeypatch):
    """Before its first report and within a stage; each stage is named at its start."""
    monkeypatch.setattr(evaluate, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr("diffguide.runtime.progress.Heartbeat.__init__.__defaults__", (0.001,))
    monkeypatch.setattr("diffguide.runtime.progress.Progress.__init__.__defaults__", (0, 0.0, False, None))
    with Interrupts() as interrupts:
        bar = Bar("slow", Context(), interrupts)
        wait_for(lambda: bar.progress is not None)
        bar(0, 1, "KID")
        before = bar.progress.last
        wait_for(lambda: bar.progress.last > before)
        bar.close()
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "slow: 7 examples" and "slow: KID" in lines
    assert any(line.startswith("slow 0/1 KID, ") and line.endswith("s so far") for line in lines)


def wait_for(condition) -> None:
    while not condition():
        time.sleep(0.001)


def test_a_line_of_progress_separates_its_parts(capsys):
    """Commas separate rate, figures and time left."""
    progress = Progress("training", 4, "images", every=0.0)
    progress.advance(2)
    progress.show(loss=0.7598)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("training 2/4 images, ") and re.search(r"/s, loss 0\.7598, \d+ s left$", line), line


def test_a_slow_rate_has_two_digits_and_a_count_all_of_them(capfd):
    progress = Progress("elbo", 8, "examples", every=0.0)
    progress.started -= 1000
    progress.advance(2)
    progress.show(evaluations=18432)
    assert re.fullmatch(r"elbo 2/8 examples, 0\.002/s, evaluations 18432, \d+ s left\n", capfd.readouterr().err)
