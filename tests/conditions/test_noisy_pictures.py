"""Noise of low-resolution conditions: against NumPy and SciPy, as the network gets it, and per sample when it is drawn."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from diffguide.backbones import UNet
from diffguide.backbones.conditions import Picture, remove_condition
from diffguide.conditions import LowResolution, SeveralConditions
from diffguide.conditions.pictures import NoisyPicture, QuietPicture
from diffguide.randomness import Noise
from diffguide.samplers.generate import initial_state

X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ROWS, LABELS = torch.arange(5), torch.zeros(5)


def enlarge(small: np.ndarray) -> np.ndarray:
    """Bilinear interpolation by 2 between the centres of pixels, clamped at the border."""
    side = small.shape[-1]
    place = np.clip((np.arange(2 * side) + 0.5) / 2 - 0.5, 0, side - 1)
    below = np.minimum(place.astype(int), side - 2)
    weight = np.zeros((2 * side, side))
    weight[np.arange(2 * side), below] = 1 - (place - below)
    weight[np.arange(2 * side), below + 1] = place - below
    return np.einsum("ih,jw,bchw->bcij", weight, weight, small)


def test_the_small_picture_is_noised_by_the_numbers_of_its_row():
    condition = LowResolution(3, 8, factor=2, noise=0.6)
    table = condition.tabulate({}, LABELS)
    assert table.draws == 1 + 3 * 4 * 4
    chance = torch.rand(5, table.draws, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = table(ROWS, X, chance)
    small = X.numpy().reshape(5, 3, 4, 2, 4, 2).mean((3, 5))
    level = 0.6 * chance[:, 0].numpy()
    e = stats.norm.ppf(chance[:, 1:].numpy()).reshape(small.shape)
    s = level[:, None, None, None]
    np.testing.assert_allclose(y.x, enlarge(np.sqrt(1 - s**2) * small + s * e), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(y.level, level, rtol=1e-15)


def test_the_smallest_and_the_largest_number_have_a_finite_normal():
    condition = LowResolution(1, 4, factor=2, noise=1.0)
    for number in (0.0, 1 - 2.0**-24):
        y = condition.degrade(torch.zeros(1, 1, 4, 4), torch.full((1, condition.draws), number))
        assert y.x.isfinite().all()
    chance = torch.rand(4000, condition.draws, generator=torch.Generator().manual_seed(2))
    chance[:, 0] = 0.5  # level 0.5 of zeros: 0.5 e
    e = 2 * condition.degrade(torch.zeros(4000, 1, 4, 4), chance).x[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert stats.kstest(e.flatten().numpy(), "norm").pvalue > 1e-3


def test_the_network_is_told_the_level_by_fourier_features():
    condition = LowResolution(3, 8, factor=2, noise=0.5)
    level = torch.tensor([0.0, 0.1, 0.25, 0.4, 0.5], dtype=torch.float64)
    keep = torch.tensor([True, True, True, True, False])
    context = condition(NoisyPicture(X, level, keep), X)
    u = level.numpy()[:, None] / 0.5
    angles = [2**n * math.pi * u for n in range(6)]
    expected = np.concatenate([np.ones_like(u), u, *map(np.sin, angles), *map(np.cos, angles)], axis=1)
    expected[4] = 0
    np.testing.assert_allclose(context.vector, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(context.channels[:4, :3], X[:4])
    assert not context.channels[4].any() and not condition(None, X).vector.any()
    assert not condition(remove_condition(NoisyPicture(X, level)), X).vector.any()


def test_without_noise_nothing_is_drawn_and_nothing_is_said():
    """condition.noise=0 has the random numbers, the condition and the weights of models before there was noise."""
    condition = LowResolution(3, 8, factor=2)
    table = condition.tabulate({}, LABELS)
    y = table(ROWS, X, torch.rand(5, 0))
    assert table.draws == 0 == condition.vector_features and type(y) is Picture and condition(y, X).vector is None
    assert torch.equal(y.x, condition.enlarge(torch.nn.functional.avg_pool2d(X, 2)))
    noisy = LowResolution(3, 8, factor=2, noise=0.5)
    sizes = [
        {name: value.shape for name, value in make_network(part).state_dict().items()} for part in (condition, noisy)
    ]
    assert sizes[0].keys() < sizes[1].keys() and all(sizes[1][name] == shape for name, shape in sizes[0].items())


def make_network(condition) -> UNet:
    torch.manual_seed(0)
    network = UNet(3, size=8, channels=8, multipliers=(1,), attention=(), blocks=1, conditioning=condition).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


def test_a_network_depends_on_the_level_beside_the_picture():
    network = make_network(LowResolution(3, 8, factor=2, noise=0.5))
    log_snr = torch.zeros(5, dtype=torch.float64)
    with torch.no_grad():
        low, high = (network(X, log_snr, NoisyPicture(X, torch.full((5,), s, dtype=torch.float64))) for s in (0.1, 0.4))
    assert not torch.isclose(low, high).all((1, 2, 3)).any()
    for other in (Picture(X), QuietPicture(X, torch.zeros(5))):
        with pytest.raises(ValueError, match="y must be a NoisyPicture with condition.noise=0.5"):
            network(X, log_snr, other)


def test_examples_outside_of_training_have_noise_of_their_own():
    """The same for the same row in any batch, and independent between rows: level uniform, noise normal."""
    condition = LowResolution(3, 8, factor=2, noise=0.8)
    table = condition.tabulate({}, LABELS)
    many, some = table(ROWS, X), table(torch.tensor([3, 1]), X[[3, 1]])
    assert torch.equal(many.x[[3, 1]], some.x) and torch.equal(many.level[[3, 1]], some.level)
    y = table(torch.arange(300), torch.zeros(300, 3, 8, 8))
    assert stats.kstest(y.level.numpy() / 0.8, "uniform").pvalue > 1e-3
    corner = (y.x[:, :, 0, 0] / y.level[:, None]).flatten()  # a corner of the enlarged picture is one of the small one
    assert stats.kstest(corner.numpy(), "norm").pvalue > 1e-3


class Model:
    """What `initial_state` asks of a denoiser."""

    schedule, embeds = None, False

    def __init__(self, conditioning):
        self.conditioning = conditioning


class Start:
    """A sampler that begins with zeros."""

    def begin(self, denoiser, times, noise):
        return torch.zeros(len(noise.states), *noise.shape)


def begin(condition, y, seeds):
    return initial_state(Model(condition), Start(), torch.tensor([1.0]), seeds, y, (3, 8, 8), "cpu", torch.float64)[1]


def test_samples_draw_the_noise_of_a_picture_by_their_seeds(tmp_path):
    Image.fromarray(np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3) * 5).save(tmp_path / "small.png")
    condition = LowResolution(3, 8, factor=2, noise=0.5)
    file = str(tmp_path / "small.png")
    y = condition.read([file, {"picture": file, "noise": 0.3}, {"picture": file, "noise": 0.5}, ""])
    z = (np.arange(48).reshape(1, 4, 4, 3).transpose(0, 3, 1, 2) * 5 / 127.5 - 1).repeat(4, 0)
    z[3] = 0
    drawn = begin(condition, y, [7, 8, 9, 10])
    assert type(drawn) is NoisyPicture and drawn.keep.tolist() == [True, True, True, False]
    e = Noise([7, 8, 9, 10], (3, 8, 8), None, dtype=torch.float64).normal(1.0, 2**38).numpy()
    e = e.reshape(4, 3, 4, 2, 4, 2).sum((3, 5)) / 2  # standard normal again
    s = np.array([0, 0.3, 0.5, 0], dtype=np.float32).reshape(4, 1, 1, 1)
    np.testing.assert_allclose(drawn.x, enlarge(np.sqrt(1 - s**2) * z + s * e), atol=1e-6)
    alone = begin(condition, y[1:2], [8])
    torch.testing.assert_close(alone.x, drawn.x[1:2])
    assert torch.equal(begin(condition, drawn, [1, 2, 3, 4]).x, drawn.x), "noise is added once"


def test_parts_of_several_conditions_draw_their_noise():
    several = SeveralConditions({"picture": LowResolution(3, 8, factor=2, noise=0.5)})
    assert several.vector_features == 14
    quiet = several.read([""])
    assert isinstance(begin(several, quiet, [1]).parts["picture"], NoisyPicture)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"picture": "small.png", "noise": 0.6}, "noise of small.png must be 0 to condition.noise=0.5, got 0.6"),
        ({"picture": "small.png", "noise": "much"}, "noise of small.png must be 0 to condition.noise=0.5, got much"),
        ({"picture": "small.png"}, "must be a file, or {picture: <file>, noise: <level>}"),
    ],
)
def test_other_levels_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        LowResolution(3, 8, factor=2, noise=0.5).read([value])
    with pytest.raises(ValueError, match="condition.noise"):
        LowResolution(3, 8, factor=2, noise=1.5)
    with pytest.raises(ValueError, match="condition.noise=0.0"):
        LowResolution(3, 8, factor=2).read([{"picture": "small.png", "noise": 0.1}])
