"""Evaluation: how far samples are from the truth."""

from .quality.distances import covariance_error, energy_distance, mean_error, sliced_wasserstein, wasserstein

__all__ = ["covariance_error", "energy_distance", "mean_error", "sliced_wasserstein", "wasserstein"]
