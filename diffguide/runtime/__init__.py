"""What a run stands on: devices and precision, signals, progress, linear algebra that survives a bad matrix."""
