"""The error of an invalid configuration."""

from ..runtime.errors import InputError

__all__ = ["ConfigError"]


class ConfigError(InputError):
    """An invalid configuration. The message is one line: what is wrong, at which key, and what would be valid."""
