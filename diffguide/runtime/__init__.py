"""Devices and precision, signals, progress bars, errors, and linear algebra that tolerates non-finite matrices."""
