"""Decompositions of a batch equal those of NumPy; a non-finite matrix does not affect the others."""

import numpy as np
import pytest
import torch
from closed_forms import two_classes

from diffguide.oracles import GaussianMixture
from diffguide.randomness import Noise
from diffguide.runtime.linear_algebra import leading_right_vector, symmetric_root
from diffguide.samplers import ExactDDPM
from diffguide.samplers.grids import UniformT
from diffguide.schedules import Cosine


def matrices(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_matrix_does_not_affect_the_others(value):
    rows, square = matrices(4, 2, 7), matrices(4, 3, 3)
    covariances = square @ square.mT
    rows[2, 0, 5], covariances[1, 2, 2] = value, value
    vectors, roots = leading_right_vector(rows), symmetric_root(covariances)
    assert bool(vectors[2].isnan().all()) and bool(roots[1].isnan().all())
    for k in (0, 1, 3):
        expected = np.linalg.svd(rows[k])[2][0]
        assert abs(float(vectors[k] @ expected)) == pytest.approx(1, abs=1e-12)
    for k in (0, 2, 3):
        np.testing.assert_allclose(roots[k] @ roots[k].mT, covariances[k], rtol=1e-10, atol=1e-12)
        assert torch.equal(roots[k], symmetric_root(covariances[k : k + 1])[0])


def test_a_singular_covariance_has_a_root():
    root = symmetric_root(torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64))[None])
    np.testing.assert_allclose(root @ root.mT, [[[4.0, 0.0], [0.0, 0.0]]], atol=1e-15)


def test_exact_ancestral_sampling_of_a_batch_with_a_diverged_sample():
    """The other samples are the same as in a batch without it, to the rounding of products of other batch sizes."""
    truth, schedule = two_classes(), Cosine(12.0, -10.0)
    law = GaussianMixture(truth.weights, truth.means, truth.covariances, truth.labels, schedule)
    sampler, ends = ExactDDPM(3, UniformT()), []
    for rows in ([0, 1, 2], [0, 2]):
        x = matrices(3, 2)
        x[1] = np.nan
        noise = Noise(rows, (2,), schedule, dtype=torch.float64)
        ends.append(sampler(law, x[rows], sampler.times(law), None, noise))
    torch.testing.assert_close(ends[0][[0, 2]], ends[1], rtol=1e-12, atol=1e-12)
    assert bool(ends[0][1].isnan().all())
