"""Attributes, numbers and several conditions at once: what the network gets, what training draws, what a user writes."""

import math

import numpy as np
import pytest
import torch

from diffguide.backbones.conditions import Attributes, Numbers, Several, has_condition, remove_condition
from diffguide.conditions import ByteText, Classes, Continuous, MultiLabel, SeveralConditions

X = torch.zeros(3, 1, 2, 2, dtype=torch.float64)


def test_attributes_are_two_numbers_each():
    label = MultiLabel(["hat", "beard"], drop=0.5)
    y = label.read(["hat, no beard", ["beard"], ""])
    assert y.values.tolist() == [[1, 0], [-1, 1], [-1, -1]] and y.keep.tolist() == [True, True, False]
    assert label(y, X).vector.tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]  # has it: hat, beard; has it not
    assert not label(None, X).vector.any() and not label(remove_condition(y), X).vector.any()
    for bad in ("moustache", "no moustache"):
        with pytest.raises(ValueError, match="moustache is no attribute; they are hat, beard"):
            label.read([bad])
    for bad in ([1.0, 0.0], 1.0):
        with pytest.raises(ValueError, match="1.0 is no attribute; they are hat, beard"):
            label.read([bad])
    with pytest.raises(ValueError, match="y must be Attributes"):
        label(torch.zeros(3, dtype=torch.long), X)


def test_numbers_are_fourier_features_and_whether_they_are_given():
    number = Continuous(["angle", "age"], centers=[0.0, 40.0], widths=[180.0, 40.0], frequencies=2)
    y = number.read(["90, 20", [-45, ""], ""])
    assert y.keep.tolist() == [True, True, False] and isinstance(y, Numbers)
    u = np.array([[0.5, -0.5], [-0.25, np.nan], [np.nan, np.nan]])
    parts = [np.ones_like(u), u, np.sin(np.pi * u), np.sin(2 * np.pi * u), np.cos(np.pi * u), np.cos(2 * np.pi * u)]
    expected = np.concatenate([np.where(np.isnan(u), 0, part) for part in parts], 1)
    np.testing.assert_allclose(number(y, X).vector, expected, rtol=1e-6, atol=1e-7)
    assert not number(None, X).vector.any() and not number(remove_condition(y), X).vector.any()
    for bad, message in (("tall, 3", "must be a number"), ("1", "must be 2 numbers: angle, age")):
        with pytest.raises(ValueError, match=message):
            number.read([bad])


@pytest.mark.parametrize("make", [MultiLabel, Continuous], ids=["attributes", "numbers"])
def test_training_forgets_each_value_with_its_probability(make):
    options = {} if make is MultiLabel else {"centers": [0, 0], "widths": [1, 1]}
    part = make(["a", "b"], drop=0.25, **options)
    column = torch.ones(4000, 2)
    table = part.tabulate({part.column: column}, torch.zeros(4000))
    rows, chance = torch.arange(4000), torch.rand(4000, table.draws, generator=torch.Generator().manual_seed(0))
    kept = part(table(rows, torch.zeros(4000, 1)), torch.zeros(4000, 1)).vector[:, :2]
    assert table.draws == 2 and bool(kept.all())
    values = table(rows, torch.zeros(4000, 1), chance).values
    forgotten = values == -1 if make is MultiLabel else values.isnan()
    assert torch.equal(forgotten, chance < 0.25) and abs(forgotten.double().mean() - 0.25) < 0.02
    assert make(["a", "b"], drop=0.0, **options).tabulate({part.column: column}, torch.zeros(4000)).draws == 0


def test_data_without_the_column_or_with_other_values_are_refused():
    with pytest.raises(ValueError, match="condition=multi_label needs data with attributes, and they have captions"):
        MultiLabel(["a"]).tabulate({"captions": []}, torch.zeros(3))
    with pytest.raises(ValueError, match="attributes must be 1, 0 or -1 for each of a"):
        MultiLabel(["a"]).tabulate({"attributes": torch.full((3, 1), 2)}, torch.zeros(3))
    with pytest.raises(ValueError, match="numbers must be finite"):
        Continuous(["a"], [0], [1]).tabulate({"numbers": torch.full((3, 1), math.inf)}, torch.zeros(3))
    with pytest.raises(ValueError, match="condition.num_classes is 2, but the data have class 5"):
        Classes(2).tabulate({}, torch.tensor([5]))


def several(**options) -> SeveralConditions:
    return SeveralConditions(
        {"text": ByteText(16, 8, 1, 2), "class": Classes(3, 4), "age": Continuous(["age"], [0], [1])}, **options
    )


def test_several_conditions_are_their_contexts_side_by_side():
    whole = several()
    y = whole.read([{"text": "hi", "age": 0.5}, "only a text", {"class": 2}])
    context = whole(y, X.float())
    parts = {name: whole.part(name)(y.parts[name], X.float()) for name in ("text", "class", "age")}
    torch.testing.assert_close(context.vector, torch.cat([part.vector for part in parts.values()], 1))
    torch.testing.assert_close(context.tokens, parts["text"].tokens)
    assert y.parts["class"].tolist() == [-1, -1, 2] and has_condition(y).all()
    assert has_condition(y.only(["class"])).tolist() == [False, False, True]
    torch.testing.assert_close(whole(remove_condition(y), X.float()).vector, whole(None, X.float()).vector)
    embedded = whole(whole.embed(y), X.float())
    torch.testing.assert_close(embedded.vector, context.vector)
    joined = y.join([y[1:]])
    assert isinstance(joined, Several) and len(joined) == 5 and joined.parts["class"].tolist() == [-1, -1, 2, -1, 2]
    with pytest.raises(ValueError, match="conditions text, class, age, not style"):
        whole.read([{"style": 1}])


def test_each_part_is_dropped_alone_with_its_probability():
    whole = several(drop={"text": 0.5, "age": 0.0})
    columns = {"captions": [["a", "b"]] * 2000, "numbers": torch.zeros(2000, 1)}
    table = whole.tabulate(columns, torch.ones(2000, dtype=torch.long))
    chance = torch.rand(2000, table.draws, generator=torch.Generator().manual_seed(0))
    x = torch.zeros(2000, 1)
    y = table(torch.arange(2000), x, chance)
    shares = {name: 1 - has_condition(part).double().mean().item() for name, part in y.parts.items()}
    assert abs(shares["text"] - 0.5) < 0.04 and abs(shares["class"] - 0.05) < 0.02
    assert has_condition(table(torch.arange(2000), x)).all()
    both = ~has_condition(y.parts["text"]) & ~has_condition(y.parts["class"])
    assert abs(both.double().mean() - 0.025) < 0.015  # independently
    with pytest.raises(ValueError, match="condition.drop names style"):
        several(drop={"style": 0.5})


def test_attributes_join_and_select_as_rows():
    y = Attributes(torch.tensor([[1, -1], [-1, -1]]))
    assert y.join([y]).values.shape == (4, 2) and y[torch.tensor([1])].keep.tolist() == [False]
    with pytest.raises(ValueError, match="values .*and keep"):
        Attributes(torch.zeros(2))
