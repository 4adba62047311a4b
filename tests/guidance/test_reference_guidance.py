"""Reference guidance against the paper's formula in NumPy."""

import numpy as np
import pytest
import torch
from rule_sides import every_schedule
from two_class_points import EVERYWHERE, either_time, exact, t, x, y

from diffguide.guidance import DatasetReferences, FileReferences, LinearRamp, ReferenceGuidance, References
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.oracles import Empirical
from diffguide.samplers import Heun
from diffguide.samplers.grids import UniformLogSNR


def references(n=3) -> References:
    made = References()
    made.examples = torch.randn(n, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return made


@every_schedule
@either_time
@pytest.mark.parametrize("beta", [0.1, 0.6])
def test_it_is_the_papers_formula(schedule, t, beta):
    """v + beta (mu - D) / (1 - tau) of the flow, mu = sum_i softmax(-|x_t - alpha d_i|^2 / (2 sigma^2)) d_i."""
    d, (alpha, sigma) = references().examples.numpy(), (float(a) for a in schedule.alpha_sigma(t.flatten()[0]))
    side = exact(schedule)(x, t, y)
    squares = ((x.numpy()[:, None] - alpha * d) ** 2).sum(2) / (2 * sigma**2)
    weights = np.exp(squares.min(1, keepdims=True) - squares)
    mu = weights @ d / weights.sum(1, keepdims=True)
    tau = alpha / (alpha + sigma)
    v = (side.x_0 - side.eps).numpy() + beta * (mu - side.x_0.numpy()) / (1 - tau)
    found = ReferenceGuidance(exact(schedule), references(), 1 - beta)(x, t, y)
    np.testing.assert_allclose(found.x_0 - found.eps, v, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(alpha * found.x_0 + sigma * found.eps, x, rtol=1e-8, atol=1e-8)


def test_scale_1_is_the_model_and_0_the_references():
    counter = EvaluationCounter(exact())
    one = ReferenceGuidance(counter, references(), 1.0)(x, t, y)
    assert torch.equal(one.x_0, exact()(x, t, y).x_0)
    zero = ReferenceGuidance(counter, references(), 0.0)(x, t, y)
    law = Empirical(references().examples, torch.zeros(3, dtype=torch.long), exact().schedule)
    torch.testing.assert_close(zero.x_0, law(x, t).x_0)
    assert counter.tally.evaluations == 8


def test_a_run_without_labels_towards_one_reference():
    """With scale 0 at low noise levels every sample ends at the reference."""
    sampler = Heun(12, UniformLogSNR())
    guided = ReferenceGuidance(exact(), references(1), 0.0, EVERYWHERE, ramp=LinearRamp(80.0, 0.5))
    end = sampler(guided, x, sampler.times(guided), None)
    torch.testing.assert_close(end, references(1).examples.expand(8, 2), rtol=0.05, atol=0.05)


def test_examples_of_a_class_and_of_a_file(tmp_path):
    digits = DatasetReferences(label=3, count=4).examples
    assert digits.shape == (4, 1, 8, 8) and digits.dtype == torch.float64 and float(digits.abs().max()) <= 1
    np.savez(tmp_path / "some.npz", references().examples.numpy())
    assert torch.equal(FileReferences(str(tmp_path / "some.npz")).examples, references().examples)


@pytest.mark.parametrize("make, sentence", [
    (lambda: DatasetReferences(count=10**6), "count must be at most"),
    (lambda: DatasetReferences(count=0), "count must be a whole number"),
    (lambda: ReferenceGuidance(exact(shape=(2,)), DatasetReferences()), r"shape of the data \[2\], got \[1, 8, 8\]"),
])  # fmt: skip
def test_what_does_not_fit(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
