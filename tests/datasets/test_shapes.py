"""Pictures of shapes: geometry against areas, splits against the stated rule, captions against their grammar."""

import math

import numpy as np
import pytest
import torch

from diffguide.datasets import Shapes
from diffguide.datasets.shape_captions import LEXICON, WITHHELD_ORDERS, parse_caption, said_values, write_caption
from diffguide.datasets.shape_pictures import (
    ATTRIBUTES,
    INKS,
    PAPERS,
    cover,
    draw_pictures,
    is_held_out,
    list_combinations,
    place_objects,
)
from diffguide.datasets.shapes import ATTRIBUTE_NAMES, prompts

NAMES = [*ATTRIBUTES]


def small(**changes) -> Shapes:
    return Shapes(**dict(train=300, validation=60, test=60) | changes)


@pytest.fixture(scope="module")
def data() -> Shapes:
    return small()


def named(combination) -> dict[str, str]:
    return {name: values[int(k)] for (name, values), k in zip(ATTRIBUTES.items(), combination)}


def combinations_of(split) -> np.ndarray:
    """The indices, from the columns alone."""
    marks = np.split(split.columns["attributes"].numpy(), np.cumsum([len(v) for v in ATTRIBUTES.values()])[:-1], axis=1)
    assert all((mark.sum(1) == 1).all() for mark in marks)
    return np.stack([mark.argmax(1) for mark in marks], axis=1)


def test_shapes_cover_their_areas():
    """In pixels of 16 x 16: pi r^2, (2 a)^2, base h / 2, two bars less their overlap; 64 pixels a side, to 2 %."""
    r, a, base, w = 2.9, 2.6, 6.2, 1.05
    expected = [math.pi * r**2, 4 * a**2, base * 2 * r / 2, 2 * (4 * r * w) - 4 * w**2]
    for scale in (1.0, 0.65):
        covered = cover(np.arange(4), np.full(4, scale), np.full((4, 2), 0.5), 64)
        np.testing.assert_allclose(covered.sum((1, 2)) / 16, scale**2 * np.array(expected), rtol=0.02)
        assert np.array_equal(covered, covered[:, :, ::-1]) and covered.min() == 0 and covered.max() == 1
    assert covered[2, 26].sum() < covered[2, 36].sum(), "the tip of a triangle is at its top"


def test_pixels_are_mixtures_of_two_colours():
    combinations = list_combinations()[::7]
    x = draw_pictures(combinations, place_objects(combinations, np.full((len(combinations), 4, 2), 0.5)), 16)
    for picture, row in zip(x.reshape(len(x), 3, -1).transpose(0, 2, 1).astype(float), combinations):
        ink, paper = INKS[row[1]], PAPERS[row[4]]
        share = (picture - paper) @ (ink - paper) / ((ink - paper) ** 2).sum()
        assert np.abs(picture - paper - share[:, None] * (ink - paper)).max() <= 1  # of rounding each channel by 1/2
        assert 0.65 < share.max() < 1.01 and abs(share.min()) < 0.01  # the arms of a small cross are 1.4 pixels wide


def test_objects_stay_apart_and_within_the_picture():
    """At all corners of the random movements: no pixel is more than covered, and the inside of no shape is cut off."""
    combinations = list_combinations()
    large = combinations[(combinations[:, 2] == 1) & (combinations[:, 1] == 0) & (combinations[:, 4] == 0)]
    rng = np.random.default_rng(0)
    for _ in range(10):
        middles = place_objects(large, rng.integers(0, 2, (len(large), 4, 2)) * (1 - 1e-9))
        held = [
            [cover(row[:1], np.ones(1), at[None], 16)[0] for at in many if np.isfinite(at[0])]
            for row, many in zip(large, middles)
        ]
        for row, masks in zip(large, held):
            assert len(masks) == row[3] + 1 and np.max(sum(masks)) <= 1
            whole = cover(row[:1], np.ones(1), np.full((1, 2), 0.5), 16)[0].sum()
            assert all(mask.sum() > 0.96 * whole for mask in masks)


def test_the_same_is_shown_at_both_sides():
    """The mean over 2 x 2 pixels of a picture of 32 x 32 is that of 16 x 16, up to anti-aliasing."""
    one, two = (small(size=size).train for size in (16, 32))
    assert torch.equal(one.y, two.y) and one.columns["captions"] == two.columns["captions"]
    halved = torch.nn.functional.avg_pool2d(two.x.float(), 2)
    assert (halved - one.x.float()).abs().mean() < 0.5


def test_held_out_combinations_are_the_stated_ones():
    """Written out: shape k in colour k + 1, three triangles, two crosses; every value is seen with others."""
    combinations = list_combinations()
    assert len(combinations) == 4 * 6 * 2 * 3 * (5 + 5 + 1) == len({*map(tuple, combinations.tolist())})
    never = [("circle", "green"), ("square", "blue"), ("triangle", "yellow"), ("cross", "purple")]
    for row, held_out in zip(combinations, is_held_out(combinations)):
        is_in = named(row)
        pair = (is_in["shape"], is_in["colour"]) in never
        many = (is_in["shape"], is_in["count"]) in [("triangle", "three"), ("cross", "two")]
        assert held_out == (pair or many)
    seen = combinations[~is_held_out(combinations)]
    assert [sorted({*column}) for column in seen.T.tolist()] == [[*range(len(v))] for v in ATTRIBUTES.values()]


def test_the_test_split_has_the_combinations_that_training_never_shows(data):
    train, validation, test = (combinations_of(split) for split in (data.train, data.validation, data.test))
    assert not is_held_out(train).any() and not is_held_out(validation).any() and is_held_out(test).all()
    assert not {*map(tuple, test.tolist())} & {*map(tuple, np.concatenate([train, validation]).tolist())}
    assert data.train.y.tolist() == train[:, 0].tolist() and data.class_names == ATTRIBUTES["shape"]
    many = combinations_of(small(train=4000, captions=1).train)
    for column, name in ((2, "size"), (4, "background")):
        share = np.bincount(many[:, column]) / len(many)
        assert np.abs(share * len(share) - 1).max() < 0.08, name
    assert set(many[many[:, 3] == 2][:, 5].tolist()) == {4}


def test_an_example_depends_on_seed_split_and_index_alone(data):
    more, other = small(train=410, validation=7), small(seed=1)
    for name, count in (("train", 300), ("validation", 7), ("test", 60)):
        one, two = getattr(data, name), getattr(more, name)
        assert torch.equal(one.x[:count], two.x[:count]) and torch.equal(one.y[:count], two.y[:count])
        for key in ("captions", "attributes", "numbers"):
            assert all(map(np.array_equal, one.columns[key][:count], two.columns[key][:count]))
    assert not torch.equal(data.train.x, other.train.x) and not torch.equal(data.train.x[:60], data.validation.x)
    assert data.fingerprint() == small().fingerprint() != other.fingerprint() != small(captions=3).fingerprint()


def test_columns_have_their_forms(data):
    columns = data.train.columns
    assert columns["attributes"].shape == (300, len(ATTRIBUTE_NAMES)) and len(ATTRIBUTE_NAMES) == 23
    assert columns["numbers"].shape == (300, 2) and columns["numbers"].abs().max() < 0.62
    left = columns["attributes"][:, ATTRIBUTE_NAMES.index("position left")] == 1
    assert (columns["numbers"][left, 0] < -0.3).all() and (columns["numbers"][~left, 0] > -0.3).all()
    assert all(len(texts) == 4 for texts in columns["captions"]) and data.synthetic and not data.flip


def test_captions_say_what_is_shown(data):
    """Read back by the grammar; the first caption says all, the others leave out a part."""
    said = 0
    for split in (data.train, data.test):
        for row, texts in zip(combinations_of(split), split.columns["captions"]):
            truth = named(row)
            assert said_values(texts[0]) == truth
            for text in texts:
                values = said_values(text)
                assert values.items() <= truth.items() and "count" in values
                said += len(values)
    mean = (said - 6 * 360) / (3 * 360)  # of the count, and of five attributes with probability 0.7
    assert mean == pytest.approx(4.5, abs=4.5 * math.sqrt(5 * 0.21 / (3 * 360)))


def test_training_never_has_withheld_words_or_orders(data):
    trained = {text for texts in data.train.columns["captions"] for text in texts}
    withheld = {
        form
        for values in LEXICON.values()
        for lists in values.values()
        for word in lists[1]
        for form in word.split("/")
    }
    assert len(withheld) > 25
    for text in trained:
        assert not {phrase.text for phrase in parse_caption(text)} & withheld
        assert parse_caption(text)[0].attribute != "position"
    for text, _ in prompts("test", n=40, wording="synonyms"):
        assert {phrase.text for phrase in parse_caption(text)} <= withheld
    for text, _ in prompts("test", n=40, wording="order", complete=False):
        assert parse_caption(text)[0].attribute == "position" and len(WITHHELD_ORDERS) == 2


@pytest.mark.parametrize("wording", ["plain", "trained", "order", "synonyms"])
def test_prompts_ask_for_combinations_of_their_split(wording):
    for split, held_out in (("train", False), ("validation", False), ("test", True)):
        asked = prompts(split, seed=3, n=50, wording=wording)
        rows = np.array([[ATTRIBUTES[name].index(values[name]) for name in NAMES] for _, values in asked])
        assert (is_held_out(rows) == held_out).all()
        assert all(said_values(text) == values for text, values in asked)
        assert (
            prompts(split, seed=3, n=20, wording=wording) == asked[:20] != prompts(split, seed=4, n=20, wording=wording)
        )
        loose = prompts(split, seed=3, n=50, wording=wording, complete=False)
        assert all(said_values(text) == values for text, values in loose) and min(len(v) for _, v in loose) < 5


def test_captions_are_english():
    draws = [0.0] * 13
    assert write_caption([0, 0, 0, 0, 0, 4], draws, "plain", True)[0] == "a small red circle in the middle on white"
    assert write_caption([1, 2, 1, 1, 1, 0], draws, "plain", True)[0] == "two large blue squares on the left on grey"
    assert write_caption([1, 1, 0, 0, 0, 4], draws)[0] == "a shape"
    left_out = [0.9, 0.9, 0.9, 0.9, 0.1, 0, 0, 0, 0.1, 0, 0.1, 0, 0.0]
    assert write_caption([1, 1, 0, 0, 0, 4], left_out)[0] == "an emerald box"
    assert (
        write_caption([1, 1, 0, 2, 2, 4], [0.0, 0, 0.9, 0, 0.1, 0, 0, 0, 0.9, 0, 0.1, 0, 0.9])[0]
        == "on black, three green shapes"
    )


def test_no_caption_is_longer_than_the_text_encoder_reads():
    """63 bytes and the end of the text: over all words and orders of each wording."""
    draws = np.random.default_rng(0).random((4000, 13))
    rows = list_combinations()[np.random.default_rng(1).integers(0, 1584, 4000)]
    for wording in ("plain", "trained", "order", "synonyms"):
        longest = max(len(write_caption(row, many, wording, True)[0]) for row, many in zip(rows, draws))
        assert 45 < longest <= 63


def test_captions_are_read_in_any_case_and_order():
    assert said_values("Two BLUE squares, over white.") == {
        "count": "two", "colour": "blue", "shape": "square", "background": "white",
    }  # fmt: skip
    assert said_values("green") == {"colour": "green"} and said_values("") == {} == said_values("shapes")
    assert said_values("a pair of boxes on the left on grey")["position"] == "left"
    assert [phrase.text for phrase in parse_caption("an emerald disc at the top")] == [
        "an",
        "emerald",
        "disc",
        "at the top",
    ]


@pytest.mark.parametrize(
    "text, message", [("a red dog", "'dog'"), ("reddish", "'reddish'"), ("a red blue circle", "two values of colour")]
)
def test_other_words_are_refused(text, message):
    with pytest.raises(ValueError, match=message) as raised:
        parse_caption(text)
    assert repr(text) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"size": 24}, "dataset.size is 24"),
        ({"channels": 1}, "dataset.channels is 1"),
        ({"num_classes": 3}, "dataset.num_classes is 3"),
        ({"captions": 0}, "dataset.captions is 0"),
        ({"train": 0}, "shapes needs 1 to"),
        ({"quantization_levels": 17}, "dataset.quantization_levels is 17"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)
    with pytest.raises(ValueError, match="split must be"):
        prompts("all")
    with pytest.raises(ValueError, match="wording must be"):
        prompts(wording="rude")


def test_the_data_sheet_counts_combinations_and_shows_captions(data):
    lines = data.summary()
    assert "combinations: 1140 in train and validation, 444 others in test, of 1584" in lines
    assert "captions of an image: " + " | ".join(data.train.columns["captions"][0]) in lines
    assert any(line.startswith("captions: 1680 of 420 images, from a grammar, 4 to 4 per image, ") for line in lines)
