"""The version of diffguide, recorded in checkpoints, run folders and manifests."""

__version__ = "0.1.0"
