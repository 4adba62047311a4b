"""Every rule against its paper's formula written out in NumPy, and against diffusers' guiders where those are right."""

import math

import numpy as np
import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance, ClassifierFreeZeroStarGuidance
from diffusers.guiders import adaptive_projected_guidance as diffusers_apg
from diffusers.guiders import magnitude_aware_guidance as diffusers_mambo
from diffusers.guiders import tangential_classifier_free_guidance as diffusers_tcfg
from rule_sides import SCHEDULES, SHAPE, TIME, every_schedule, numbers, sides

from diffguide.guidance.projections import APG, FDG, TCFG
from diffguide.guidance.rules import CFGPlusPlus, CFGZero, Mambo, Rescale, Threshold
from diffguide.models.protocols import Prediction
from diffguide.schedules import Flow

INF = math.inf


def apply(rule, scale, schedule, seed=0, memory=None, t=TIME):
    x_t, strong, weak = sides(schedule, seed=seed)
    return x_t, strong, weak, rule(strong, weak, torch.tensor(scale).double(), x_t, t, schedule, memory)


def per_sample(function, *arrays) -> np.ndarray:
    return np.stack([function(*(part.numpy() for part in rows)) for rows in zip(*arrays)])


def agree(x_t, found: Prediction, x_0: np.ndarray, schedule):
    """x_0 as expected, and eps what x_t says."""
    alpha, sigma = numbers(schedule)
    np.testing.assert_allclose(found.x_0, x_0, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.eps, (x_t.numpy() - alpha * x_0) / sigma, rtol=1e-9, atol=1e-9)


def flat_norm(a):
    return np.sqrt((a**2).sum())


@every_schedule
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescale_is_its_formula(schedule, scale, phi):
    x_t, strong, weak, found = apply(Rescale(phi), scale, schedule)

    def formula(c, u):  # arXiv 2305.08891, section 3.4
        g = u + scale * (c - u)
        return phi * g * c.std() / g.std() + (1 - phi) * g

    agree(x_t, found, per_sample(formula, strong.x_0, weak.x_0), schedule)
    guider = ClassifierFreeGuidance(guidance_scale=scale, guidance_rescale=phi)
    theirs = guider.forward(strong.x_0, weak.x_0).pred
    torch.testing.assert_close(found.x_0, theirs, rtol=1e-10, atol=1e-10)


def test_rescale_keeps_the_conditional_deviation():
    _, strong, _, found = apply(Rescale(1.0), 6.0, SCHEDULES["vp"])
    torch.testing.assert_close(found.x_0.flatten(1).std(1), strong.x_0.flatten(1).std(1), rtol=1e-12, atol=0)


def test_rescale_leaves_a_sample_of_equal_values():
    x_t, strong, weak = sides(SCHEDULES["vp"], (2, 1))  # one value has no deviation to rescale
    found = Rescale(0.7)(strong, weak, torch.tensor(3.0).double(), x_t, TIME, SCHEDULES["vp"], None)
    torch.testing.assert_close(found.x_0, weak.x_0 + 3 * (strong.x_0 - weak.x_0))


@every_schedule
@pytest.mark.parametrize("scale", [0.0, 4.0])
@pytest.mark.parametrize("eta, threshold", [(0.0, 5.0), (1.0, INF), (0.3, 8.0), (0.0, INF)])
def test_apg_is_its_formula_with_momentum(schedule, scale, eta, threshold):
    """Two levels with momentum -0.5: delta' is carried before it is shortened, and is added to the conditional."""
    rule, momentum = APG(eta, threshold, -0.5), -0.5
    memory, average, theirs = rule.start(torch.tensor([0.7, 0.0])), 0.0, diffusers_apg.MomentumBuffer(momentum)
    for seed, level in ((0, 0.7), (1, 0.55)):
        x_t, strong, weak, found = apply(rule, scale, schedule, seed, memory, torch.tensor(level, dtype=torch.float64))
        average = (strong.x_0 - weak.x_0).numpy() + momentum * average

        def formula(c, d):  # arXiv 2410.02416, algorithm 1
            d = d * min(1, threshold / flat_norm(d))
            along = (d * c).sum() / (c * c).sum() * c
            return c + (scale - 1) * (d - along + eta * along)

        expected = per_sample(formula, strong.x_0, torch.from_numpy(average))
        np.testing.assert_allclose(found.x_0, expected, rtol=1e-10, atol=1e-10)
        limit = threshold if threshold < INF else 0.0
        original = diffusers_apg.normalized_guidance(strong.x_0, weak.x_0, scale - 1, theirs, eta, limit, True)
        torch.testing.assert_close(found.x_0, original, rtol=1e-9, atol=1e-9)
    agree(x_t, found, expected, schedule)


@every_schedule
@pytest.mark.parametrize("scale", [0.0, 4.0])
def test_tcfg_is_its_formula(schedule, scale):
    x_t, strong, weak, found = apply(TCFG(), scale, schedule)

    def formula(c, u):  # arXiv 2503.18137
        rows = np.stack([c.ravel(), u.ravel()])
        values, vectors = np.linalg.eigh(rows.T @ rows)
        kept = vectors[:, -1] * (vectors[:, -1] @ u.ravel())
        return kept.reshape(u.shape) + scale * (c - kept.reshape(u.shape))

    expected = per_sample(formula, strong.eps, weak.eps)
    np.testing.assert_allclose(found.eps, expected, rtol=1e-8, atol=1e-8)
    alpha, sigma = numbers(schedule)
    np.testing.assert_allclose(found.x_0, (x_t.numpy() - sigma * expected) / alpha, rtol=1e-6, atol=1e-6)
    theirs = diffusers_tcfg.normalized_guidance(strong.eps.float(), weak.eps.float(), scale)
    torch.testing.assert_close(found.eps.float(), theirs, rtol=1e-4, atol=1e-4)


def velocity(schedule, x_0, eps):
    """What the ODE moves along, up to a factor of the level."""
    alpha, sigma = numbers(schedule)
    name = type(schedule).__name__
    return {"Cosine": alpha * eps - sigma * x_0, "EDM": eps, "Flow": eps - x_0}[name]


def x_0_of(schedule, x_t, v):
    """x_0 that agrees with x_t and a velocity."""
    alpha, sigma = numbers(schedule)
    name = type(schedule).__name__
    return {"Cosine": alpha * x_t - sigma * v, "EDM": x_t - sigma * v, "Flow": x_t - sigma * v}[name]


@every_schedule
@pytest.mark.parametrize("scale", [0.0, 4.0])
def test_cfg_zero_is_its_formula(schedule, scale):
    x_t, strong, weak, found = apply(CFGZero(1), scale, schedule, memory=0.9)

    def formula(c, u):  # arXiv 2503.18886
        s = (c * u).sum() / (u * u).sum()
        return s * u + scale * (c - s * u)

    v_strong, v_weak = (velocity(schedule, *side) for side in (strong, weak))
    expected = per_sample(formula, v_strong, v_weak)
    agree(x_t, found, x_0_of(schedule, x_t.numpy(), expected), schedule)
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=scale, zero_init_steps=0)
    guider._step = 1
    theirs = guider.forward(v_strong.float(), v_weak.float()).pred
    np.testing.assert_allclose(expected, theirs, rtol=1e-3, atol=1e-4)


@every_schedule
def test_cfg_zero_does_not_move_in_its_first_steps(schedule):
    """Above the time that K steps reach the velocity is 0; at it and below it is not, whatever the solver evaluates."""
    rule, times = CFGZero(2), torch.tensor([1.0, 0.8, 0.55, 0.3], dtype=torch.float64)
    memory = rule.start(times)
    for level, still in ((1.0, True), (0.8, True), (0.6, True), (0.55, False), (0.3, False)):
        x_t, *_, found = apply(rule, 3.0, schedule, memory=memory, t=torch.tensor(level, dtype=torch.float64))
        alpha, sigma = (float(a) for a in schedule.alpha_sigma(level))
        rates = {"Cosine": (-sigma, alpha), "EDM": (0.0, 1.0), "Flow": (-1.0, 1.0)}[type(schedule).__name__]
        v = rates[0] * found.x_0 + rates[1] * found.eps
        assert bool(v.abs().max() < 1e-9) == still
        if still:
            torch.testing.assert_close(alpha * found.x_0 + sigma * found.eps, x_t, rtol=1e-9, atol=1e-9)


def test_zero_velocity_at_pure_noise():
    """The exact flow at t = 1: x_0 = eps = x_t, not 0 / 0."""
    schedule, one = Flow(INF, -INF), torch.tensor(1.0, dtype=torch.float64)
    rule = CFGZero(1)
    x_t, *_, found = apply_at_noise(rule, schedule, one)
    torch.testing.assert_close(found.x_0, x_t)
    torch.testing.assert_close(found.eps, x_t)


def apply_at_noise(rule, schedule, one):
    x_t, strong, weak = sides(SCHEDULES["flow"])
    memory = rule.start(torch.tensor([1.0, 0.5, 0.0]))
    return x_t, strong, weak, rule(strong, weak, torch.tensor(2.0).double(), x_t, one, schedule, memory)


@every_schedule
@pytest.mark.parametrize("scale", [0.0, 4.0])
def test_mambo_is_its_formula(schedule, scale):
    x_t, strong, weak, found = apply(Mambo(0.8), scale, schedule)
    v_strong, v_weak = (velocity(schedule, *side) for side in (strong, weak))

    def formula(c, u):  # arXiv 2508.03442
        return u + (1 + (scale - 1) * math.exp(-0.8 * flat_norm(c - u) / flat_norm(u))) * (c - u)

    expected = per_sample(formula, v_strong, v_weak)
    agree(x_t, found, x_0_of(schedule, x_t.numpy(), expected), schedule)
    # it takes no images
    theirs = diffusers_mambo.mambo_guidance(v_strong.flatten(1), v_weak.flatten(1), scale, 0.8).reshape(SHAPE)
    np.testing.assert_allclose(expected, theirs, rtol=1e-10, atol=1e-10)


@every_schedule
def test_threshold_is_its_formula(schedule):
    x_t, strong, weak, found = apply(Threshold(0.9), 5.0, schedule)

    def formula(c, u):  # arXiv 2205.11487, section 2.3
        g = u + 5 * (c - u)
        s = max(1, np.quantile(np.abs(g), 0.9))
        return np.clip(g, -s, s) / s

    agree(x_t, found, per_sample(formula, strong.x_0, weak.x_0), schedule)
    assert float(found.x_0.abs().max()) == pytest.approx(1.0)


def test_threshold_leaves_what_is_in_range():
    x_t, strong, weak = sides(SCHEDULES["vp"])
    small = Prediction(0.1 * strong.x_0, strong.eps)
    found = Threshold(0.995).finish(small, x_t, TIME, SCHEDULES["vp"], None)
    assert torch.equal(found.x_0, small.x_0) and torch.equal(found.eps, small.eps)


@every_schedule
def test_cfgpp_mixes_the_data_and_keeps_the_weak_noise(schedule):
    x_t, strong, weak, found = apply(CFGPlusPlus(), 0.3, schedule)
    torch.testing.assert_close(found.x_0, weak.x_0 + 0.3 * (strong.x_0 - weak.x_0))
    assert torch.equal(found.eps, weak.eps)


@pytest.mark.parametrize("low", [0.0, 0.4, 1.0])
def test_fdg_scales_both_bands_as_loops_over_pixels_do(low):
    """Both bands by loops over pixels: blurred with (1, 4, 6, 4, 1) / 16, halved by means of four, enlarged, blurred."""
    schedule = SCHEDULES["flow"]
    x_t, strong, weak, found = apply(FDG(low), 3.0, schedule)

    def blur(a):
        kernel, (h, w) = np.array([1, 4, 6, 4, 1]) / 16, a.shape
        near = np.array([[np.clip(i + k - 2, 0, n - 1) for k in range(5)] for n in (h, w) for i in range(n)])
        rows, columns = near[:h], near[h:]
        return np.array([[kernel @ a[np.ix_(rows[i], columns[j])] @ kernel for j in range(w)] for i in range(h)])

    def enlarge(a):  # bilinear by two, pixel centres at halves: 3/4 of the nearest, 1/4 of the next
        def along(b):
            padded = np.concatenate([b[:1], b, b[-1:]])
            even, odd = 0.25 * padded[:-2] + 0.75 * b, 0.75 * b + 0.25 * padded[2:]
            return np.stack([even, odd], 1).reshape(-1, *b.shape[1:])

        return along(along(a).T).T

    def formula(c, u):
        out = []
        for c_1, u_1 in zip(c, u):
            d = blur(c_1 - u_1)
            coarse = blur(enlarge((d[::2, ::2] + d[1::2, ::2] + d[::2, 1::2] + d[1::2, 1::2]) / 4))
            fine = c_1 - u_1 - coarse
            out.append(u_1 + 3.0 * fine + (1 + 2.0 * low) * coarse)
        return np.stack(out)

    agree(x_t, found, per_sample(formula, strong.x_0, weak.x_0), schedule)
    if low == 1:
        torch.testing.assert_close(found.x_0, weak.x_0 + 3 * (strong.x_0 - weak.x_0))


def test_fdg_takes_odd_sizes_and_refuses_vectors():
    x_t, strong, weak = sides(SCHEDULES["vp"], (2, 1, 7, 5))
    scale = torch.tensor(2.0).double()
    assert FDG(1.0)(strong, weak, scale, x_t, TIME, SCHEDULES["vp"], None).x_0.shape == x_t.shape
    x_t, strong, weak = sides(SCHEDULES["vp"], (2, 5))
    with pytest.raises(ValueError, match=r"needs images \[B, C, H, W\], got \[2, 5\]"):
        FDG(1.0)(strong, weak, scale, x_t, TIME, SCHEDULES["vp"], None)
