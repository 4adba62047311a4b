"""Errors that the command line reports in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["InputError", "convert_input_errors"]


class InputError(ValueError):
    """An invalid input. The message says what is wrong, where and what would be right; the command ends with code 1."""


@contextmanager
def convert_input_errors(key: str) -> Iterator[None]:
    """Converts a ValueError or OSError into an InputError whose message starts with a configuration key."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"{key}: {error}") from error
