"""The error of an export."""

__all__ = ["ExportError"]


class ExportError(ValueError):
    """A model that cannot be exported. The message says why, and what is possible."""
