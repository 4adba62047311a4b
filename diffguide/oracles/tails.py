"""Whether a product of powers of Gaussian mixtures can be normalised: its density must fall in every direction.

Along a ray r u a mixture falls as its widest component, exp(-q(u) r^2 / 2) with q(u) = min_k u^T S_k^-1 u. So the product of
the powers w_i falls as exp(-Q(u) r^2 / 2), Q(u) = sum_i w_i q_i(u). Where Q is negative the density grows without bound.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from .base import Oracle
from .empirical import Empirical
from .mixture import GaussianMixture

__all__ = ["check_tails", "members"]

RANDOM_DIRECTIONS = 4096
ANGLES = 3600  # in the plane
STEPS = 200  # of the search for the flattest direction
FLAT = 1e-12  # Q relative to the largest precision, up to rounding


def members(oracle: Oracle, label: int) -> Tensor:
    """The components of a class, of positive weight; -1 = of all classes."""
    in_class = (oracle.labels == label) | (label == -1)
    return (in_class & (oracle.log_weights > -torch.inf)).nonzero()[:, 0]


def check_tails(oracle: Oracle, powers: Mapping[int, float], law: str) -> None:
    """Raises ValueError for a law that has no normaliser; oracles other than mixtures of Gaussians are not checked.

    Arguments:
        powers: class -> exponent, -1 = no condition.
        law: its name, for the message.
    """
    if isinstance(oracle, Empirical):
        if sum(powers.values()) <= 0:
            raise ValueError(f"{law} is not normalisable: its exponents add up to {sum(powers.values()):.6g}")
        return
    if not isinstance(oracle, GaussianMixture) or all(exponent > 0 for exponent in powers.values()):
        return
    precisions = {label: oracle.component_covariances(members(oracle, label)).inverse() for label in powers}

    def falls(u: Tensor) -> Tensor:
        """Q(u), [n], for unit vectors u [n, D]."""
        rates = [
            exponent * torch.einsum("nd,kde,ne->nk", u, precisions[label], u).amin(1)
            for label, exponent in powers.items()
        ]
        return torch.stack(rates).sum(0)

    u = candidate_directions(torch.cat(list(precisions.values())))
    least, direction = descend(falls, u)
    largest = max(float(precision.abs().max()) for precision in precisions.values())
    if least <= FLAT * largest:
        where = "" if len(direction) == 1 else f" along {[round(float(part), 3) for part in direction[:6]]}"
        raise ValueError(
            f"{law} is not normalisable: its density does not fall{where}, where the negative powers outweigh the "
            "others; take a scale between 0 and 1, or a weaker one"
        )


def candidate_directions(precisions: Tensor) -> Tensor:
    """Unit vectors [n, D]: the axes of the components, and an even or a random cover of the sphere."""
    dimension = precisions.shape[-1]
    if dimension == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    axes = torch.linalg.eigh(precisions[:RANDOM_DIRECTIONS]).eigenvectors.mT.reshape(-1, dimension)
    if dimension == 2:
        angle = torch.linspace(0, torch.pi, ANGLES, dtype=torch.float64)
        return torch.cat([axes, torch.stack([angle.cos(), angle.sin()], 1)])
    rng = torch.Generator().manual_seed(0)
    random = torch.randn(RANDOM_DIRECTIONS, dimension, generator=rng, dtype=torch.float64)
    return torch.cat([axes, random / random.norm(dim=1, keepdim=True)])


def descend(falls, u: Tensor) -> tuple[float, Tensor]:
    """The least Q found, and its direction: from the best candidates by random steps that shrink."""
    values = falls(u)
    best = values.argsort()[:64]
    u, values = u[best], values[best]
    rng = torch.Generator().manual_seed(1)
    for step in range(STEPS if u.shape[1] > 2 else 0):
        moved = u + 0.97**step * torch.randn(u.shape, generator=rng, dtype=u.dtype) / u.shape[1] ** 0.5
        moved = moved / moved.norm(dim=1, keepdim=True)
        found = falls(moved)
        better = found < values
        u, values = torch.where(better[:, None], moved, u), torch.where(better, found, values)
    least = int(values.argmin())
    return float(values[least]), u[least]
