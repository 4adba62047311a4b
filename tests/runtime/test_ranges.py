"""Checks of numbers that a constructor takes."""

import math

import pytest

from diffguide.runtime.ranges import check_finite, check_range, check_whole


@pytest.mark.parametrize(
    "interval, inside, outside",
    [
        ("[0, 1]", (0, 0.5, 1), (-1e-9, 1.0001, math.nan)),
        ("(0, 1)", (1e-9, 0.999), (0, 1)),
        ("[0, inf)", (0, 1e300), (-1, math.inf, math.nan)),
        ("(0, inf]", (1, math.inf), (0, math.nan)),
        ("(-1, 1)", (-0.5, 0), (-1, 1)),
    ],
)
def test_a_round_bracket_leaves_out_its_end(interval, inside, outside):
    assert [check_range("eta", value, interval) for value in inside] == [float(value) for value in inside]
    for value in outside:
        with pytest.raises(ValueError) as error:
            check_range("eta", value, interval)
        assert str(error.value) == f"eta must be in {interval}, got {value}"


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_infinite_numbers_and_nan_are_not_finite(value):
    assert check_finite("scale", -3) == -3.0
    with pytest.raises(ValueError, match="scale must be a finite number"):
        check_finite("scale", value)


@pytest.mark.parametrize("value", [0, 4, 2.0, True, None])
def test_a_whole_number_is_an_int_within_its_limits(value):
    assert check_whole("steps", 3, 1, 3) == 3 and check_whole("steps", 10**9, 1) == 10**9
    with pytest.raises(ValueError, match="steps must be a whole number from 1 to 3"):
        check_whole("steps", value, 1, 3)
