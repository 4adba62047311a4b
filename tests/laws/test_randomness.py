"""Noise as a function of seed and level: its law, its independence, and the Brownian path under the increments."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from diffguide.randomness import Noise, counters, fold
from diffguide.schedules import EDM, Cosine, Flow

EXACT = Cosine(math.inf, -math.inf)  # its time is the clock's angle, so t = k / 2^m is a node of the path exactly
SCHEDULES = {"cosine": Cosine(12.0, -10.0), "flow": Flow(math.inf, -math.inf), "edm": EDM(12.43, -8.76)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
ALPHA = 1e-4  # of every statistical test here; the seeds are fixed, so a test that passes keeps passing


def noise(seeds=range(2000), shape=(7,), schedule=EXACT, **options) -> Noise:
    return Noise(seeds, shape, schedule, dtype=torch.float64, **options)


def assert_standard_normal(values):
    """Mean, variance and kurtosis within their z-bounds at ALPHA, and Kolmogorov-Smirnov; n = values.numel()."""
    values = values.numpy().ravel()
    bound = stats.norm.isf(ALPHA / 2) / math.sqrt(values.size)
    assert abs(values.mean()) < bound
    assert abs(values.var() - 1) < math.sqrt(2) * bound
    assert abs((values**4).mean() - 3) < math.sqrt(96) * bound
    assert stats.kstest(values, "norm").pvalue > ALPHA


def assert_uncorrelated(a, b):
    """Correlation, and that of the squares, of two sets of n normals: |r| < z / sqrt(n)."""
    for f in (lambda v: v, np.square):
        r = np.corrcoef(f(a.numpy().ravel()), f(b.numpy().ravel()))[0, 1]
        assert abs(r) < stats.norm.isf(ALPHA / 2) / math.sqrt(a.numel())


@pytest.mark.parametrize("shape", [(7,), (1, 3, 5)], ids=["odd", "image"])
def test_normals_are_normal(shape):
    """n = 14000 and 30000."""
    assert_standard_normal(noise(shape=shape).normal(0.3, 0))


@pytest.mark.parametrize("seed", [0, 5])
def test_normals_of_one_large_sample_are_normal(seed):
    assert_standard_normal(noise([seed], (3, 64, 64)).normal(1.0, 0))


@every_schedule
@pytest.mark.parametrize("t, s", [(1.0, 0.0), (1.0, 0.99), (0.5, 0.4), (0.02, 0.0)])
def test_increments_are_normal(schedule, t, s):
    """Over long and short steps and at both ends, n = 14000: unit variance for every interval."""
    assert_standard_normal(noise(schedule=schedule).increment(t, s))


PAIRS = {
    "neighbouring seeds": (lambda: noise(range(2000)).normal(0.5, 0), lambda: noise(range(1, 2001)).normal(0.5, 0)),
    "elements of a sample": (lambda: noise().normal(0.5, 0)[:, :3], lambda: noise().normal(0.5, 0)[:, 4:]),
    "levels": (lambda: noise().normal(0.5, 0), lambda: noise().normal(0.501, 0)),
    "draws": (lambda: noise().normal(0.5, 0), lambda: noise().normal(0.5, 1)),
    "normal and increment": (lambda: noise().normal(0.5, 0), lambda: noise().increment(0.5, 0.4)),
    "normal and the whole path": (lambda: noise().normal(1.0, 0), lambda: noise().increment(1.0, 0.0)),
    "touching intervals": (lambda: noise().increment(0.5, 0.4), lambda: noise().increment(0.4, 0.3)),
    "distant intervals": (lambda: noise().increment(0.9, 0.85), lambda: noise().increment(0.2, 0.1)),
    "increments of neighbouring seeds": (
        lambda: noise(range(2000)).increment(0.5, 0.4),
        lambda: noise(range(1, 2001)).increment(0.5, 0.4),
    ),
}


@pytest.mark.parametrize("first, second", PAIRS.values(), ids=PAIRS)
def test_streams_of_noise_are_uncorrelated(first, second):
    assert_uncorrelated(first(), second())


def test_overlapping_intervals_share_the_path():
    """So that the independence above is not that of fresh numbers: half of [.5, .3] is [.5, .4] on its clock."""
    z, half = noise().increment(0.5, 0.3), noise().increment(0.5, 0.4)
    c = [math.sin(math.pi / 2 * t) ** 2 for t in (0.5, 0.4, 0.3)]
    expected = math.sqrt((c[0] - c[1]) / (c[0] - c[2]))
    assert abs(float((z * half).mean()) - expected) < 5 / math.sqrt(z.numel())


@pytest.mark.parametrize("steps", [2, 8, 64])
def test_increments_add_up(steps):
    """sqrt(c_t - c_s) z over the parts is that over the whole, c = sigma^2 / (alpha^2 + sigma^2), at dyadic times."""
    times, source = torch.linspace(0.875, 0.125, steps + 1, dtype=torch.float64), noise(range(5))
    alpha, sigma = EXACT.alpha_sigma(times)
    clock = sigma**2 / (alpha**2 + sigma**2)
    total = sum((clock[k] - clock[k + 1]).sqrt() * source.increment(times[k], times[k + 1]) for k in range(steps))
    whole = (clock[0] - clock[-1]).sqrt() * source.increment(times[0], times[-1])
    torch.testing.assert_close(total, whole, rtol=0, atol=1e-10)


@every_schedule
def test_increments_add_up_between_nodes(schedule):
    """The same at any times of any schedule, where an angle is rounded to 2^-32: to 1e-9 in L2 over the elements."""
    times, source = torch.tensor([0.93, 0.71, 0.5, 0.33, 0.2], dtype=torch.float64), noise(range(50), schedule=schedule)
    clock = torch.sigmoid(-schedule.log_snr(times))
    total = sum((clock[k] - clock[k + 1]).sqrt() * source.increment(times[k], times[k + 1]) for k in range(4))
    whole = (clock[0] - clock[-1]).sqrt() * source.increment(times[0], times[-1])
    assert float((total - whole).square().mean().sqrt()) < 1e-9


def draw_all(source: Noise, times) -> list:
    return [(source.normal(t, 0), source.increment(t, t - 0.01)) for t in times]


def test_a_sample_does_not_depend_on_its_batch():
    seeds, times = [3, 1, 4, 159, 2**62], [0.9, 0.5, 0.1]
    batch = draw_all(noise(seeds, (2, 3)), times)
    for row, seed in enumerate(seeds):
        for in_batch, alone in zip(batch, draw_all(noise([seed], (2, 3)), times)):
            assert torch.equal(in_batch[0][row], alone[0][0]) and torch.equal(in_batch[1][row], alone[1][0])


def test_the_order_of_queries_does_not_matter():
    times = [0.9, 0.5, 0.1, 0.77, 0.3]
    forward, backward = draw_all(noise(range(4)), times), draw_all(noise(range(4)), times[::-1])[::-1]
    for a, b in zip(forward, backward):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_a_query_is_repeatable():
    source = noise(range(4))
    first = source.normal(0.5, 0), source.increment(0.5, 0.4)
    draw_all(source, [0.9, 0.2])
    assert torch.equal(first[0], source.normal(0.5, 0)) and torch.equal(first[1], source.increment(0.5, 0.4))


def test_the_path_depends_on_the_noise_level_only():
    """Equal sigma / alpha in two schedules is one point of the path."""
    flow = Flow(math.inf, -math.inf)
    t, s = (flow.t_of(EXACT.log_snr(u)) for u in (0.75, 0.25))
    torch.testing.assert_close(noise(range(9), schedule=flow).increment(t, s), noise(range(9)).increment(0.75, 0.25))


def test_the_cache_is_bounded():
    source, times = noise(range(2), (3,)), torch.linspace(1, 0, 501, dtype=torch.float64)
    for t, s in zip(times[:-1], times[1:]):
        source.increment(t, s)
        assert len(source.path.nodes) <= source.depth + 2 and len(source.path.inner) <= 4
    source.path.clear()
    assert not source.path.nodes and not source.path.inner and source.path.whole is None


def test_a_cleared_path_is_drawn_again_as_it_was():
    source = noise(range(3))
    first = source.increment(0.5, 0.25)
    source.path.clear()
    assert torch.equal(first, source.increment(0.5, 0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grids_of_all_lengths_share_the_path_at_the_ends_of_leaves(dtype):
    """W at multiples of 2^-3, summed up from increments over grids of 8, 24, 80 and 400 steps."""

    def path(steps: int):
        source, times = Noise(range(40), (5,), EXACT, dtype=dtype), torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        clock = [math.sin(math.pi / 2 * float(t)) ** 2 for t in times]
        scaled = [
            math.sqrt(clock[k] - clock[k + 1]) * source.increment(times[k], times[k + 1]).double() for k in range(steps)
        ]
        return torch.stack(scaled).cumsum(0)[steps // 8 - 1 :: steps // 8]

    coarse = path(8)
    for steps in (24, 80, 400):
        torch.testing.assert_close(path(steps), coarse, rtol=0, atol=1e-6)


@pytest.mark.parametrize("t, s", [(1.0, 1 - 1e-7), (0.6, 0.6 - 1e-8), (1e-7, 0.0)], ids=["noise", "middle", "data"])
def test_short_steps_of_a_float32_path_are_normal(t, s):
    """c changes by 2e-14, 3e-8 and 2e-14 there: differences of float32 values of W would be 0 or coarse."""
    source = Noise(range(4000), (3,), EXACT)
    source.increment(1.0, 0.5)  # the bridge between 0 and W(1), whose value is of the order of 1
    z = source.increment(t, s)
    assert_standard_normal(z)
    assert len(z.unique()) > 0.9 * z.numel()


def test_two_hundred_steps_within_a_leaf_are_independent_normals():
    """Only four values of a leaf are remembered: consecutive steps need no more."""
    source, times = noise(range(100), (2,)), torch.linspace(0.52, 0.501, 201, dtype=torch.float64)
    z = torch.stack([source.increment(times[k], times[k + 1]) for k in range(200)])
    assert_standard_normal(z)
    assert_uncorrelated(z[1:], z[:-1])
    assert_uncorrelated(z[:, :, 0], z[:, :, 1])


def test_words_are_those_of_splitmix64():
    """Outputs of the published generator for seed 1234567, and the same arithmetic on tensors."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    words = [(1234567 + k * counters.GOLDEN_GAMMA) % 2**64 for k in range(1, 5)]
    assert [counters.scramble(word) for word in words] == expected
    tensor = torch.tensor([counters.signed(word) for word in words])
    assert counters.scramble_(tensor).tolist() == [counters.signed(word) for word in expected]
    state = counters.create_states([5])
    assert int(counters.fold_in(state, 7)) % 2**64 >> 1 == fold(5, 7)


def test_normals_do_not_depend_on_the_blocks_that_draw_them(monkeypatch):
    states = counters.create_states(range(20))
    whole = counters.normals(states, 33)
    monkeypatch.setattr(counters, "BLOCK_PAIRS", 50)
    assert torch.equal(counters.normals(states, 33), whole)


@pytest.mark.parametrize("step", [1e-9, 1e-11], ids=["above", "below"])
def test_steps_about_the_resolution_get_independent_noise(step):
    """Angles are rounded to 2^-32 = 2.3e-10; a step below draws a normal of its own."""
    source = noise(range(4000), (1,))
    first, second = source.increment(0.4, 0.4 - step), source.increment(0.4 - step, 0.4 - 2 * step)
    assert abs(float(first.var()) - 1) < 0.1 and abs(float((first * second).mean())) < 0.07


@pytest.mark.parametrize("s", [0.5, 0.4], ids=["later", "equal"])
def test_a_step_must_go_to_an_earlier_time(s):
    with pytest.raises(ValueError, match=f"got t = 0.4 and s = {s}"):
        noise().increment(0.4, s)


def test_noise_has_the_requested_dtype_and_shape():
    source = Noise([1, 2], (3, 4, 4), Cosine(12.0, -10.0))
    for values in (source.normal(torch.tensor(1.0), 0), source.increment(torch.tensor(1.0), torch.tensor(0.5))):
        assert values.shape == (2, 3, 4, 4) and values.dtype == torch.float32


def test_fold_is_deterministic_and_distinct():
    grid = [(a, b, c) for a in range(12) for b in range(12) for c in range(12)]
    seeds = [fold(*words) for words in grid] + [fold(), fold(0), fold(0, 0)]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [fold(*words) for words in grid] + [fold(), fold(0), fold(0, 0)]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_random_numbers_of_a_seed_are_those_of_older_versions():
    """Stored numbers: with others, no run of an older version could be repeated."""
    assert [fold(0), fold(1, 2, 3), fold(2**63 + 5, 7)] == [407138636686128095, 5186668571009192148, 700129426159788315]
    source = noise([1], (2,), Cosine(12.0, -10.0))
    found = torch.cat([source.normal(0.5, 0), source.increment(0.5, 0.25)])
    stored = [[-1.3427245311987888, -1.4914771238632518], [1.190735971538694, -1.0193554521334292]]
    torch.testing.assert_close(found, torch.tensor(stored, dtype=torch.float64), rtol=1e-6, atol=0)
