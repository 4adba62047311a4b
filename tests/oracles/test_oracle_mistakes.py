"""Arguments and conditions that a Gaussian mixture rejects, each in one line."""

import numpy as np
import pytest
import torch
from exact_models import SCHEDULES, points, time_of

from diffguide.backbones.conditions import Embedding
from diffguide.oracles import GaussianMixture

GOOD = {"weights": [1.0, 1.0], "means": [[0.0, 0.0], [1.0, 1.0]], "covariances": 0.1, "labels": [0, 1]}
MISTAKES = {
    "negative weight": ({"weights": [1.0, -1.0]}, "weights must be finite, at least 0"),
    "no weight": ({"weights": [0.0, 0.0]}, "weights must be finite, at least 0"),
    "too few weights": ({"weights": [1.0]}, r"means must be .* got \[2, 2\] and \[1\]"),
    "not finite": ({"means": [[0.0, float("nan")], [1.0, 1.0]]}, "means must be finite"),
    "beyond float32": ({"means": [[0.0, 1e200], [1.0, 1.0]]}, r"means must be .* got 1e\+200"),
    "infinite weight": ({"weights": [1.0, float("inf")]}, "weights must be finite"),
    "ragged": ({"means": [[0.0, 1.0], [1.0]]}, "means must be numbers in lists"),
    "flat means": ({"means": [0.0, 1.0]}, r"means must be \[K, D\]"),
    "shapes": ({"covariances": [[0.1, 0.1, 0.1]]}, r"covariances must be .* or \[2, 2, 2\]"),
    "three of two": ({"covariances": [0.1, 0.1, 0.1]}, r"covariances must be .* got \[3\]"),
    "skew": ({"covariances": [np.eye(2), [[1.0, 0.2], [0.1, 1.0]]]}, "component 1 is not symmetric"),
    "indefinite": ({"covariances": [np.eye(2), [[1.0, 2.0], [2.0, 1.0]]]}, "component 1 .* eigenvalue is -1"),
    "flat": ({"covariances": [np.eye(2), [[1.0, 3.0], [3.0, 9.0]]]}, "component 1 is not positive definite"),
    "no variance": ({"covariances": [0.1, 0.0]}, "component 1 .* eigenvalue is 0"),
    "negative label": ({"labels": [0, -1]}, "labels must lie in 0..0 .* got -1 to 0"),
    "label too large": ({"labels": [0, 2], "class_names": ["a", "b"]}, "labels must lie in 0..1 .* got 0 to 2"),
    "empty class": ({"labels": [0, 2]}, "class 1 has no component"),
    "too few labels": ({"labels": [0]}, r"labels must be 2 integers.* got \[1\]"),
    "labels that are floats": ({"labels": [0.0, 1.0]}, "labels must be 2 integers"),
}


@pytest.mark.parametrize("change, message", MISTAKES.values(), ids=MISTAKES)
def test_arguments_that_are_no_mixture_are_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as refused:
        GaussianMixture(**GOOD | change, schedule=SCHEDULES["edm"])
    assert "\n" not in str(refused.value)


INPUTS = {
    "shape": (points(2, 3), None, r"shape \[2\], got a batch \[2, 3\]"),
    "class": (points(2, 2), torch.tensor([0, 2]), "must lie in -1..1, got 0 to 2"),
    "below": (points(2, 2), torch.tensor([-2, 1]), "must lie in -1..1, got -2 to 1"),
    "rows": (points(2, 2), torch.tensor([0]), r"class indices \[2\]"),
    "embedding": (points(2, 2), Embedding(torch.zeros(2, 4)), "class indices .* got Embedding"),
}


@pytest.mark.parametrize("x, y, message", INPUTS.values(), ids=INPUTS)
def test_inputs_of_another_mixture_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**GOOD, schedule=SCHEDULES["edm"])(x, time_of(0.5), y)
