"""The exact law of a sampler on a Gaussian: there a run is an affine map of its start and its noise, read off row by row."""

import numpy as np
import torch


class Recorder:
    """Noise for rows that probe an affine map: row 0 gets none; row 1 + D + i gets the i-th number drawn as 1."""

    def __init__(self, rows: int, dimension: int):
        self.rows, self.dimension, self.drawn = rows, dimension, 0

    def normal(self, level, draw):
        z = torch.zeros(self.rows, self.dimension, dtype=torch.float64)
        for d in range(self.dimension):
            row = 1 + self.dimension + self.drawn
            if row < self.rows:
                z[row, d] = 1.0
            self.drawn += 1
        return z

    def increment(self, t, s):
        return self.normal(t, 0)


def terminal_law(sampler, denoiser, times, mean, covariance):
    """Mean [D] and covariance [D, D] at times[-1] of a start with this mean and covariance, exact for affine samplers."""
    mean, covariance = np.atleast_1d(np.asarray(mean, float)), np.atleast_2d(np.asarray(covariance, float))
    dimension = len(mean)

    def run(rows: int):
        x = torch.zeros(rows, dimension, dtype=torch.float64)
        x[1 : 1 + dimension] = torch.eye(dimension, dtype=torch.float64)
        recorder = Recorder(rows, dimension)
        return sampler(denoiser, x, times, noise=recorder).numpy(), recorder.drawn

    drawn = run(1 + dimension)[1]
    x, _ = run(1 + dimension + drawn)
    offset, gains, loads = x[0], (x[1 : 1 + dimension] - x[0]).T, (x[1 + dimension :] - x[0]).T
    return offset + gains @ mean, gains @ covariance @ gains.T + loads @ loads.T
