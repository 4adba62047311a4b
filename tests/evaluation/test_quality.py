"""Precision, recall, density, coverage, copies and label accuracy: against loops, closed forms and exact distributions."""

import math

import numpy
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from diffguide.evaluation.quality import figures as comparison
from diffguide.evaluation.quality import precision_recall as quality
from diffguide.evaluation.quality.label_agreement import LabelClassifier
from diffguide.evaluation.quality.precision_recall import (
    MIN_PRECISION,
    count_repeated,
    density_coverage,
    distance_ratio,
    nearest,
    precision_recall,
    quality_notes,
    squared_radii,
)


def normal(n: int, seed: int, dimensions: int = 3) -> torch.Tensor:
    return torch.randn(n, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ball(points: list, index: int, k: int) -> float:
    """The distance of a point to its k-th neighbour, without itself."""
    others = [math.dist(points[index], other) for place, other in enumerate(points) if place != index]
    return sorted(others)[k - 1]


def by_hand(real: list, samples: list, k: int) -> tuple[float, float, float, float]:
    """Precision, recall, density, coverage by the formulas of the papers, pair by pair."""
    real_balls = [ball(real, i, k) for i in range(len(real))]
    sample_balls = [ball(samples, j, k) for j in range(len(samples))]
    held = [[math.dist(s, r) <= radius for r, radius in zip(real, real_balls)] for s in samples]
    reached = [[math.dist(r, s) <= radius for s, radius in zip(samples, sample_balls)] for r in real]
    return (
        sum(map(any, held)) / len(samples),
        sum(map(any, reached)) / len(real),
        sum(map(sum, held)) / (k * len(samples)),
        sum(map(any, zip(*held))) / len(real),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("cells", [1, 150, 2**22], ids=["row by row", "slabs with a rest", "at once"])
def test_the_figures_are_the_formulas_of_the_papers(monkeypatch, k, cells):
    """For sets of different sizes and laws, and any slabs of the table of distances."""
    monkeypatch.setattr(quality, "MAX_CELLS", cells)
    real, samples = normal(41, 0), 0.6 * normal(37, 1) + 0.8
    found = (*precision_recall(real, samples, k), *density_coverage(real, samples, k))
    expected = by_hand(real.tolist(), samples.tolist(), k)
    assert found == pytest.approx(expected, abs=1e-12)
    # four different figures, none trivial
    assert len({round(value, 6) for value in expected}) == 4 and 0 < min(expected)
    slabs = [slab.shape for slab in quality.distance_tables(real, samples)]
    assert max(math.prod(shape) for shape in slabs) <= max(cells, 37) and sum(rows for rows, _ in slabs) == 41


def test_ties_on_a_lattice_are_exact():
    """Balls are closed: neighbours on a lattice lie on the spheres; shifted by half a step they do not."""
    line = torch.arange(20.0)[:, None] / 8
    # the neighbour of the last sample: at 1/8
    assert precision_recall(line, line + 1 / 8, 1) == pytest.approx((1.0, 1.0))
    assert precision_recall(line, line + 1 / 4, 1) == pytest.approx((19 / 20, 19 / 20))
    assert density_coverage(line, line, 1) == pytest.approx(((20 + 2 * 19) / 20, 1.0))
    far = line + 1000  # the same, far from the origin
    assert precision_recall(far, far + 1 / 4, 1) == pytest.approx((19 / 20, 19 / 20))


def test_precision_and_density_measure_fidelity_recall_and_coverage_diversity():
    """Samples of half the law have lower recall and coverage; samples of a wider law lower precision and density."""
    real, same = normal(1000, 0, 2), normal(1000, 1, 2)
    half = torch.cat([same.abs()[:, :1], same[:, 1:]], 1)
    whole_pr, whole_dc = precision_recall(real, same, 3), density_coverage(real, same, 5)
    assert min(whole_pr) > 0.9 and whole_dc.density == pytest.approx(1, abs=0.08) and whole_dc.coverage > 0.93
    assert precision_recall(real, half, 3).precision > 0.9 and precision_recall(real, half, 3).recall < 0.65
    assert density_coverage(real, half, 5).density > 0.9 and density_coverage(real, half, 5).coverage < 0.6
    wide = 3 * same
    assert precision_recall(real, wide, 3).precision < 0.6 and precision_recall(real, wide, 3).recall > 0.9
    assert density_coverage(real, wide, 5).density < 0.5


def test_coverage_for_one_distribution_is_that_of_its_paper():
    """E[coverage] = 1 - (m choose k) / (n + m - 1 choose k) -> 1 - 2^-k (Naeem et al., section 3.3), for any law."""
    for k in (1, 3):
        found = numpy.mean([density_coverage(normal(300, s), normal(300, s + 50), k).coverage for s in range(8)])
        expected = 1 - math.prod((299 - i) / (599 - i) for i in range(k))
        assert found == pytest.approx(expected, abs=0.02)


def test_copies_of_training_data_have_distance_ratio_zero():
    train, held_out = normal(400, 0, 2), normal(400, 1, 2)
    assert distance_ratio(train[:50], train, held_out) == pytest.approx(0, abs=1e-7)
    assert distance_ratio(normal(400, 2, 2), train, held_out) == pytest.approx(1, abs=0.2)
    expected = [min(math.dist(a, b) for b in train.tolist()) for a in held_out.tolist()]
    assert nearest(held_out, train).tolist() == pytest.approx(expected, abs=1e-7)
    points = train.tolist()
    assert squared_radii(train, 2).sqrt()[7].item() == pytest.approx(ball(points, 7, 2), abs=1e-7)
    with pytest.raises(ValueError, match="held-out examples are training examples"):
        distance_ratio(held_out, train, train)


@pytest.mark.parametrize("measure", [precision_recall, density_coverage])
def test_invalid_features_and_neighbours_raise(measure):
    with pytest.raises(ValueError, match="k=3 and 3 points"):
        measure(normal(3, 0), normal(9, 1), 3)
    with pytest.raises(ValueError, match="k=0"):
        measure(normal(5, 0), normal(9, 1), 0)
    with pytest.raises(ValueError, match=r"got \[5, 3\] and \[5, 2\]"):
        measure(normal(5, 0), normal(5, 1, 2), 1)
    with pytest.raises(ValueError, match="2 of 5 samples"):
        measure(normal(5, 0), normal(5, 1).index_fill(0, torch.tensor([1, 3]), math.nan), 1)


def test_the_label_classifier_of_the_digits_has_its_known_accuracy():
    """It equals SVC(C=10, gamma=0.064), with 96.0 % accuracy on the test split."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images / 8 - 1), torch.from_numpy(labels)
    classifier = LabelClassifier(x[:1000], y[:1000])
    known = SVC(C=10, gamma=0.064).fit(x[:1000], y[:1000])
    blurred = x[1350:] + 0.5 * normal(447, 0, 64)
    assert classifier.accuracy(x[1350:], y[1350:]) == known.score(x[1350:], y[1350:]) == pytest.approx(0.960, abs=0.004)
    assert classifier.accuracy(blurred, y[1350:]) == pytest.approx(known.score(blurred, y[1350:]), abs=0.003)
    assert classifier.accuracy(x[1350:], (y[1350:] + 1) % 10) < 0.03
    unlabelled = y[:1000].where(torch.arange(1000) < 500, -1)
    assert classifier.accuracy(x[1350:], y[1350:]) > LabelClassifier(x[:1000], unlabelled).accuracy(x[1350:], y[1350:])
    with pytest.raises(ValueError, match="two classes, got 1"):
        LabelClassifier(x[:9], torch.zeros(9, dtype=torch.int64))


def test_the_error_of_precision_is_binomial_where_the_real_examples_stay():
    """Over 100 sets of samples; with new real examples each time it would be 1.6 times as large."""
    real = normal(200, 1000, 8)
    values = torch.tensor([precision_recall(real, normal(300, seed, 8), 3).precision for seed in range(100)])
    binomial_share = comparison.binomial_share(float(values.mean()), 300)
    assert binomial_share.standard_error == pytest.approx(float(values.std()), rel=0.25)


def test_repeated_rows_and_noise_are_reported():
    """If every sample occurs four times recall is 0; if every real row does the other three figures are 0."""
    rng = torch.Generator().manual_seed(0)
    real, samples = (torch.randn(200, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    four = samples[:50].repeat(4, 1)
    assert precision_recall(real, samples, 3).recall > 0.8 and precision_recall(real, four, 3).recall == 0
    doubled = real[:50].repeat(6, 1)
    assert precision_recall(doubled, samples, 3).precision == 0 and density_coverage(doubled, samples, 5) == (0, 0)
    assert [count_repeated(x) for x in (samples, four, doubled)] == [0, 150, 250]
    assert count_repeated(torch.tensor([[1, 2], [2, 1], [1, 2]], dtype=torch.uint8)) == 1
    noise = 100 * torch.randn(200, 2, generator=rng, dtype=torch.float64)
    of_noise = precision_recall(real, noise, 3)
    assert of_noise.precision < MIN_PRECISION and of_noise.recall > 0.9
    notes = quality_notes(of_noise.precision, (150, 200), (0, 200))
    assert len(notes) == 2 and "150 of 200 samples" in notes[0] and "recall is not meaningful" in notes[1]
    assert quality_notes(MIN_PRECISION, (0, 200), (0, 200)) == []
    assert "precision, density and coverage" in quality_notes(0.5, (0, 200), (3, 200))[0]
