"""Checks of numbers that a constructor takes."""

import math

__all__ = ["check_finite", "check_range", "check_whole"]


def check_range(name: str, value: float, interval: str) -> float:
    """The number as a float; nan lies in no interval.

    Arguments:
        name: of the argument, for the message.
        interval: where it must lie, as in mathematics: "[0, 1)", "(0, inf)".

    Raises:
        ValueError: a number outside of the interval.
    """
    low, high = map(float, interval[1:-1].split(","))
    inside = low <= value <= high and (value > low or interval[0] == "[") and (value < high or interval[-1] == "]")
    if not inside:
        raise ValueError(f"{name} must be in {interval}, got {value}")
    return float(value)


def check_finite(name: str, value: float) -> float:
    """The number as a float; raises ValueError for inf and nan."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    return float(value)


def check_whole(name: str, value: int, least: int, most: float = math.inf) -> int:
    """The number; raises ValueError unless it is a whole number from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        limits = f"from {least} to {most}" if most < math.inf else f"of at least {least}"
        raise ValueError(f"{name} must be a whole number {limits}, got {value!r}")
    return value
