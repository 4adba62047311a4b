"""Conditions that a network can be built with: texts, attributes, numbers, pictures, several at once."""

from .classes import Classes, MultiLabel
from .frozen_text import ClipText, T5Text
from .none import NoCondition
from .numbers import Continuous
from .pictures import LowResolution, Masked
from .several import SeveralConditions
from .text import ByteText

__all__ = [
    "ByteText",
    "Classes",
    "ClipText",
    "Continuous",
    "LowResolution",
    "Masked",
    "MultiLabel",
    "NoCondition",
    "SeveralConditions",
    "T5Text",
]
