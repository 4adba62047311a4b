"""Frechet distance, KID, inception score: closed forms, public implementations, and their standard errors by repetition."""

import math

import numpy
import pytest
import torch
from scipy.linalg import sqrtm

from diffguide.evaluation.quality.frechet import (
    Moments,
    distance_of_halves,
    frechet_distance,
    jackknife,
    merge_moments,
    rescale_floor,
)
from diffguide.evaluation.quality.kid import inception_score, kernel_distance, squared_mmd
from diffguide.evaluation.quality.precision_recall import precision_recall


def normal(n: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed(n: int, width: int, seed: int) -> torch.Tensor:
    """Features that are correlated, have several scales, and are not centred."""
    return (
        normal(n, width, seed) @ (normal(width, width, 99) * torch.linspace(0.1, 2, width, dtype=torch.float64)) + seed
    )


def moments(x: torch.Tensor) -> Moments:
    return Moments(x.shape[1]).add(x)


def test_moments_in_batches_are_those_of_all():
    """Also with a mean far from zero, where sums of squares lose all digits; an empty batch has no effect."""
    x = mixed(500, 6, 1) + 1e7
    batched = Moments(6)
    for part in x.split([1, 200, 0, 99, 200]):
        batched.add(part)
    assert batched.n == 500
    assert torch.allclose(batched.mean, x.mean(0), rtol=1e-15)
    expected = numpy.cov((x - 1e7).numpy(), rowvar=False)
    assert numpy.abs(batched.covariance.numpy() - expected).max() < 1e-7 * numpy.abs(expected).max()
    both = moments(x[:123]) + moments(x[123:])
    assert torch.allclose(both.covariance, batched.covariance, rtol=1e-9)


def gaussian(mean: list, covariance: torch.Tensor, n: int = 101) -> Moments:
    law = Moments(len(mean))
    law.n, law.mean = n, torch.tensor(mean, dtype=torch.float64)
    law.scatter = covariance.double() * (n - 1)
    return law


def test_the_distance_of_gaussians_whose_axes_agree():
    """sum_i (m_i - m'_i)^2 + (s_i - s'_i)^2, also with standard deviations of zero."""
    x = gaussian([1.0, 0.0, 2.0], torch.diag(torch.tensor([4.0, 9.0, 0.0])))
    y = gaussian([0.0, 0.0, 2.0], torch.diag(torch.tensor([1.0, 0.0, 0.0])))
    assert frechet_distance(x, y) == pytest.approx(1 + 1 + 9, rel=1e-12)


def test_the_distance_by_another_root():
    x, y = moments(mixed(300, 8, 1)), moments(2 * mixed(200, 8, 2))
    root = sqrtm((x.covariance @ y.covariance).numpy()).real
    expected = (x.mean - y.mean).square().sum() + x.covariance.trace() + y.covariance.trace() - 2 * root.trace()
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-10)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-12)


def test_singular_covariances_lose_no_digits():
    """Fewer examples than features: the distance of a set to itself is 0, and that of a shift is exact."""
    x = mixed(20, 64, 3)
    scale = float(moments(x).covariance.trace())
    assert frechet_distance(moments(x), moments(x)) < 1e-12 * scale
    assert frechet_distance(moments(x), moments(x + 0.5)) == pytest.approx(64 * 0.25, rel=1e-9)


def test_the_figures_are_those_of_torch_fidelity():
    """On the same features, to 1e-6; KID with subsets that are the whole sets."""
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    x, y = mixed(400, 24, 1), 1.1 * mixed(400, 24, 1)[torch.randperm(400)] + 0.2 * mixed(400, 24, 2)
    stats = [metric_fid.fid_features_to_statistics(part) for part in (x, y)]
    theirs = metric_fid.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    own = frechet_distance(moments(x), moments(y))
    assert own == pytest.approx(theirs, rel=1e-6)
    theirs = metric_kid.kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=400, verbose=False)
    assert squared_mmd(x, y) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert kernel_distance(x, y, 3, 400, 0).value == pytest.approx(squared_mmd(x, y), rel=1e-9)
    logits = 3 * normal(403, 7, 5)
    theirs = metric_isc.isc_features_to_metric(logits, splits=10, shuffle=False)
    found = inception_score(logits, 10)
    assert found.value == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert found.error * math.sqrt(10 - 1) == pytest.approx(theirs["inception_score_std"], rel=1e-6)
    real, samples = normal(300, 4, 1), 1.5 * normal(280, 4, 2) + 0.5
    theirs = metric_prc.prc_features_to_metric(
        samples, real, prc_neighborhood=3, prc_batch_size=150, save_cpu_ram=True, verbose=False
    )
    own = precision_recall(real, samples, 3)
    assert own == pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-6) and 0.1 < min(own) <= max(own) < 1


def test_the_inception_score_is_between_1_and_the_number_of_classes():
    """K for certain and equally frequent classes, 1 for equal predictions."""
    certain = 1000.0 * torch.eye(5, dtype=torch.float64).repeat(6, 1)
    assert inception_score(certain, 3).value == pytest.approx(5)
    assert inception_score(normal(1, 5, 0).expand(30, 5), 3) == pytest.approx((1, 0), abs=1e-9)
    assert inception_score(certain, 1).error is None


@pytest.mark.parametrize("splits", [2, 5])
def test_the_error_of_the_inception_score_is_its_spread_over_draws(splits):
    """Over 300 sets of logits of one law, also with few splits, where the biased std is too small."""
    drawn = torch.tensor([inception_score(2 * normal(100, 5, seed), splits) for seed in range(300)]).double()
    values, errors = drawn.T
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.2)


def groups(x: torch.Tensor) -> list[Moments]:
    return [moments(x[k::10]) for k in range(10)]


def test_the_error_of_the_distance_is_its_spread_over_draws():
    """Over 150 sets of one law: the mean of the jackknife error is the standard deviation."""
    reference = moments(mixed(5000, 3, 7))
    drawn = [jackknife(groups(sample(seed)), reference) for seed in range(150)]
    values, errors = torch.tensor(drawn, dtype=torch.float64).T
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.25)
    whole = frechet_distance(moments(sample(0)), reference)
    assert drawn[0][0] == pytest.approx(whole, rel=1e-9)


def sample(seed: int) -> torch.Tensor:
    return normal(200, 3, 1000 + seed) @ torch.diag(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)) + 7


def test_halves_are_the_bias_of_finite_sets():
    """d (1/n + 1/m) (1 + (d + 1) / 4) for unit Gaussians: .168 for halves of 1000, .084 rescaled to twice 2000."""
    value, spread, half = distance_of_halves(groups(normal(2000, 16, 3)), 0)
    assert half == 1000 and value == pytest.approx(0.168, rel=0.1) and 0 < spread < 0.03
    assert rescale_floor(value, half, 2000, 2000) == pytest.approx(value / 2)
    assert rescale_floor(value, half, 500, 10**12) == pytest.approx(value, rel=1e-6)
    first, second = (
        frechet_distance(moments(normal(2000, 16, seed)), moments(normal(2000, 16, seed + 1))) for seed in (5, 7)
    )
    assert (first + second) / 2 == pytest.approx(rescale_floor(value, half, 2000, 2000), rel=0.15)


def kids(shift: float) -> torch.Tensor:
    """(value, error) for 100 pairs of sets that differ by a shift, [2, 100]."""
    pairs = ((normal(120, 4, seed), normal(120, 4, 500 + seed) + shift) for seed in range(100))
    found = [kernel_distance(x, y, 20, 60, seed) for seed, (x, y) in enumerate(pairs)]
    return torch.tensor(found, dtype=torch.float64).T


def test_kid_is_unbiased_and_its_error_is_its_spread():
    """For sets of one law its mean is 0, and the error is too large."""
    values, errors = kids(0.0)
    assert abs(float(values.mean())) < 3 * float(values.std()) / 10
    assert float(values.std()) < float(errors.mean()) < 2.2 * float(values.std())
    values, errors = kids(1.0)
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.3)
    x, y = normal(120, 4, 1), normal(150, 4, 2) + 1
    found = kernel_distance(x, y, 200, 40, 0)
    assert found.value == pytest.approx(squared_mmd(x, y), rel=0.15) and found.value > 4 * found.error
    assert kernel_distance(x, y, 5, 120, 0).error is None


def test_the_error_of_kid_from_few_subsets_is_its_spread():
    """For one pair of sets the spread is due to the draw of four small subsets."""
    x, y = normal(1000, 4, 1), normal(1000, 4, 2) + 1
    values, errors = torch.tensor([kernel_distance(x, y, 4, 10, seed) for seed in range(150)]).double().T
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.25)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: kernel_distance(normal(9, 2, 0), normal(9, 2, 1), 3, 10, 0), "2 to 9"),
        (lambda: inception_score(normal(9, 2, 0), 10), "1 to 9 splits"),
        (lambda: frechet_distance(moments(normal(9, 2, 0)), moments(normal(9, 3, 0))), "width, got 2 and 3"),
        (lambda: frechet_distance(moments(normal(1, 2, 0)), moments(normal(9, 2, 0))), "got 1"),
    ],
)
def test_sets_that_are_too_small_or_of_different_widths_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_groups_in_any_order_are_the_whole():
    x = mixed(95, 5, 2)
    assert merge_moments(groups(x)).n == 95
    assert torch.allclose(merge_moments(groups(x)[::-1]).covariance, moments(x).covariance, rtol=1e-12)
