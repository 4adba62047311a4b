"""Classification: zero-shot, noise-level classifiers, calibration, out-of-distribution detection."""
