"""Facts, splits and preprocessing of the data sets, and the distributions of the synthetic ones."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_sample_images

from diffguide.datasets import GMM2D, Dataset, Digits, PhotoPatches, Split, Stream, Tree
from diffguide.oracles import AutoguidanceTree
from diffguide.schedules import EDM


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


def test_gmm2d_has_three_splits_of_labelled_points():
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
        assert np.all(np.abs(near.std(0) / 0.15 - 1) < 0.04)  # 1 % of sampling error, and the bias of the assignment
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


TREE = {"channels": 2, "size": None, "num_classes": 2, "train": 6000, "validation": 30, "test": 20, "seed": 0}


def test_the_tree_is_drawn_from_its_law():
    """n = 6000: mean log-density given the class, class shares and means within 4.5 standard errors of the oracle's."""
    data = Tree(**TREE)
    law = AutoguidanceTree(depth=7, seed=2, schedule=EDM(log_snr_max=12.4, log_snr_min=-3.2, rho=7.0))
    x, y = data.train.x.double(), data.train.y
    exact, labels = law.sample(6000, torch.Generator().manual_seed(1))
    for own, theirs in (
        (law.log_density(x, None, y), law.log_density(exact, None, labels)),
        (y.double(), labels.double()),
        *((x[y == label, axis], exact[labels == label, axis]) for label in (0, 1) for axis in (0, 1)),
        *((x[y == label].prod(1), exact[labels == label].prod(1)) for label in (0, 1)),
    ):
        error = math.sqrt(float(own.var() / len(own) + theirs.var() / len(theirs)))
        assert abs(float(own.mean() - theirs.mean())) < 4.5 * error
    assert data.shape == (2,) and data.class_names == ("A", "B") and data.synthetic
    assert data.train.x.dtype == torch.float32 and data.train.y.dtype == torch.long


def test_the_tree_is_a_function_of_its_seed():
    first, again, other = (Tree(**TREE | {"train": 50, "seed": seed}) for seed in (0, 0, 1))
    for a, b, c in zip((first.train, first.test), (again.train, again.test), (other.train, other.test)):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and not torch.isclose(a.x, c.x).all()
    assert not torch.isclose(first.train.x[:20], first.test.x).all(), "the splits are different draws"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"channels": 3}, "dataset.channels is 3, but tree has 2"),
        ({"num_classes": 4}, "num_classes is 4, but tree has 2"),
        ({"train": 0}, "tree needs 1 to 10"),
        ({"test": 10**8}, "tree needs 1 to 10"),
        ({"seed": -1}, "seed >= 0"),
    ],
)
def test_the_tree_refuses_other_facts_and_numbers_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        Tree(**TREE | change)


BYTES = torch.arange(2 * 3 * 7 * 7).reshape(2, 3, 7, 7).remainder(256).to(torch.uint8)


def stored(size: int | None = None, flip: bool = False, x: torch.Tensor = BYTES) -> Dataset:
    split = Split(x, torch.tensor([0, 1]))
    return Dataset(split, split, split, class_names=("a", "b"), size=size, flip=flip)


def test_bytes_become_floats_in_plus_minus_one():
    x = stored().preprocess(BYTES)
    assert x.dtype == torch.float32 and stored().shape == (3, 7, 7)
    np.testing.assert_allclose(x.numpy(), BYTES.numpy() / 127.5 - 1, atol=1e-6)
    floats = torch.randn(2, 3, 7, 7)
    assert torch.equal(stored(x=floats).preprocess(floats), floats), "floats are unchanged"


def test_outside_training_the_window_is_central():
    data = stored(size=4, flip=True)
    assert data.shape == (3, 4, 4)
    assert torch.equal(data.preprocess(BYTES), stored().preprocess(BYTES)[:, :, 1:5, 1:5])
    assert torch.equal(stored(size=3).preprocess(BYTES), stored().preprocess(BYTES)[:, :, 2:5, 2:5])


@pytest.mark.parametrize("mirror", [0.2, 0.7])
def test_training_uses_random_windows(mirror):
    """7 - 4 + 1 = 4 positions in each direction: the quarters of [0, 1)."""
    whole, data = stored().preprocess(BYTES), stored(size=4, flip=True)
    for row, u in enumerate((0.0, 0.26, 0.5, 0.999999)):
        for column, v in enumerate((0.24, 0.49, 0.74, 0.75)):
            seen = data.preprocess(BYTES, torch.tensor([[mirror, u, v], [0.9, 0.0, 0.0]]))
            expected = whole[0, :, row : row + 4, column : column + 4]
            assert torch.equal(seen[0], expected.flip(-1) if mirror < 0.5 else expected)
            assert torch.equal(seen[1], whole[1, :, :4, :4])


def test_mirroring_is_left_to_right_and_only_with_flip():
    chance = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    whole = stored().preprocess(BYTES)
    assert torch.equal(stored(flip=True).preprocess(BYTES, chance), torch.stack([whole[0].flip(2), whole[1]]))
    assert torch.equal(stored(flip=False).preprocess(BYTES, chance), whole)


def test_vectors_are_neither_cut_nor_mirrored():
    vectors, chance = torch.randn(2, 5), torch.zeros(2, 3)
    assert torch.equal(stored(flip=True, x=vectors).preprocess(vectors, chance), vectors)


def test_a_window_larger_than_the_stored_image_is_refused():
    with pytest.raises(ValueError, match="dataset.size is 8, but the images are stored as"):
        stored(size=8)


def test_a_stream_has_the_shape_and_the_sheet_of_its_examples():
    class Numbers(Stream):
        def __init__(self, y):
            self.y = torch.tensor(y)

        def __getitem__(self, index):
            return torch.full((1, 6, 6), index, dtype=torch.uint8), int(self.y[index])

    data = Dataset(Numbers([0, 1, 1]), Numbers([1]), Numbers([-1, 0]), class_names=("a", "b"), size=5, workers=2)
    assert data.shape == (1, 5, 5) and len(data.train) == 3 and data.workers == 2
    lines = [
        "train: 3 examples",
        "validation: 1 examples",
        "test: 2 examples",
        "class 0 a: 1 train / 0 validation / 1 test",
        "class 1 b: 2 train / 1 validation / 0 test",
    ]
    assert data.summary() == lines


def patches(**changes) -> PhotoPatches:
    arguments = dict(channels=3, size=32, num_classes=2, train=301, validation=40, test=40, seed=0, flip=True)
    return PhotoPatches(**arguments | changes)


def places(photo: np.ndarray, crop: np.ndarray) -> list[int]:
    """The columns at which a crop lies in a photograph."""
    corners = np.argwhere((photo[:-31, :-31] == crop[0, 0]).all(-1))
    return [column for row, column in corners if np.array_equal(photo[row : row + 32, column : column + 32], crop)]


def test_patches_are_crops_of_their_photograph_in_their_strip():
    data, photos = patches(), load_sample_images().images
    assert data.class_names == ("china", "flower") and data.shape == (3, 32, 32) and data.flip
    for name, left, right in (("train", 0, 448), ("validation", 448, 544), ("test", 544, 640)):
        split, columns = getattr(data, name), []
        assert split.x.dtype == torch.uint8 and split.x.is_contiguous()
        assert abs(int((split.y == 0).sum()) - int((split.y == 1).sum())) == len(split.y) % 2, "half of each photo"
        for x, y in list(zip(*split))[:40]:
            found = places(photos[y][:, left:right], x.permute(1, 2, 0).numpy())
            assert found, f"a crop of {name} is not in its strip"
            columns.append(found[0])
        assert min(columns) < 0.2 * (right - left - 32) and max(columns) > 0.8 * (right - left - 32)


def test_patches_are_a_function_of_their_seed():
    first, again, other = patches(), patches(), patches(seed=1)
    assert torch.equal(first.train.x, again.train.x) and torch.equal(first.test.x, again.test.x)
    assert not torch.equal(first.train.x, other.train.x)


@pytest.mark.parametrize("fact, stated, found", [("channels", 1, 3), ("size", 64, 32), ("num_classes", 0, 2)])
def test_patches_refuse_other_facts(fact, stated, found):
    with pytest.raises(ValueError, match=f"dataset.{fact} is {stated}, but photo_patches has {found}"):
        patches(**{fact: stated})


def test_patches_need_one_per_split():
    with pytest.raises(ValueError, match="photo_patches needs 1 to"):
        patches(validation=0)


def test_digits_are_named_in_words():
    words = "zero one two three four five six seven eight nine".split()
    for split in (Digits().train, Digits().validation, Digits().test):
        for label, captions in zip(split.y.tolist(), split.columns["captions"], strict=True):
            assert captions == [words[label], f"the digit {label}", f"a handwritten {words[label]}"]
