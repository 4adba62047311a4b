"""Sampling runs: sources of models, batches, outputs, sweeps and trade-offs."""

from .run import SampleWriter, SamplingPlan
from .sources import CheckpointSource, OracleSource, SampleSource

__all__ = ["CheckpointSource", "OracleSource", "SampleSource", "SampleWriter", "SamplingPlan"]
