"""What samples of one class of a law are compared with: exact samples of the class, and of the laws that guidance names."""

from collections.abc import Mapping
from functools import cached_property
from math import nan

import torch
from torch import Tensor

from diffguide.evaluation.quality.distances import energy_distance
from diffguide.models.tilts import Power, Tilt
from diffguide.oracles import TiltedLaw

from .laws import Law

__all__ = ["SCALES_OF_LAWS", "Truth", "tilt_of_scale"]

SETS = 3  # exact sets, and pairs of them for the floor
SCALES_OF_LAWS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0)  # of the laws of which the nearest is found
OUTLIERS = 0.001  # share of exact samples below the bound of outliers
BOUND_SAMPLES = 20000
THIN = 0.25  # a mode is thinned if it holds less than this share of what it expects
EXPECTED = 5.0  # samples that a mode must expect to count
MAX_COMPONENTS = (
    100  # of laws of which other products than those that cfg names are sampled, which takes minutes for more
)
END = torch.tensor(0.0, dtype=torch.float64)  # the time t at which samplers end


def tilt_of_scale(scale: float) -> Tilt:
    """p(x | y)^w p(x)^(1 - w)."""
    return Tilt((Power(scale), Power(1 - scale, -1)))


class Truth:
    """Figures of samples of a law's class.

    Arguments:
        law: with the class that is sampled.
        n: number of samples.
        seed: of the exact sets.
    """

    def __init__(self, law: Law, n: int, seed: int):
        self.law, self.n, self.seed = law, n, seed
        self.tilted: dict[str, Tensor | None] = {}

    @cached_property
    def exact(self) -> list[Tensor]:
        """Twice SETS exact sets [n, D] of the class."""
        return [self.law.sample(self.n, 1000 * self.seed + k) for k in range(100, 100 + 2 * SETS)]

    @cached_property
    def floor(self) -> float:
        """The mean energy distance of two exact sets."""
        return sum(map(energy_distance, self.exact[:SETS], self.exact[SETS:])) / SETS

    @cached_property
    def bound(self) -> float:
        """The OUTLIERS quantile of log p(x | y) of exact samples with the noise at which samplers end."""
        x = self.law.sample(BOUND_SAMPLES, 1000 * self.seed + 99)
        alpha, sigma = self.law.oracle.schedule.alpha_sigma(END)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(98), dtype=torch.float64)
        return float(self.log_density(alpha * x + sigma * noise).quantile(OUTLIERS))

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x | y) at the end of samplers, [n]."""
        return self.law.oracle.log_density(x.reshape(-1, *self.law.oracle.shape), END, self.law.of_class(len(x)))

    def sample_tilted(self, tilt: Tilt) -> Tensor | None:
        """n exact samples [n, D] of a law that guidance names for the class; None if it cannot be, or takes long."""
        tilt = tilt.given(self.law.label)
        key = tilt.describe()
        if key not in self.tilted:
            rng = torch.Generator().manual_seed(1000 * self.seed + 50)
            try:
                part = TiltedLaw(self.law.oracle, tilt).of(self.law.label)
                quick = part.bounded() and {power.condition for power in tilt.powers} <= {self.law.label, -1}
                quick = quick or len(self.law.oracle.labels) <= MAX_COMPONENTS
                self.tilted[key] = part.sample(self.n, rng).flatten(1) if quick else None
            except ValueError:  # not normalisable
                self.tilted[key] = None
        return self.tilted[key]

    @cached_property
    def family(self) -> Mapping[float, Tensor]:
        """Exact samples of p(x | y)^w p(x)^(1 - w) by w."""
        sets = {scale: self.sample_tilted(tilt_of_scale(scale)) for scale in SCALES_OF_LAWS}
        return {scale: x for scale, x in sets.items() if x is not None}

    def measure(self, x: Tensor, tilt: Tilt | None) -> dict[str, float]:
        """The figures of samples x [n, D].

        conditional, named: energy distance to the class, and to the law that guidance names, over the distance of two exact
            sets; 1 = as exact samples. named is nan if guidance names none, or one that is not normalisable or takes long to
            sample.
        acts_as, nearest: the w of SCALES_OF_LAWS whose law p(x | y)^w p(x)^(1 - w) is nearest, and the distance to it.
        outliers: share of samples with a lower log p(x | y) than 99.9 % of exact samples.
        thinned: probability of the modes with less than a quarter of their expected samples; nan for a law of one mode.
        diversity: standard deviation over that of exact samples.
        agreement: mean p(y | x), for classes of equal weight.

        Arguments:
            tilt: the law that guidance names.
        """
        if not bool(x.isfinite().all()):
            return dict.fromkeys(FIGURES, nan)
        conditional = sum(energy_distance(x, exact) for exact in self.exact[:SETS]) / SETS / self.floor
        named = None if tilt is None else self.sample_tilted(tilt)
        distances = {scale: energy_distance(x, exact) / self.floor for scale, exact in self.family.items()}
        nearest = min(distances, key=distances.__getitem__)
        log_prob = (
            self.law.oracle.log_prob(x.reshape(-1, *self.law.oracle.shape), END) - self.law.oracle.log_totals[:-1]
        )
        spread, exact_spread = (part.var(0).sum() for part in (x, torch.cat(self.exact)))
        return {
            "conditional": conditional,
            "named": nan if named is None else energy_distance(x, named) / self.floor,
            "acts_as": nearest,
            "nearest": distances[nearest],
            "outliers": float((self.log_density(x) < self.bound).double().mean()),
            "thinned": self.count_thinned(x),
            "diversity": float((spread / exact_spread).sqrt()),
            "agreement": float(log_prob.softmax(1)[:, self.law.label].mean()),
        }

    def count_thinned(self, x: Tensor) -> float:
        """The share of modes that hold less than THIN of their samples, of those that expect EXPECTED; by probability."""
        weights = self.law.mode_weights
        counted = weights * len(x) >= EXPECTED
        if len(weights) == 1 or not bool(counted.any()):
            return nan
        inside = x[self.log_density(x) >= self.bound]
        shares = self.law.find_modes(inside).bincount(minlength=len(weights)) / len(x) if len(inside) else 0 * weights
        return float(weights[counted & (shares < THIN * weights)].sum() / weights[counted].sum())


FIGURES = ("conditional", "named", "acts_as", "nearest", "outliers", "thinned", "diversity", "agreement")
