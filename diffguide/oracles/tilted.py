"""The law that guidance names, p(x | y)^w p(x)^(1 - w) and its kin, of an oracle: density and exact samples."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import LogDensity
from ..models.tilts import PotentialTerm, Power, Tilt
from .base import Oracle
from .empirical import Empirical
from .mixture import GaussianMixture
from .quadrature import Quadrature
from .tails import check_tails, members
from .tempering import temper

__all__ = ["TiltedLaw", "TiltedPart"]

MIN_ACCEPTANCE = 1e-3  # below, rejection takes longer than tempering
TRIAL = 2000  # proposals that estimate the acceptance
MIN_POPULATION = 2000  # of tempering
BOX_DEVIATIONS = 6.0
SUM_TOLERANCE = 1e-9


class TiltedLaw(LogDensity):
    """prod_i p(x | c_i)^w_i exp(sum_j s_j f_j(x)) / Z for the clean law p_0 of an oracle, where c_i may be a sample's own y.

    Arguments:
        oracle: on the CPU.
        tilt: the law, as a guidance names it (`Denoiser.tilt`).

    Raises:
        ValueError: from calls, a law that is not normalisable, or whose details are too fine for quadrature.
    """

    def __init__(self, oracle: Oracle, tilt: Tilt):
        self.oracle, self.tilt = oracle, tilt
        self.parts: dict[int, TiltedPart] = {}

    def of(self, label: int) -> "TiltedPart":
        """The law of the samples of a class, -1 = without condition."""
        if label not in self.parts:
            tilt = self.tilt.given(label)
            powers = {-1 if label is None else label: exponent for exponent, label in tilt.powers}
            self.parts[label] = TiltedPart(self.oracle, powers, tilt.potentials)
        return self.parts[label]

    @property
    def normalized(self) -> bool:  # type: ignore[override]  # what other densities know from the start
        return all(self.of(label).normalized for label in range(self.oracle.num_classes))

    def log_density(self, x: Tensor, t: Tensor | None = None, y: Condition | None = None) -> Tensor:
        """log p(x) in nats [B], for t None alone; up to a constant per class where `normalized` is False."""
        if t is not None:
            raise ValueError("a tilted law is that of clean data: t must be None")
        labels = self.oracle.to_indices(y, len(x))
        labels = torch.full((len(x),), -1) if labels is None else labels
        result = x.new_empty(len(x), dtype=torch.float64)
        for label in labels.unique().tolist():
            rows = labels == label
            result[rows] = self.of(label).log_density(x[rows].double())
        return result

    def sample(self, n: int, rng: torch.Generator, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """n samples, float64 [n, ...], and the labels that were given; as of `Oracle.sample`.

        Arguments:
            rng: generator on the CPU.
            y: class of each row, [n], -1 = no condition; None = no condition in any row.
        """
        y = torch.full((n,), -1) if y is None else y.cpu()
        x = torch.empty(n, *self.oracle.shape, dtype=torch.float64)
        for label in y.unique().tolist():
            rows = (y == label).nonzero()[:, 0]
            x[rows] = self.of(label).sample(len(rows), rng)
        return x, y


class TiltedPart:
    """prod_i p(x | c_i)^w_i exp(sum_j s_j f_j(x)) / Z for fixed conditions.

    Samples are exact by a Gaussian's closed form, by rejection from the laws of the product where a bound is known, or by
    quadrature in one and two dimensions; else they come from `tempering`.

    Arguments:
        oracle: on the CPU.
        powers: class -> w_i, -1 = no condition.
        potentials: of the law, with fixed conditions.

    Raises:
        ValueError: a law that is not normalisable. Potentials are not checked.
    """

    def __init__(self, oracle: Oracle, powers: Mapping[int, float], potentials: Sequence[PotentialTerm] = ()):
        self.oracle, self.powers, self.potentials = oracle, dict(powers), potentials
        self.shape = oracle.shape
        self.dimension = math.prod(oracle.shape)
        # a law of points has no density, and is compared at the lowest level of the schedule
        points = isinstance(oracle, Empirical) and oracle.width == 0
        self.time = torch.tensor(0.0, dtype=torch.float64) if points else None
        self.quadrature: Quadrature | None = None
        self.gaussian = None if potentials else self.multiply_gaussians()
        if not potentials and self.gaussian is None:
            check_tails(oracle, self.powers, self.describe())

    def describe(self) -> str:
        return Tilt(tuple(Power(exponent, label) for label, exponent in self.powers.items())).describe()

    @property
    def normalized(self) -> bool:
        """Whether log_density has its normaliser: for Gaussians, and in one or two dimensions."""
        return self.gaussian is not None or self.dimension <= 2

    def condition(self, label: int, n: int) -> Tensor | None:
        return None if label == -1 else torch.full((n,), label)

    def log_part(self, x: Tensor, label: int) -> Tensor:
        """log p(x | label), [n]."""
        return self.oracle.log_density(x.reshape(-1, *self.shape), self.time, self.condition(label, len(x)))

    def log_product(self, x: Tensor) -> Tensor:
        """The log-density up to a constant, [n], for x [n, D] float64."""
        total = x.new_zeros(len(x))
        for label, exponent in self.powers.items():
            total = total + exponent * self.log_part(x, label)
        for term in self.potentials:
            y = None if term.condition is None else self.condition(term.condition, len(x))
            total = total + term.scale * term.function(x.reshape(-1, *self.shape), y)
        return total

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x), [n]."""
        x = x.flatten(1)
        if self.gaussian is not None:
            return self.log_product(x) - self.gaussian[2]
        return self.log_product(x) - (self.grid().log_normalizer if self.dimension <= 2 else 0.0)

    def multiply_gaussians(self) -> tuple[Tensor, Tensor, float] | None:
        """Mean [D], covariance [D, D] and log Z of a product of powers of single Gaussians; None for other laws.

        The precision is sum_i w_i S_i^-1, the mean its inverse times sum_i w_i S_i^-1 mu_i.
        """
        if not isinstance(self.oracle, GaussianMixture):
            return None
        index = {label: members(self.oracle, label) for label in self.powers}
        if any(len(components) > 1 for components in index.values()):
            return None
        precision = torch.zeros(self.dimension, self.dimension, dtype=torch.float64)
        pull = torch.zeros(self.dimension, dtype=torch.float64)
        for label, exponent in self.powers.items():
            inverse = self.oracle.component_covariances(index[label])[0].inverse()
            precision = precision + exponent * inverse
            pull = pull + exponent * inverse @ self.oracle.means[index[label][0]]
        values = torch.linalg.eigvalsh(precision)
        if float(values[0]) <= 1e-12 * float(values.abs().max()):
            raise ValueError(
                f"{self.describe()} is not normalisable: its precision has the eigenvalue {float(values[0]):.3g}; take a "
                "scale between 0 and 1, or a weaker one"
            )
        covariance = precision.inverse()
        mean = covariance @ pull
        peak = float(self.log_product(mean[None]))
        return mean, covariance, peak + 0.5 * (self.dimension * math.log(2 * math.pi) - float(values.log().sum()))

    def grid(self) -> Quadrature:
        """The law on a grid, in one or two dimensions."""
        if self.quadrature is None:
            x = self.propose(TRIAL, torch.Generator().manual_seed(0))
            spread = x.std(0) * BOX_DEVIATIONS + 1e-6
            self.quadrature = Quadrature(self.log_product, x.mean(0) - spread, x.mean(0) + spread)
        return self.quadrature

    # Proposals are from the mixture of the laws with a positive power, in proportion to the powers.

    def shares(self) -> dict[int, float]:
        positive = {label: exponent for label, exponent in self.powers.items() if exponent > 0}
        return {label: exponent / sum(positive.values()) for label, exponent in positive.items()} or {-1: 1.0}

    def propose(self, n: int, rng: torch.Generator) -> Tensor:
        """Samples [n, D] of the mixture."""
        labels, shares = zip(*self.shares().items())
        choice = torch.multinomial(torch.tensor(shares, dtype=torch.float64), n, replacement=True, generator=rng)
        return self.oracle.sample(n, rng, torch.tensor(labels)[choice])[0].flatten(1)

    def log_proposal(self, x: Tensor) -> Tensor:
        terms = [math.log(share) + self.log_part(x, label) for label, share in self.shares().items()]
        return torch.stack(terms).logsumexp(0)

    def bounded(self) -> bool:
        """Whether `log_acceptance` is a bound: exponents that add up to 1, of which only that of p(x) is negative."""
        negative = [label for label, exponent in self.powers.items() if exponent < 0]
        whole = abs(sum(self.powers.values()) - 1) < SUM_TOLERANCE
        return whole and not self.potentials and set(negative) <= {-1}

    def log_acceptance(self, x: Tensor) -> Tensor:
        """log of the law over the mixture, less its upper bound, [n].

        A geometric mean is at most the arithmetic one, so prod_i p_i^a_i <= sum_i a_i p_i for the shares a_i. Where p(x)
        has the exponent -v, the rest is prod_i (p_i / p)^(a_i v), and p_i / p is at most 1 / P(c_i).
        """
        shares = self.shares()
        logs = {label: self.log_part(x, label) for label in shares}
        mean = torch.stack([share * logs[label] for label, share in shares.items()]).sum(0)
        mixture = torch.stack([math.log(share) + logs[label] for label, share in shares.items()]).logsumexp(0)
        outside = -min(self.powers.get(-1, 0.0), 0.0)
        result = mean - mixture
        if outside:
            whole = self.log_part(x, -1)
            for label, share in shares.items():
                result = result + outside * share * (logs[label] - whole + self.oracle.log_totals[label])
        return result.clamp(max=0.0)  # above 0 by rounding alone

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """n samples, float64 [n, ...]."""
        return self.draw(n, rng).reshape(n, *self.shape)

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        if self.gaussian is not None:
            mean, covariance, _ = self.gaussian
            z = torch.randn(n, self.dimension, generator=rng, dtype=torch.float64)
            return mean + z @ torch.linalg.cholesky(covariance).mT
        if list(self.powers.values()) == [1.0] and not self.potentials:
            return self.propose(n, rng)
        if self.bounded():
            trial = self.log_acceptance(self.propose(TRIAL, torch.Generator().manual_seed(0)))
            if float(trial.exp().mean()) >= MIN_ACCEPTANCE:
                return self.reject(n, rng, float(trial.exp().mean()))
        if self.dimension <= 2:
            return self.grid().sample(n, rng)
        x = self.propose(max(n, MIN_POPULATION), rng)
        x = temper(self.log_proposal, self.log_product, x, rng)
        return x[torch.randperm(len(x), generator=rng)[:n]]

    def reject(self, n: int, rng: torch.Generator, acceptance: float) -> Tensor:
        """n samples by rejection from the mixture."""
        found: list[Tensor] = []
        missing = n
        while missing > 0:
            x = self.propose(min(int(1.1 * missing / acceptance) + 64, 100 * TRIAL), rng)
            accepted = torch.rand(len(x), generator=rng, dtype=torch.float64).log() < self.log_acceptance(x)
            found.append(x[accepted][:missing])
            missing -= len(found[-1])
        return torch.cat(found) if found else torch.empty(0, self.dimension, dtype=torch.float64)
