"""Models: denoisers, log-densities and classifiers on top of a network."""

from .decoders import Decoder, Discretized, Gaussian
from .equilibrium_energy import EquilibriumEnergy
from .evaluation_counters import EvaluationCounter
from .joint_energy import JointEnergy
from .jumps import JumpModel
from .level_classifier import LevelClassifier
from .level_energy import LevelEnergy, TimeScore
from .noisy_classifier import NoisyClassifier
from .noisy_joint_energy import NoisyJointEnergy
from .parameterizations import EDM, X0, Eps, Flow, Parameterization, Rows, Score, V
from .preconditioned import Preconditioned
from .protocols import (
    Classifier,
    Denoiser,
    DenoiserInfo,
    DenoiserWrapper,
    Energy,
    ExactDenoiser,
    LogDensity,
    Prediction,
    SamplingError,
    Tally,
)

__all__ = [
    "EDM", "V", "X0", "Classifier", "Decoder", "Denoiser", "DenoiserInfo", "DenoiserWrapper", "Discretized", "Energy", "Eps",
    "EquilibriumEnergy", "EvaluationCounter", "ExactDenoiser", "Flow", "Gaussian", "JointEnergy", "JumpModel",
    "LevelClassifier", "LevelEnergy", "LogDensity", "NoisyClassifier", "NoisyJointEnergy", "Parameterization",
    "Preconditioned", "Prediction", "Rows", "SamplingError", "Score", "Tally", "TimeScore",
]  # fmt: skip
