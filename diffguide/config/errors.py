"""Mistakes of the user's, which the command line reports in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import CompactHydraException

from ..runtime.errors import InputError

__all__ = ["ConfigError", "config_errors"]


class ConfigError(CompactHydraException, InputError):
    """A mistake in the configuration; the message says what, where and what would be right."""


@contextmanager
def config_errors(key: str) -> Iterator[None]:
    """Turns a ValueError or OSError into a ConfigError that begins with the key."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(f"{key}: {error}") from error
