"""Rules of norms against their formulas in NumPy, and against the code of diffusers where that is installed."""

import math

import numpy as np
import pytest
import torch
from rule_sides import SCHEDULES, TIME, every_schedule, numbers, sides
from two_class_points import EVERYWHERE, exact

from diffguide.guidance import ClassifierFree, NormLimit, PosteriorMeanCap, RectifiedRatio
from diffguide.guidance.flow_rules import compute_flow
from diffguide.schedules import Cosine


def rows(function, *arrays):
    return np.stack([function(*parts) for parts in zip(*(a.numpy() for a in arrays))])


def apply(rule, scale, schedule, shape=(3, 2, 6, 8)):
    x_t, strong, weak = sides(schedule, shape)
    return x_t, strong, weak, rule(strong, weak, torch.tensor(scale, dtype=torch.float64), x_t, TIME, schedule, None)


@every_schedule
@pytest.mark.parametrize("scale", [0.0, 1.3, 9.0])
@pytest.mark.parametrize("growth", [1.0, 1.05, 1.5, math.inf])
def test_pmc_takes_the_largest_scale_whose_norm_is_allowed(schedule, scale, growth):
    """By bisection of |x_0| = growth |strong.x_0| on scale - 1 >= 0, without the root of the paper."""
    x_t, strong, weak, found = apply(PosteriorMeanCap(growth), scale, schedule)

    def formula(c, u):
        d, low, high = c - u, 0.0, scale - 1
        if scale <= 1 or growth == math.inf or np.linalg.norm(c + high * d) <= growth * np.linalg.norm(c):
            return c + (scale - 1) * d
        low = max(0.0, -(c * d).sum() / (d * d).sum())  # where the norm is least
        if np.linalg.norm(c + low * d) > growth * np.linalg.norm(c):
            raise AssertionError("the norm at 0 is allowed")
        for _ in range(200):
            middle = (low + high) / 2
            inside = np.linalg.norm(c + middle * d) <= growth * np.linalg.norm(c)
            low, high = (middle, high) if inside else (low, middle)
        return c + low * d

    expected = rows(formula, strong.x_0, weak.x_0)
    np.testing.assert_allclose(found.x_0, expected, rtol=1e-9, atol=1e-9)
    alpha, sigma = numbers(schedule)
    np.testing.assert_allclose(found.eps, (x_t.numpy() - alpha * expected) / sigma, rtol=1e-8, atol=1e-8)


def test_pmc_where_both_sides_agree():
    x_t, strong, _ = sides(SCHEDULES["vp"])
    found = PosteriorMeanCap()(strong, strong, torch.tensor(5.0).double(), x_t, TIME, SCHEDULES["vp"], None)
    assert torch.equal(found.x_0, strong.x_0)


PIPELINES = {  # the rule, and the pipeline's lines for packed velocities c and g, [positions, values]
    "qwen": (NormLimit(), lambda c, g: g * (size(c) / size(g))),
    "longcat": (NormLimit(least=0.2, most=1.0), lambda c, g: g * np.clip(size(c) / (size(g) + 1e-8), 0.2, 1.0)),
    "z_image": (
        NormLimit(None, 0.8, most=1.0),
        lambda c, g: g * min(1.0, 0.8 * np.linalg.norm(c) / np.linalg.norm(g)),
    ),
}


def size(a):
    return np.linalg.norm(a, axis=-1, keepdims=True)


def pack(a):
    """[C, H, W] as [positions, values], `_pack_latents` of Qwen-Image and LongCat-Image."""
    channels, height, width = a.shape
    packed = a.reshape(channels, height // 2, 2, width // 2, 2).transpose(1, 3, 0, 2, 4)
    return packed.reshape(height // 2 * (width // 2), channels * 4)


@every_schedule
@pytest.mark.parametrize("scale", [0.0, 4.0])
@pytest.mark.parametrize("name", PIPELINES)
def test_norm_limit_is_what_the_pipelines_do(schedule, scale, name):
    rule, limit = PIPELINES[name]
    x_t, strong, weak, found = apply(rule, scale, schedule)

    def formula(c, u):
        return limit(pack(c), pack(u + scale * (c - u)))

    expected = rows(formula, compute_flow(strong), compute_flow(weak))
    np.testing.assert_allclose(rows(pack, compute_flow(found)), expected, rtol=1e-7, atol=1e-7)
    alpha, sigma = numbers(schedule)
    np.testing.assert_allclose(alpha * found.x_0 + sigma * found.eps, x_t, rtol=1e-9, atol=1e-9)


def test_the_norm_of_a_vector_is_over_all_of_it():
    _, strong, weak, found = apply(NormLimit(), 3.0, SCHEDULES["flow"], (3, 5))
    wanted = compute_flow(strong).norm(dim=1)
    torch.testing.assert_close(compute_flow(found).norm(dim=1), wanted, rtol=1e-10, atol=0)
    same = apply(NormLimit(patch=None), 3.0, SCHEDULES["flow"], (3, 5))[-1]
    torch.testing.assert_close(found.x_0, same.x_0, rtol=1e-12, atol=1e-12)


@every_schedule
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_recfg_is_diffusers_formula(schedule, scale, share):
    """rho u + w (c - rho u), rho = 1 + share (|c| / |u| - 1), for the noise."""
    x_t, strong, weak, found = apply(RectifiedRatio(share), scale, schedule)

    def formula(c, u):
        rho = 1 + share * (np.linalg.norm(c) / np.linalg.norm(u) - 1)
        return rho * u + scale * (c - rho * u)

    expected = rows(formula, strong.eps, weak.eps)
    np.testing.assert_allclose(found.eps, expected, rtol=1e-9, atol=1e-9)
    alpha, sigma = numbers(schedule)
    np.testing.assert_allclose(found.x_0, (x_t.numpy() - sigma * expected) / alpha, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", [PosteriorMeanCap(math.inf), RectifiedRatio(0.0)])
def test_off_is_linear(rule):
    _, strong, weak, found = apply(rule, 3.0, SCHEDULES["vp"])
    torch.testing.assert_close(found.x_0, weak.x_0 + 3 * (strong.x_0 - weak.x_0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make, sentence", [
    (lambda: PosteriorMeanCap(0.9), "growth must be in"), (lambda: NormLimit(cap=0.0), "cap must be in"),
    (lambda: NormLimit(least=2.0, most=1.0), "least must be at most most"), (lambda: NormLimit(most=-1.0), "most must be"),
    (lambda: RectifiedRatio(math.nan), "share must be"), (lambda: NormLimit(patch=0), "patch must be a whole number"),
    (lambda: ClassifierFree(exact(shape=(1, 6, 7)), 2.0, EVERYWHERE, NormLimit()), "patch must divide the sides of images"),
    (lambda: ClassifierFree(exact(Cosine(12.0, -math.inf)), 1.5, EVERYWHERE, RectifiedRatio()), "rule=recfg .* zero terminal"),
])  # fmt: skip
def test_invalid_arguments_raise(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
