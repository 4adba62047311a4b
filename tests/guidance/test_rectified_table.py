"""ReCFG's table against sums in NumPy and the closed form of Gaussians."""

import numpy as np
import pytest
import torch
from closed_forms import Mixture
from exact_models import oracle
from rule_sides import every_schedule
from two_class_points import EVERYWHERE, exact, t, x, y

from diffguide.datasets.base import Dataset, Split
from diffguide.guidance import ClassifierFree, RectifiedTable
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.samplers import Heun
from diffguide.samplers.grids import UniformLogSNR
from diffguide.schedules import Cosine


def points(n: int, variances=(1.0, 1.0), means=(0.0, 0.0), seed=3) -> Dataset:
    """n examples of each of two classes, on the plane."""
    rng = torch.Generator().manual_seed(seed)
    parts = [
        mean + var**0.5 * torch.randn(n, 2, generator=rng, dtype=torch.float64) for mean, var in zip(means, variances)
    ]
    split = Split(torch.cat(parts), torch.arange(2).repeat_interleave(n))
    return Dataset(split, split, split, class_names=("a", "b"))


@every_schedule
def test_the_table_is_the_authors_sums(schedule):
    """calculate_lookup.py: sum c u / sum u^2 over noised examples of each class; then w c + (1 - w) r u."""
    data, w = points(5), 3.0
    guided = RectifiedTable(exact(schedule), w, EVERYWHERE, data, 5)
    alpha, sigma = (float(a) for a in schedule.alpha_sigma(t))
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ratios = []
    for label in (0, 1):
        noised = alpha * data.train.x[5 * label : 5 * label + 5] + sigma * noise
        c, u = (exact(schedule)(noised, t, some).eps.numpy() for some in (torch.full((5,), label), None))
        ratios.append((c * u).sum(0) / (u * u).sum(0))
    labels = torch.tensor([0, 1, 0, 1, -1, 0, 0, 1])
    r = np.stack([ratios[k] if k >= 0 else np.ones(2) for k in labels.tolist()])
    c, u = (exact(schedule)(x, t, some).eps.numpy() for some in (labels, None))
    found = guided(x, t, labels)
    np.testing.assert_allclose(found.eps, w * c + (1 - w) * r * u, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(alpha * found.x_0 + sigma * found.eps, x, rtol=1e-6, atol=1e-6)
    rows = guided(x, t.expand(8), labels)
    torch.testing.assert_close(rows.eps, found.eps, rtol=1e-10, atol=1e-10)


def test_an_exact_model_has_a_mean_of_0_and_the_closed_form():
    """One Gaussian per class at the same mean, equal weights: E[c] = 0, and r by a sum over a grid of the line."""
    schedule, variances = Cosine(12.0, -10.0), (0.2, 1.5)
    law = oracle(Mixture([0.5, 0.5], np.zeros((2, 2)), [v * np.eye(2) for v in variances], [0, 1]), schedule)
    guided = RectifiedTable(law, 2.0, EVERYWHERE, points(4000, variances), 4000)
    alpha, sigma = (float(a) for a in schedule.alpha_sigma(t))
    noised = alpha * guided.examples[0] + sigma * guided.noise
    c = law(noised, t, torch.zeros(4000, dtype=torch.long)).eps
    assert float(c.mean(0).abs().max()) < 4 * float(c.std()) / 4000**0.5
    z = np.linspace(-8, 8, 401)
    grid = np.stack(np.meshgrid(z, z), -1).reshape(-1, 2)
    totals = [alpha**2 * v + sigma**2 for v in variances]
    densities = [np.exp(-(grid**2).sum(1) / (2 * v)) / (2 * np.pi * v) for v in totals]
    share = densities[0] / (densities[0] + densities[1])
    u = sigma * grid * (share / totals[0] + (1 - share) / totals[1])[:, None]
    for label in (0, 1):
        weight = densities[label][:, None] / densities[label].sum()
        expected = (weight * sigma * grid / totals[label] * u).sum(0) / (weight * u**2).sum(0)
        np.testing.assert_allclose(guided.ratio(t, x)[label], expected, rtol=0.02)


def test_scale_1_is_off_and_a_table_is_computed_once():
    counter = EvaluationCounter(exact())
    assert torch.equal(RectifiedTable(counter, 1.0, EVERYWHERE, points(5), 5)(x, t, y).x_0, exact()(x, t, y).x_0)
    assert counter.tally.evaluations == 8
    guided = RectifiedTable(counter, 3.0, EVERYWHERE, points(5), 5)
    sampler = Heun(4, UniformLogSNR())
    ends = [sampler(guided, x[rows], sampler.times(guided), y[rows]) for rows in (slice(8), slice(3))]
    torch.testing.assert_close(ends[1], ends[0][:3], rtol=1e-9, atol=1e-9)
    assert (
        counter.tally.evaluations == 8 + 4 * (16 + 6) + 4 * 20
    )  # four levels, each of them of 2 classes, 5 examples, 2 sides
    plain = sampler(ClassifierFree(exact(), 3.0), x, sampler.times(guided), y)
    assert float((plain - ends[0]).abs().max()) > 1e-3


@pytest.mark.parametrize("make, sentence", [
    (lambda: RectifiedTable(exact()), "the dataset's 10 classes, this one has 2"),
    (lambda: RectifiedTable(exact(), dataset=points(5), count=6), "count must be at most 5"),
    (lambda: RectifiedTable(exact(Cosine(12.0, -float("inf"))), dataset=points(5), count=5), "zero terminal SNR"),
])  # fmt: skip
def test_what_does_not_fit(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
