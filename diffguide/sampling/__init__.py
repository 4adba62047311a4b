"""Sampling runs: what is sampled, how, and what is written."""
