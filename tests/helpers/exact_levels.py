"""A classifier of the noise level whose logits are the closed form, of the eight Gaussians of dataset=gmm2d."""

import math

import torch

from diffguide.backbones import Backbone
from diffguide.models.level_classifier import LevelClassifier
from diffguide.oracles import GMM2DLaw
from diffguide.schedules import TRE

SCHEDULE = TRE(12.0, -10.0)


def exact_levels(
    steps: int, schedule=SCHEDULE, offset: float = 0.0, law=GMM2DLaw, classes: int = 4, slope: float = 0.0
) -> LevelClassifier:
    """Its log-density is off by `offset` at level 0, its score by `slope` along the first axis at every level below T."""
    oracle = law(schedule)

    class Exact(Backbone):
        num_classes, out_features, noise_conditioned = classes, steps + 2, False

        def forward(self, x, log_snr, y=None):
            wide, times = x.double(), torch.arange(steps + 1, dtype=torch.float64) / steps
            density = [oracle.log_density(wide, t, y) for t in times]
            density[0] = density[0] + offset
            density[:-1] = [part + slope * wide[:, 0] for part in density[:-1]]
            density.append(-0.5 * (wide.square() + math.log(2 * math.pi)).sum(1))
            logits = torch.stack(density, 1)
            return torch.cat([logits[:, :1], logits.diff(dim=1)], 1).to(torch.promote_types(x.dtype, torch.float32))

    return LevelClassifier(Exact(), schedule, steps, True)
