"""The ranking of guidance: no option is forgotten, and its figures are those of an independent computation."""

import csv

import guidance_ranking
import numpy
import pytest
import torch
from ranking import measures, networks, picture
from ranking.laws import Law, list_options
from ranking.measures import Truth, tilt_of_scale
from ranking.methods import METHODS, UNSUITED, build_guidance, read_option
from ranking.runs import Ranking
from ranking.tables import format_markdown, summarize
from scipy.stats import norm

from diffguide.datasets import MNIST
from diffguide.evaluation.quality.features import Pixels
from diffguide.models.protocols import SamplingError
from diffguide.oracles import Empirical, GaussianMixture
from diffguide.schedules import EDM

N = 40


@pytest.fixture(autouse=True)
def fewer_laws(monkeypatch):
    """Two laws in place of nine, of which the nearest is found, and a rough bound of outliers."""
    monkeypatch.setattr(measures, "SCALES_OF_LAWS", (1.0, 3.0))
    monkeypatch.setattr(measures, "BOUND_SAMPLES", 4000)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def test_every_option_is_tried_or_named_with_a_reason():
    tried = {method.option or name for name, method in METHODS.items()}
    assert tried | set(UNSUITED) == set(list_options("guidance")) and not tried & set(UNSUITED)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.knob])
def test_a_method_has_three_values_of_its_knob_the_first_from_its_file(name):
    method = METHODS[name]
    assert len(method.values) == 3 or method.cost > 1
    if method.knob.islower():
        node = read_option(method.option or name)
        for part in method.knob.split("."):
            node = node[part]
        assert node in ("???", method.values[0])
    scales, values = zip(*method.points())
    assert sorted(set(scales)) == sorted(method.scales) and len(values) == len(method.scales) + len(method.values) - 1


@pytest.fixture(scope="module")
def pair():
    """Variances 1 for the class and 2 without condition, in one dimension."""
    return Law("pair", GaussianMixture([1e-9, 1], [[0.0], [0.0]], [1.0, 2.0], [0, 1], EDM()))


@pytest.fixture(scope="module")
def pictures():
    """Two classes of smooth pictures of 2 x 2 pixels."""
    x = torch.randn(12, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return Law("pictures", Empirical(x, torch.arange(12) % 2, EDM(), 0.4))


def energy(x: numpy.ndarray, y: numpy.ndarray) -> float:
    def between(a, b):
        return numpy.mean([[abs(p - q) for q in b] for p in a])

    return 2 * between(x, y) - between(x, x) - between(y, y)


def test_figures_of_two_methods_are_those_of_an_independent_computation(pair):
    """Closed forms of the class and of its guided samples, and distances by loops over pairs."""
    ranking = Ranking(N, 64, seed=1)
    rows = {}
    truth = Truth(pair, N, seed=1)
    for name in ("none", "cfg"):
        for row in ranking.run(truth, name):
            rows.setdefault((name, row["scale"]), (row, ranking.draw(pair, row)))
    exact = [part[:, 0].numpy() for part in truth.exact]
    floor = numpy.mean([energy(a, b) for a, b in zip(exact[:3], exact[3:])])
    for key, evaluations in ((("none", 1.0), 64), (("cfg", 2.0), 64)):
        row, x = rows[key]
        x = x[:, 0].numpy()
        assert row["evaluations"] == evaluations and row["steps"] == (64 if key[0] == "none" else 32)
        assert row["conditional"] == pytest.approx(numpy.mean([energy(x, part) for part in exact[:3]]) / floor)
        together = numpy.concatenate(exact)
        assert row["diversity"] == pytest.approx(x.std(ddof=1) / together.std(ddof=1))
        assert row["outliers"] == numpy.mean(norm.logpdf(x) < truth.bound)
        odds = norm.pdf(x) / norm.pdf(x, scale=2**0.5)
        assert row["agreement"] == pytest.approx(numpy.mean(odds / (1 + odds)), abs=1e-4)
    # dx/dsigma = sigma x (2 / (1 + sigma^2) - 1 / (2 + sigma^2)) maps x(80) to x(0), up to the variance at the end, 4e-6
    start = numpy.sqrt(6400 * (6400 + 2) / (6400 + 1) ** 2 / 2) / 80
    assert rows["cfg", 2.0][1].std() / rows["none", 1.0][1].std() == pytest.approx(
        start / numpy.sqrt(1 / 6401), rel=0.02
    )


def test_the_bound_of_outliers_is_a_quantile(pair, monkeypatch):
    monkeypatch.setattr(measures, "BOUND_SAMPLES", 20000)
    assert Truth(pair, N, 0).bound == pytest.approx(norm.logpdf(norm.ppf(0.0005)), abs=0.5)


def test_missing_modes_are_counted():
    """The smaller of two modes is empty; figures that are not finite are nan."""
    means, weights = [[-4.0, 0.0], [4.0, 0.0], [0.0, 1.0]], [3.0, 1.0, 1.0]
    law = Law("modes", GaussianMixture(weights, means, 0.1, [0, 0, 1], EDM()))
    truth, y = Truth(law, 400, 0), torch.zeros(400, 2, dtype=torch.float64)
    x = law.sample(400, seed=5)
    assert truth.count_thinned(x) == 0
    left = torch.where(x[:, :1] > 0, torch.tensor([[-4.0, 0.0]], dtype=torch.float64), x)
    assert truth.count_thinned(left) == pytest.approx(0.25) and truth.count_thinned(y + 9) == 1
    figures = truth.measure(x * torch.inf, None)
    assert all(value != value for value in figures.values())


def test_samples_of_a_tilted_law_act_as_their_scale(pair):
    truth = Truth(pair, 600, 0)
    rng = torch.Generator().manual_seed(23)
    x = (2 / 4) ** 0.5 * torch.randn(600, 1, generator=rng, dtype=torch.float64)
    figures = truth.measure(x, tilt_of_scale(3.0))
    assert figures["acts_as"] == 3.0 and figures["named"] < 3 < figures["conditional"]
    assert truth.sample_tilted(tilt_of_scale(-1.5)) is None, "not normalisable"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs(name, pictures):
    method = METHODS[name]
    for value in method.values[:2]:
        x, tally = Ranking(3, 8, 0).sample(pictures, name, method.scales[-1], value, 4, 3)
        assert x.shape == (3, 4) and tally.evaluations > 0


def test_guidance_of_an_exact_law_by_its_own_classifier_is_classifier_free_guidance(pictures):
    """grad log p(y | x) of a law is the difference of its scores; a sum of both adds their scales."""
    x = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t, y = torch.tensor(0.4, dtype=torch.float64), torch.zeros(5, dtype=torch.long)
    everywhere = METHODS["cfg"].values[0]
    wanted = build_guidance("cfg", pictures.oracle, pictures, 3.0, everywhere)(x, t, y).x_0
    for name, scale, value in (("classifier", 3.0, everywhere), ("classifier_cfg", 2.0, 1.0)):
        torch.testing.assert_close(build_guidance(name, pictures.oracle, pictures, scale, value)(x, t, y).x_0, wanted)


def test_a_method_with_more_evaluations_a_step_gets_fewer_steps(pair, pictures):
    ranking = Ranking(2, 24, 0)
    found = {
        name: ranking.choose_steps(pair, name, 2.0, METHODS[name].values[0]) for name in ("none", "cfg", "cfg, fkc")
    }
    assert {name: steps for name, (steps, *_) in found.items()} == {"none": 24, "cfg": 12, "cfg, fkc": 3}
    assert ranking.choose_steps(pictures, "lgd", 2.0, 8) == (24, 24, 24 * 8)
    assert ranking.choose_steps(pictures, "recfg_table", 2.0, 64) == (12, 24, 0), (
        "its table is made once for all samples"
    )


def test_a_run_that_fails_has_no_figures(pair, monkeypatch):
    def fail(*_):
        raise SamplingError("not finite")

    ranking = Ranking(2, 8, 0)
    monkeypatch.setattr(ranking, "sample", fail)
    (row,) = ranking.run(Truth(pair, 2, 0), "none")
    assert row["steps"] == 8 and numpy.isnan(row["evaluations"]) and numpy.isnan(row["conditional"])
    assert len(ranking.draw(pair, row)) == 0


def test_tables_and_picture_are_written(tmp_path, capsys):
    arguments = ["--laws", "three Gaussians", "two Gaussians", "--methods", "none", "cfg", "fdg", "--n", "20"]
    arguments += ["--evaluations", "8", "--output", str(tmp_path)]
    guidance_ranking.main(arguments)
    with open(tmp_path / "ranking.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"exact samples", "law that cfg names", "none", "cfg"}
    assert len(rows) == 2 * (1 + 1 + 1 + 6)
    assert (tmp_path / "ranking.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "ranking.md").read_text(encoding="utf-8")
    guidance_ranking.main(arguments)
    with open(tmp_path / "ranking.csv", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == rows, "what the folder has is reused"
    assert "| cfg | 3 |" in table and "`clip`" in table and "not tried: cads" in capsys.readouterr().out


def test_a_panel_states_its_figures_or_that_its_method_diverges():
    row = {"conditional": 2.0, "diversity": 0.5, "outliers": 0.25}
    assert picture.describe(row) == "2 floors, spread 0.50, out 25 %"
    assert (
        picture.describe(row | {"conditional": float("nan")})
        == picture.describe(row | {"conditional": 1e9})
        == "diverges"
    )


def test_means_over_laws_are_stated():
    run = {"method": "cfg", "scale": 3.0, "value": str(METHODS["cfg"].values[0]), "steps": 32, "thinned": float("nan")}
    other = dict.fromkeys(["agreement", "named", "acts_as", "nearest", "outliers", "diversity"], 0.5)
    rows = [run | other | {"law": "a", "conditional": 2.0}, run | other | {"law": "b", "conditional": 8.0}]
    (row,) = summarize(rows)
    assert row["conditional"] == pytest.approx(4) and row["laws"] == 2 and row["outliers"] == 0.5
    assert format_markdown(rows).splitlines()[2].split(" | ")[4:6] == ["4", "0.5"]


def test_area_and_recall_of_a_curve():
    assert networks.covered_area([(0.5, 0.8), (0.2, 1.0)]) == pytest.approx(0.2 * 1.0 + 0.3 * 0.8)
    assert networks.covered_area([(0.5, 0.8), (0.4, 0.7)]) == pytest.approx(0.4)
    runs = [{"agreed": 0.9, "recall": 0.8}, {"agreed": 1.0, "recall": 0.4}]
    assert networks.recall_at(runs, 0.95) == pytest.approx(0.6)
    assert networks.recall_at(runs, 0.85) == 0.8 and numpy.isnan(networks.recall_at(runs[:1], 0.95))


def test_an_archive_becomes_the_files_of_mnist(tmp_path):
    images = numpy.arange(1300 * 784, dtype=numpy.uint32).astype(numpy.uint8).reshape(1300, 28, 28)
    labels = (numpy.arange(1300) % 10).astype(numpy.uint8)
    numpy.savez(tmp_path / "m.npz", images=images, labels=labels)
    data, arguments = networks.load_data("mnist", tmp_path, tmp_path / "m.npz")
    assert isinstance(data, MNIST) and arguments[1] == "dataset.download=false"
    assert len(data.train.y) == 40 and len(data.validation.y) == 1000 and len(data.test.y) == 260
    assert numpy.array_equal(data.test.x[0, 0].numpy(), images[1040])


def test_networks_are_compared(at, tmp_path, monkeypatch, capsys):
    """Every method samples a tiny model; the second run reads its samples."""
    (at / "outputs/train/digits").rename(at / "outputs/train/digits_0")
    monkeypatch.setattr(networks, "Local", lambda steps, cache: Pixels())
    monkeypatch.setattr(networks, "STEPS", 2)
    monkeypatch.setattr(networks, "COMPARED", 40)
    for name, method in networks.NETWORK_METHODS.items():
        monkeypatch.setitem(networks.NETWORK_METHODS, name, method._replace(scales=method.scales[:1]))
    arguments = ["--networks", "digits", "--seeds", "0", "--n", "10", "--output", str(tmp_path)]
    for _ in range(2):
        guidance_ranking.main(arguments)
        with open(tmp_path / "networks_digits.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["method"] for row in rows] == list(networks.NETWORK_METHODS)
        assert all(0 <= float(row[key]) <= 1 for row in rows for key in ("agreed", "precision", "recall"))
    assert len(list((tmp_path / "samples/digits_0").iterdir())) == len(rows)
    assert "cfg, fkc | 1" in capsys.readouterr().out
