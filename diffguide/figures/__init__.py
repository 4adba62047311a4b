"""Figures and tables: image grids, scatter plots, curves, trajectories."""
