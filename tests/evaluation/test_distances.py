"""Distances between sets of samples: against closed forms, and against SciPy in one dimension."""

import math

import numpy
import pytest
import torch
from scipy.stats import energy_distance as scipy_energy
from scipy.stats import wasserstein_distance

from diffguide.evaluation import covariance_error, energy_distance, mean_error, sliced_wasserstein, wasserstein
from diffguide.evaluation.quality.distances import deviation_ratio, directions
from diffguide.evaluation.quality.oracle_distances import NUM_EXACT_SETS, compare_with_oracle, select_compared
from diffguide.oracles import Empirical, GaussianMixture
from diffguide.schedules import EDM


def normal(n: int, dimensions: int, seed: int) -> torch.Tensor:
    return torch.randn(n, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frames(dimensions: int) -> torch.Tensor:
    return directions(dimensions, 64, torch.Generator().manual_seed(0))


DISTANCES = {
    "wasserstein": wasserstein,
    "sliced": lambda x, y: sliced_wasserstein(x, y, frames(x.shape[1])),
    "energy": energy_distance,
}


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_symmetric_zero_at_equality_and_blind_to_order(distance):
    x, y = normal(120, 3, 0), 0.5 + 2 * normal(120, 3, 1)
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-10) and distance(x, y) > 0.1
    assert distance(x, x.flip(0)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
@pytest.mark.parametrize("factor", [0.01, 3.0])
def test_distances_scale_with_the_samples(distance, factor):
    """All three are lengths."""
    x, y = normal(100, 2, 0), 1 + normal(100, 2, 1)
    assert distance(factor * x, factor * y) == pytest.approx(factor * distance(x, y), rel=1e-8)


@pytest.mark.parametrize("dimensions", [1, 2, 5, 64, 100])
def test_a_shift_has_a_known_distance(dimensions):
    """W_2 of a shift by d is |d|; the sliced distance, with a complete frame of directions, is |d| / sqrt(D)."""
    x, shift = normal(60, dimensions, 0), torch.linspace(0.1, 1.0, dimensions, dtype=torch.float64)
    assert wasserstein(x + shift, x) == pytest.approx(shift.norm().item(), rel=1e-9)
    expected = shift.norm().item() / math.sqrt(dimensions)
    rel = 1e-9 if dimensions <= 64 else 0.3  # 64 of 100 orthonormal vectors
    assert sliced_wasserstein(x + shift, x, frames(dimensions)) == pytest.approx(expected, rel=rel)


def test_directions_are_unit_vectors_in_frames():
    for dimensions, count in ((1, 64), (2, 64), (5, 65), (64, 64), (100, 64)):
        u = frames(dimensions)
        assert u.shape == (count, dimensions)
        frame = u[: min(dimensions, 64)]
        torch.testing.assert_close(frame @ frame.mT, torch.eye(len(frame), dtype=torch.float64), rtol=0, atol=1e-12)


def test_in_one_dimension_the_assignment_is_by_sorting():
    """W_2 is that of the sorted samples, and at least the W_1 of SciPy."""
    x, y = normal(300, 1, 0), 0.3 + 2 * normal(300, 1, 1)
    expected = math.sqrt(((numpy.sort(x[:, 0]) - numpy.sort(y[:, 0])) ** 2).mean())
    assert wasserstein(x, y) == pytest.approx(expected, rel=1e-9)
    assert sliced_wasserstein(x, y, frames(1)) == pytest.approx(expected, rel=1e-9)
    assert wasserstein(x, y) >= wasserstein_distance(x[:, 0], y[:, 0])


def test_the_energy_distance_is_that_of_scipy_in_one_dimension():
    """SciPy's is its square root; also for sets of different sizes."""
    for n, m in ((200, 200), (150, 70)):
        x, y = normal(n, 1, 0), 0.3 + 2 * normal(m, 1, 1)
        assert energy_distance(x, y) == pytest.approx(scipy_energy(x[:, 0], y[:, 0]) ** 2, rel=1e-9)


def test_energy_distance_of_two_gaussians():
    """In one dimension 2 E|X - Y| - E|X - X'| - E|Y - Y'| of N(m, 1) and N(0, 1), with E|N(m, 2)| in closed form."""
    n, m = 4000, 1.5
    folded = 2 / math.sqrt(math.pi) * math.exp(-m * m / 4) + m * math.erf(m / 2)
    exact, inside = 2 * folded - 4 / math.sqrt(math.pi), 2 / math.sqrt(math.pi)
    found = energy_distance(m + normal(n, 1, 0), normal(n, 1, 1))
    assert found == pytest.approx(exact + 2 / n * inside, abs=0.04)  # the pairs i = i count 0


def test_wasserstein_of_two_gaussians():
    """|m|^2 + |S^(1/2) - I|_F^2 for N(m, S) and N(0, I) with S diagonal, up to the error of 1000 samples."""
    std = torch.tensor([2.0, 0.5], dtype=torch.float64)
    expected = math.sqrt(9 + 1 + 0.25)
    shift = torch.tensor([3.0, 0.0], dtype=torch.float64)
    assert wasserstein(shift + std * normal(1000, 2, 0), normal(1000, 2, 1)) == pytest.approx(expected, rel=0.03)


def test_sets_of_different_sizes_raise():
    with pytest.raises(ValueError, match="got 5 and 4"):
        wasserstein(normal(5, 2, 0), normal(4, 2, 0))
    with pytest.raises(ValueError, match="got 5 and 4"):
        sliced_wasserstein(normal(5, 2, 0), normal(4, 2, 0), frames(2))


def test_moments_are_in_the_truths_deviations():
    """A coordinate that is constant in the truth has the unit of the largest standard deviation."""
    truth = normal(5000, 3, 0) * torch.tensor([10.0, 0.1, 0.0], dtype=torch.float64)
    s = truth.std(0, correction=0)
    shift = torch.tensor([2.0, 0.3, 0.0], dtype=torch.float64)
    expected = math.sqrt(((2 / s[0]) ** 2 + (0.3 / s[1]) ** 2) / 3)
    assert mean_error(truth + shift, truth) == pytest.approx(expected, rel=1e-9)
    off = torch.tensor([0.0, 0.0, 5.0], dtype=torch.float64)
    assert mean_error(truth + off, truth) == pytest.approx(5 / s[0].item() / math.sqrt(3), rel=1e-9)
    wider = truth * torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)  # Cov_00 is 4 times as large, Cov_01 twice
    correlation = (truth[:, 0] * truth[:, 1]).mean() - truth[:, 0].mean() * truth[:, 1].mean()
    correlation = (correlation / s[0] / s[1]).item()
    assert covariance_error(wider, truth) == pytest.approx(math.sqrt((9 + 2 * correlation**2) / 9), rel=1e-6)


def test_the_deviation_ratio_is_the_unbiased_spread_within_classes():
    """Against a loop over classes; it does not depend on the class means, and is nan for classes of one sample."""
    y = torch.tensor([0, 1, 1, -1] * 50)
    truth = normal(200, 3, 0) + 9 * y[:, None]
    x = 0.4 * (truth - 9 * y[:, None]) - 50 * y[:, None]
    assert deviation_ratio(x, truth, y, y) == pytest.approx(0.4, rel=1e-12)
    other, z = normal(77, 3, 1), torch.arange(77) % 4
    sums = [
        sum(((part - part.mean(0)) ** 2).sum() for label in set(labels.tolist()) for part in [data[labels == label]])
        / (len(data) - len(set(labels.tolist())))
        for data, labels in ((other, z), (truth, y))
    ]
    assert deviation_ratio(other, truth, z, y) == pytest.approx(math.sqrt(sums[0] / sums[1]), rel=1e-12)
    assert math.isnan(deviation_ratio(other[:4], truth, z[:4], y)) and math.isnan(deviation_ratio(x, 0 * truth, y, y))


@pytest.fixture
def pair() -> GaussianMixture:
    """Two classes far apart, of standard deviation 0.1."""
    return GaussianMixture([1.0, 3.0], [[-2.0, 0.0], [2.0, 0.0]], 0.01, [0, 1], EDM(12.0, -8.0))


def plain(x: torch.Tensor) -> torch.Tensor:
    return x


def test_exact_samples_lie_at_their_floor(pair):
    """For every distance, over all classes and per class; their mean log-density is that of the law."""
    labels = [k % 2 for k in range(400)]
    x = pair.sample(400, torch.Generator().manual_seed(9), torch.tensor(labels))[0]
    found = compare_with_oracle(pair, x, labels, pair.class_names, 0, plain)
    for name in ("wasserstein_2", "sliced_wasserstein_2", "energy_distance"):
        for part in (found[name], *found[name]["per_class"].values()):
            assert part["distance"] < 2 * part["floor"] and part["repetitions"] == NUM_EXACT_SETS
        assert found[name]["per_class"].keys() == {"0", "1"} and found[name]["per_class"]["1"]["n"] == 200
    assert found["moments"]["mean"]["error"] < 0.1 and found["moments"]["covariance"]["error"] < 0.1
    exact = math.log(1 / (2 * math.pi * 0.01)) - 1  # minus the entropy of a Gaussian of two dimensions
    assert found["log_density"]["samples"] == pytest.approx(exact, abs=0.2)
    assert found["log_density"]["exact"] == pytest.approx(exact, abs=0.1)
    assert found["not_finite"] == 0


def test_exact_log_density_is_that_of_the_end_of_the_schedule():
    """An empirical law has only the noise at t = 0: its mean log-density is minus the entropy of that noise."""
    data = torch.tensor([[-2.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    oracle, labels = Empirical(data, torch.tensor([0, 1]), EDM(9.0, -8.0), 0.0), [k % 2 for k in range(400)]
    x = oracle.sample(400, torch.Generator().manual_seed(9), torch.tensor(labels))[0]
    found = compare_with_oracle(oracle, x, labels, oracle.class_names, 0, plain)["log_density"]
    assert found["exact"] == pytest.approx(-math.log(2 * math.pi) + 9 - 1, abs=0.1)
    assert found["samples"] == pytest.approx(-math.log(2 * math.pi) + 9, abs=1e-6)  # of the points without noise


def test_a_wrong_class_is_far_away(pair):
    """Samples of class 1 with label 0 have the distance 4; swapped labels change only the distances per class."""
    x = pair.sample(300, torch.Generator().manual_seed(9), torch.ones(300).long())[0]
    assert compare_with_oracle(pair, x, [0] * 300, pair.class_names, 0, plain)["wasserstein_2"][
        "distance"
    ] == pytest.approx(4, rel=0.02)
    labels = [k % 2 for k in range(300)]
    x = pair.sample(300, torch.Generator().manual_seed(9), 1 - torch.tensor(labels))[0]
    found = compare_with_oracle(pair, x, labels, pair.class_names, 0, plain)["wasserstein_2"]
    assert found["distance"] < 2 * found["floor"]
    assert all(part["distance"] == pytest.approx(4, rel=0.02) for part in found["per_class"].values())


def test_no_labels_have_no_classes_and_the_laws_own_shares(pair):
    x = pair.sample(300, torch.Generator().manual_seed(9))[0]
    found = compare_with_oracle(pair, x, [-1] * 300, pair.class_names, 0, plain)
    assert found["wasserstein_2"]["per_class"] == {} and found["moments"]["mean"]["error"] < 0.15
    even = pair.sample(300, torch.Generator().manual_seed(9), torch.arange(300) % 2)[0]  # equal shares instead of 1 : 3
    assert compare_with_oracle(pair, even, [-1] * 300, pair.class_names, 0, plain)["moments"]["mean"]["error"] > 0.4


def test_samples_that_are_not_finite_have_the_distance_nan(pair):
    x = normal(50, 2, 0)
    x[3, 1] = math.inf
    found = compare_with_oracle(pair, x, [0, 1] * 25, pair.class_names, 0, plain)
    assert found["not_finite"] == 1 and math.isnan(found["wasserstein_2"]["distance"])
    assert found["wasserstein_2"]["floor"] > 0 and found["wasserstein_2"]["per_class"]["0"]["distance"] > 1


def test_the_compared_subset_has_all_classes():
    """For labels in turn or in blocks the compared samples have the same shares of classes."""
    chosen = torch.tensor(select_compared(100000, 2, 0))
    assert len(chosen) == 20000 and len(chosen.unique()) == 20000 and bool((chosen[1:] > chosen[:-1]).all())
    for labels in (chosen % 4, chosen // 25000):
        assert (labels.bincount() / 20000).tolist() == pytest.approx([0.25] * 4, abs=0.02)
    assert select_compared(7, 2, 0) == list(range(7)) and len(select_compared(10**6, 3072, 0)) == 1365
