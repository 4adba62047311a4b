"""The training loop, its batches and learning rates."""

from .batches import Batches, DataOrder
from .learning_rates import LearningRatePlan
from .loop import Diverged, Training

__all__ = ["Batches", "DataOrder", "Diverged", "LearningRatePlan", "Training"]
