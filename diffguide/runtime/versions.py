"""The versions on which the bits of a result depend."""

import platform

import torch

from ..version import __version__

__all__ = ["collect_versions"]


def collect_versions() -> dict[str, str]:
    """The versions of diffguide, torch and Python, for manifests and metrics.json."""
    return {"diffguide": __version__, "torch": torch.__version__, "python": platform.python_version()}
