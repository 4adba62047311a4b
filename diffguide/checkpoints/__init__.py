"""Checkpoints: read, write, validate; which classes a checkpoint may build."""
