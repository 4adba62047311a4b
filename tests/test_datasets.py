"""Data sets: their facts, their splits, and the law of the synthetic one."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from diffguide.datasets import GMM2D, Digits


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(channels=1, size=8, num_classes=10)


def test_digits_are_split_in_the_order_of_the_file(digits):
    splits = digits.train, digits.validation, digits.test
    assert [len(split.x) for split in splits] == [len(split.y) for split in splits] == [1000, 350, 447]
    images, labels = load_digits(return_X_y=True)
    x, y = (torch.cat(parts).numpy() for parts in zip(*splits))
    np.testing.assert_array_equal(x.reshape(1797, 64), images / 8 - 1)  # eighths are exact in float32
    np.testing.assert_array_equal(y, labels)


def test_digits_have_the_form_of_images(digits):
    x, y = digits.train
    assert digits.shape == (1, 8, 8) and x.dtype == torch.float32 and y.dtype == torch.long
    assert float(x.min()) == -1 and float(x.max()) == 1
    assert digits.class_names == tuple("0123456789") and set(y.tolist()) == set(range(10))


@pytest.mark.parametrize("fact, stated, found", [("channels", 3, 1), ("size", 28, 8), ("num_classes", 2, 10)])
def test_digits_refuse_other_facts(fact, stated, found):
    facts = {"channels": 1, "size": 8, "num_classes": 10} | {fact: stated}
    with pytest.raises(ValueError, match=f"dataset.{fact} is {stated}, but digits has {found}"):
        Digits(**facts)


def gmm2d(n=40000, seed=0, **facts) -> GMM2D:
    return GMM2D(**{"channels": 2, "size": None, "num_classes": 4} | facts, train=n, validation=30, test=20, seed=seed)


def test_gmm2d_has_its_facts():
    data = gmm2d(100)
    assert [tuple(split.x.shape) for split in (data.train, data.validation, data.test)] == [(100, 2), (30, 2), (20, 2)]
    assert data.shape == (2,) and data.class_names == tuple("0123")
    assert data.train.x.dtype == torch.float32 and data.train.y.dtype == torch.long


def test_gmm2d_is_eight_gaussians_in_pairs():
    """n = 40000, 5000 to a component: weight, mean, standard deviation and correlation within 4.5 standard errors."""
    x, y = (part.numpy() for part in gmm2d().train)
    angles = 2 * np.pi / 8 * np.arange(8)
    means = 1.3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    nearest = ((x[:, None] - means) ** 2).sum(-1).argmin(1)  # neighbours are 6.6 deviations apart: 1 in 1000 is wrong
    for k in range(8):
        near = x[nearest == k]
        assert abs(len(near) / 40000 - 1 / 8) < 4.5 * math.sqrt(7 / 64 / 40000)
        assert np.all(np.abs(near.mean(0) - means[k]) < 4.5 * 0.15 / math.sqrt(len(near)))
        assert np.all(np.abs(near.std(0) / 0.15 - 1) < 0.04)  # 1 % of statistics, and what the cut takes
        assert abs(np.corrcoef(near.T)[0, 1]) < 0.07
        assert np.mean(y[nearest == k] == k // 2) > 0.99


def test_gmm2d_is_a_function_of_its_seed():
    first, again, other = (gmm2d(50, seed) for seed in (0, 0, 1))
    for a, b, c in zip((first.train, first.test), (again.train, again.test), (other.train, other.test)):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and not torch.isclose(a.x, c.x).all()
    assert not torch.equal(first.train.y[:20], first.test.y), "the splits are different draws"


@pytest.mark.parametrize("fact, stated, found", [("channels", 3, 2), ("size", 8, None), ("num_classes", 8, 4)])
def test_gmm2d_refuses_other_facts(fact, stated, found):
    with pytest.raises(ValueError, match=f"dataset.{fact} is {stated}, but gmm2d has {found}"):
        gmm2d(10, **{fact: stated})
