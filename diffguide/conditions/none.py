"""No condition."""

from ..backbones.conditioning import Conditioning

__all__ = ["NoCondition"]


class NoCondition(Conditioning):
    """Says in a configuration that a network takes no condition; no network is built with it."""

    def __init__(self) -> None:
        super().__init__()
