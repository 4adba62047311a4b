"""Devices and precision, signals, progress bars, linear algebra that tolerates matrices that are not finite."""
