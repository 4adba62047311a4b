"""The parts of benchmark.py: each one measures something and yields rows of its table."""
