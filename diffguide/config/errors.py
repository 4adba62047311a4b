"""Mistakes in the configuration, which the command line reports in one line."""

from ..runtime.errors import InputError

__all__ = ["ConfigError"]


class ConfigError(InputError):
    """A mistake in the configuration; the message says what, where and what would be right."""
