"""Metrics of trained models: likelihood, quality of samples, classification; and distances between sets of samples."""

from .auto import Auto
from .classification.level_metric import LevelAccuracy
from .classification.metric import Classification
from .classification.ood import OOD, ConfidenceScore, DensityScore, SlopeScore
from .classification.weighting import Bell, Even, Exact, Piecewise, UniformTimeWeighting
from .classification.zero_shot import Budget, ZeroShot
from .classification.zero_shot_metric import ZeroShotClassifier
from .denoising import DenoisingError, relative_excess_risk
from .flow_map import FlowMapError
from .likelihood.comparison import Likelihoods
from .likelihood.density_error import DensityError
from .likelihood.dequantization import DecoderDequantization, UniformDequantization
from .likelihood.discrete_ode import LevelSteps
from .likelihood.flow_ode import Adaptive, ExactTrace, FixedGrid, Hutchinson, flow_log_density
from .likelihood.metrics import ELBO, ExactDensity, FlowODE
from .metric import EvalContext, Metric, MetricError
from .quality.alignment import Judgement, judge_pictures
from .quality.alignment_metric import Alignment
from .quality.distances import covariance_error, energy_distance, mean_error, sliced_wasserstein, wasserstein
from .quality.features import Features, Pixels
from .quality.frechet import frechet_distance
from .quality.label_agreement import LabelClassifier
from .quality.local import Local
from .quality.metric import Quality
from .quality.precision_recall import density_coverage, precision_recall
from .quality.pretrained import CLIP, DINOv2, Inception
from .results import Figure, MetricResult

__all__ = [
    "Adaptive", "Alignment", "Auto", "Bell", "Budget", "CLIP", "Classification", "ConfidenceScore", "DINOv2",
    "DecoderDequantization", "DenoisingError", "DensityError", "DensityScore", "ELBO", "EvalContext", "Even", "Exact",
    "ExactDensity", "ExactTrace", "Features", "Figure", "FixedGrid", "FlowMapError", "FlowODE", "Hutchinson", "Inception",
    "Judgement", "LabelClassifier", "LevelAccuracy", "LevelSteps", "Likelihoods", "Local", "Metric", "MetricError",
    "MetricResult", "OOD", "Piecewise", "Pixels", "Quality", "SlopeScore", "UniformDequantization",
    "UniformTimeWeighting", "ZeroShot", "ZeroShotClassifier", "covariance_error", "density_coverage", "energy_distance",
    "flow_log_density", "frechet_distance", "judge_pictures", "mean_error", "precision_recall", "relative_excess_risk",
    "sliced_wasserstein", "wasserstein",
]  # fmt: skip
