"""The judge of shapes: exact on every drawn combination, also with noise; silent on pictures without shapes."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from diffguide.datasets.shape_pictures import ATTRIBUTES, draw_pictures, list_combinations, place_objects
from diffguide.evaluation.quality.shape_judge import read_pictures

NAMES = [*ATTRIBUTES]


def index(**values: str) -> list[int]:
    return [ATTRIBUTES[name].index(value) for name, value in values.items()]


def drawn(combinations: np.ndarray, side: int, seed: int, deviation: float = 0.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    middles = place_objects(combinations, rng.random((len(combinations), 4, 2)))
    x = draw_pictures(combinations, middles, side) + deviation * rng.normal(size=(len(combinations), 3, side, side))
    return as_bytes(x)


def as_bytes(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.clip(np.rint(x), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.parametrize("deviation", [0.0, 8.0])
def test_every_combination_is_read_exactly(side, deviation):
    """All 1584, with random places, rounded to bytes, and with normal noise of standard deviation 8 in every channel."""
    combinations = list_combinations()
    found = read_pictures(drawn(combinations, side, int(side + deviation), deviation)).numpy()
    np.testing.assert_array_equal(found, combinations)


def test_noise_breaks_it_where_the_documentation_says():
    """At 16 of 255 levels under 1 % is misread, at 40 nothing is recognised."""
    combinations = list_combinations()[::2]
    moderate = read_pictures(drawn(combinations, 16, 0, 16.0)).numpy()
    assert (moderate == combinations).all(1).mean() > 0.985
    assert (read_pictures(drawn(combinations, 16, 0, 40.0)).numpy() == -1).mean() > 0.99


@pytest.mark.parametrize("side", [16, 32])
def test_nothing_is_recognised_without_shapes(side):
    """Blank pictures, noise of every kind, and stripes: -1 everywhere."""
    rng = np.random.default_rng(side)
    noise = rng.normal(size=(60, 3, side, side))
    blank = np.ones((6, 3, side, side)) * np.array([0, 12, 80, 128, 245, 255])[:, None, None, None]
    stripes = np.where(np.arange(side) % 4 < 2, 255, 0) * np.ones((1, 3, side, 1))
    uniform = rng.integers(0, 256, (60, 3, side, side))
    for x in (blank, stripes, uniform, *(level + size * noise for level in (12, 128, 245) for size in (10, 30, 90))):
        assert (read_pictures(as_bytes(x)) == -1).all()


def test_smooth_noise_is_hardly_ever_a_shape():
    """Under 1 % of coloured clouds have anything in common with a shape, and none has all attributes."""
    rng = np.random.default_rng(0)
    clouds = ndimage.gaussian_filter(rng.normal(size=(1000, 3, 16, 16)), (0, 0, 1.6, 1.6))
    found = read_pictures(as_bytes(128 + 60 * clouds / clouds.std((2, 3), keepdims=True)))
    assert (found >= 0).any(1).float().mean() < 0.01 and not (found >= 0).all(1).any()


def test_a_mixed_picture_has_the_attributes_that_its_objects_share():
    """A red circle beside a red square: colour, size, count, background, position, but no shape; and so on."""
    base = np.array(
        [index(shape="circle", colour="red", size="large", count="two", background="white", position="top")]
    )
    left, right = base.copy(), base.copy()
    right[0, 0] = 1
    middles = place_objects(base, np.full((1, 4, 2), 0.5))
    for column, value in ((0, 1), (1, 2), (2, 0)):
        right = left.copy()
        right[0, column] = value
        one, two = (draw_pictures(part, middles, 16) for part in (left, right))
        x = np.concatenate([one[..., :8], two[..., 8:]], axis=-1)
        expected = base[0].copy()
        expected[column] = -1
        assert read_pictures(torch.from_numpy(x))[0].tolist() == expected.tolist()


def test_objects_elsewhere_and_other_colours_are_not_recognised():
    base = np.array(
        [index(shape="circle", colour="red", size="large", count="one", background="grey", position="left")]
    )
    odd = draw_pictures(base, np.array([[[0.34, 0.34], [np.nan] * 2, [np.nan] * 2]]), 16)
    assert read_pictures(torch.from_numpy(odd))[0].tolist() == [*base[0, :5], -1]
    four = np.tile(np.array([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]), (1, 1, 1))
    found = read_pictures(torch.from_numpy(draw_pictures(base, four, 16)))[0].tolist()
    assert found == [*base[0, :3], -1, base[0, 4], ATTRIBUTES["position"].index("middle")]
    orange = draw_pictures(base, place_objects(base, np.full((1, 4, 2), 0.5)), 16).astype(float)
    is_object = (orange[0] - 128).any(0)
    tinted = np.where(is_object, np.array([255, 140, 0])[:, None, None], 128)[None]
    assert (read_pictures(as_bytes(tinted)) == -1).all()
    coloured = orange + np.array([0, 90, 0])[:, None, None] * ~is_object  # another background
    assert (read_pictures(as_bytes(coloured)) == -1).all()


def test_a_circle_on_a_long_wire_is_no_circle():
    """What lies outside of the window that is compared counts as well."""
    base = np.array(
        [index(shape="circle", colour="red", size="large", count="one", background="white", position="middle")]
    )
    x = draw_pictures(base, place_objects(base, np.full((1, 4, 2), 0.5)), 16)
    for first, known in ((4, True), (0, False)):
        wired = x.copy()
        wired[0, :, 8, first : 16 - first] = x[0, :, 8, 8][:, None]
        assert (read_pictures(torch.from_numpy(wired))[0, 0] == 0) == known


def test_specks_are_ignored():
    x = drawn(list_combinations()[100:101], 16, 0).clone()
    before = read_pictures(x)
    x[0, :, 1, 1] = torch.tensor([220, 40, 40], dtype=torch.uint8)
    assert torch.equal(read_pictures(x), before) and (before >= 0).all()


def test_reading_does_not_depend_on_the_batch(monkeypatch):
    x = drawn(list_combinations()[::40], 16, 1, 4.0)
    together = read_pictures(x)
    monkeypatch.setattr("diffguide.evaluation.quality.shape_judge.CHUNK", 7)
    assert torch.equal(read_pictures(x), together)
    assert read_pictures(x[:0]).shape == (0, 6)


@pytest.mark.parametrize("x", [torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)])
def test_other_pictures_are_refused(x):
    with pytest.raises(ValueError, match="the judge of shapes reads uint8"):
        read_pictures(x)
