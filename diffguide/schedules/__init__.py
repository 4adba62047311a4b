"""Noise schedules: a curve log_snr(t) and a normalisation. `base` defines the interface."""

from .base import (
    Schedule,
    as_time,
    broadcast_rows,
    check_finite_ends,
    linear,
    sub_variance_preserving,
    time_key,
    variance_exploding,
    variance_preserving,
)
from .curves import TRE, Cosine, Flow, Sigmoid
from .discrete import Linear, ScaledLinear, SigmoidBeta, SquaredCosine, TrainedBetas
from .interval import EVERYWHERE, Interval
from .learned import Monotone
from .none import NoSchedule
from .sde import EDM, VE, VP, SubVP
from .tabulated import Tabulated, TimeTable, same_schedule, tabulate
from .wrappers import ResolutionShift, ZeroTerminalSNR

__all__ = [
    "EDM", "EVERYWHERE", "Interval", "TRE", "VE", "VP", "Cosine", "Flow", "Linear", "Monotone", "NoSchedule",
    "ResolutionShift", "ScaledLinear", "Schedule", "Sigmoid", "SigmoidBeta", "SquaredCosine", "SubVP", "Tabulated",
    "TimeTable", "TrainedBetas", "ZeroTerminalSNR", "as_time", "broadcast_rows", "check_finite_ends", "linear", "same_schedule",
    "sub_variance_preserving", "tabulate", "time_key", "variance_exploding", "variance_preserving",
]  # fmt: skip
