"""The Gaussian mixture: closed forms of its noised versions, in any dimension.

With C_k(t) = alpha^2 S_k + sigma^2 I and r_k proportional to pi_k N(x; alpha mu_k, C_k),

    log p_t(x)   = log sum_k pi_k N(x; alpha mu_k, C_k)
    score        = -sum_k r_k C_k^-1 (x - alpha mu_k),              E[eps | x_t] = -sigma score
    E[x_0 | x_t] = sum_k r_k m_k,                                   m_k = mu_k + alpha S_k C_k^-1 (x - alpha mu_k)
    Cov[x_0|x_t] = sum_k r_k (V_k + (m_k - m)(m_k - m)^T),          V_k = sigma^2 S_k C_k^-1

S_k is decomposed once; C_k has the same eigenvectors at every level. No estimate divides a difference by alpha or sigma,
so all are precise at every noise level.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..datasets.mixture import MIXTURE_COVARIANCES, MIXTURE_LABELS, MIXTURE_MEANS, MIXTURE_WEIGHTS
from ..schedules import Schedule
from .base import Oracle, ReverseLevels
from .noised_components import NoisedComponents

__all__ = ["GaussianMixture", "ReverseKernel"]

SMALL_DIMENSION = 4  # largest D for `NoisedComponents`, whose constants of a level need D^3 K terms
MAX_MAGNITUDE = 1e30  # of an input, so that samples fit into float32 and squared distances into float64


class ReverseKernel(NamedTuple):
    """p(x_s | x_t, y) = sum_k weights[b, k] N(means[b, k], covariances[b, k]): [B, K], [B, K, D], [1 or B, K, D, D]."""

    weights: Tensor
    means: Tensor
    covariances: Tensor


def to_numbers(value: object, name: str) -> Tensor:
    """A list, array or tensor as finite float64 numbers on the CPU."""
    try:
        value = value.detach().cpu() if isinstance(value, Tensor) else numpy.array(value, dtype=float)
        result = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers in lists of equal lengths: {error}") from error
    if not bool((result.abs() <= MAX_MAGNITUDE).all()):
        raise ValueError(f"{name} must be finite, at most {MAX_MAGNITUDE:g} in size, got {result.abs().max():g}")
    return result


def eigendecompose(covariances: Tensor, count: int, dimension: int) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues [1 or K, 1 or D] and eigenvectors [1 or K, D, D] of the covariances; no vectors (None) for diagonal ones.

    Raises:
        ValueError: another shape, or a matrix that is not symmetric positive definite.
    """
    shape = list(covariances.shape)
    if covariances.ndim > 3 or (shape and shape[0] not in (1, count)) or shape[1:] != [dimension] * (len(shape) - 1):
        raise ValueError(
            f"covariances must be a number, [{count}], [{count}, {dimension}] or [{count}, {dimension}, {dimension}] "
            f"(or 1 in place of {count}, shared by all) for means [{count}, {dimension}], got {shape}"
        )
    if covariances.ndim < 3:
        values, vectors = covariances.reshape(shape[0] if shape else 1, -1), None
        floor = torch.zeros(())
    else:
        skew = (covariances - covariances.mT).abs().amax((1, 2))
        if bool((skew > 1e-10 * covariances.abs().amax((1, 2))).any()):
            raise ValueError(f"the covariance of component {int(skew.argmax())} is not symmetric")
        values, vectors = torch.linalg.eigh(covariances)
        floor = dimension * torch.finfo(torch.float64).eps * values.amax(1, keepdim=True)  # rounding error of 0
    bad = (values <= floor).any(1)
    if bool(bad.any()):
        k = int(bad.nonzero()[0])
        raise ValueError(
            f"the covariance of component {k} is not positive definite: its smallest eigenvalue is {values[k].min():.3g}"
        )
    return values, vectors


class GaussianMixture(Oracle):
    """p_0 = sum_k pi_k N(mu_k, S_k) on vectors [D], with a class label per component.

    Arguments:
        weights: pi_k, [K], at least 0; normalised here.
        means: mu_k, [K, D].
        covariances: S_k as [K, D, D]; [K, D] diagonals; [K] or a number, variances of every coordinate. A first length of
            1 is shared by all. All forms but [K, D, D] cost O(K D) per point.
        labels: class of each component, [K], from 0.
        schedule: the noise schedule of t; None = Cosine().
        class_names: one per class; None = the indices.

    Raises:
        ValueError: shapes that disagree; a number that is not finite; weights below 0 or all 0; a label outside the
            classes; a class without weight; a covariance that is not symmetric positive definite.
    """

    def __init__(
        self,
        weights: Sequence[float] = MIXTURE_WEIGHTS,
        means: Sequence[Sequence[float]] = MIXTURE_MEANS,
        covariances: float
        | Sequence[float]
        | Sequence[Sequence[float]]
        | Sequence[Sequence[Sequence[float]]] = MIXTURE_COVARIANCES,
        labels: Sequence[int] = MIXTURE_LABELS,
        schedule: Schedule | None = None,
        class_names: Sequence[str] | None = None,
    ):
        pi, mu, s = to_numbers(weights, "weights"), to_numbers(means, "means"), to_numbers(covariances, "covariances")
        if mu.ndim != 2 or pi.shape != mu.shape[:1] or not mu.numel():
            raise ValueError(f"means must be [K, D] for weights [K], got {list(mu.shape)} and {list(pi.shape)}")
        count, dimension = mu.shape
        values, vectors = eigendecompose(s, count, dimension)
        super().__init__((dimension,), pi, torch.as_tensor(labels, device="cpu"), schedule, class_names)
        self.means = mu
        in_class = self.labels == torch.arange(self.num_classes)[:, None]
        in_class = torch.cat([in_class, in_class.new_ones(1, count)])  # the last row is that of y = -1
        self.log_prior = torch.where(in_class, self.log_weights, -torch.inf) - self.log_totals[:, None]  # log pi(k | y)
        # frame [D, D]: eigenvectors shared by all; vectors [D, E, K]: those of each. Coordinates are [.., E, K].
        self.frame = self.vectors = None
        if vectors is not None and len(vectors) == 1:
            self.frame = vectors[0]
        elif vectors is not None:
            self.vectors = vectors.permute(1, 2, 0).contiguous()
        self.values = values.mT.contiguous().expand(-1, count).contiguous()  # [E or 1, K]
        if self.vectors is None:
            self.centres = self.coordinates(mu)[..., 0].mT.contiguous()  # [E, K]
        else:
            self.centres = torch.einsum("dek,kd->ek", self.vectors, mu)
            readout = torch.cat([self.vectors, self.values * self.vectors])  # for C^-1 (.) and for S C^-1 (.)
            self.readout = readout.flatten(1).mT.contiguous()
        self.last_noised: NoisedComponents | None = None
        if self.vectors is not None and dimension <= SMALL_DIMENSION:
            self.block = 2**17  # few arrays, which are used again

    @property
    def row_size(self) -> int:
        return self.means.numel()

    def coordinates(self, x: Tensor) -> Tensor:
        """x [b, D] in the eigenvectors of the components: [b, E, K], or [b, E, 1] if all share them."""
        if self.vectors is not None:
            return (x @ self.vectors.flatten(1)).unflatten(1, self.vectors.shape[1:])
        return (x if self.frame is None else x @ self.frame)[..., None]

    def from_shared_frame(self, x: Tensor) -> Tensor:
        """Shared coordinates [..., E] back to x [..., D]."""
        return x if self.frame is None else x @ self.frame.mT

    def component_covariances(self, index: Tensor) -> Tensor:
        """S_k of some components [n], as [n, D, D]."""
        values = self.values.mT[index].expand(-1, *self.shape)
        if self.vectors is None:
            matrices = torch.diag_embed(values)
            return matrices if self.frame is None else self.frame @ matrices @ self.frame.mT
        vectors = self.vectors[:, :, index].permute(2, 0, 1)
        return vectors @ (values[..., None] * vectors.mT)

    def variances(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Eigenvalues of C_k = alpha^2 S_k + sigma^2 I, [1 or b, E or 1, K]."""
        return alpha[..., None] ** 2 * self.values + sigma[..., None] ** 2

    def terms(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """C_k^-1 (x - alpha mu_k) in coordinates [b, E, K], and log pi(k | y) N(x; alpha mu_k, C_k), [b, K]."""
        variances = self.variances(alpha, sigma)
        z = self.coordinates(x) - alpha[..., None] * self.centres
        g = z * variances.reciprocal()
        log_volume = (2 * math.pi * variances).log().sum(1) * (len(self.centres) / variances.shape[1])
        prior = self.log_weights if y is None else self.log_prior[y]
        return g, prior - 0.5 * log_volume - 0.5 * (z * g).sum(1)

    def noised(self, alpha: Tensor, sigma: Tensor) -> NoisedComponents | None:
        """The components at one level, the same object for all blocks of a call; None = use `terms`."""
        if self.vectors is None or len(self.vectors) > SMALL_DIMENSION or len(alpha) > 1:
            return None
        found = self.last_noised
        if found is None or found.alpha is not alpha or found.sigma is not sigma:
            found = self.last_noised = NoisedComponents(self.means, self.vectors, self.values, alpha, sigma)
        return found

    def log_joint(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> Tensor:
        """log pi(k | y) N(x; alpha mu_k, C_k), [b, K]."""
        components = self.noised(alpha, sigma)
        if components is None:
            return self.terms(x, alpha, sigma, y)[1]
        return components.log_joint(x, self.log_weights if y is None else self.log_prior, y)

    def moments(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        if (components := self.noised(alpha, sigma)) is not None:
            return components.moments(x, self.log_joint(x, alpha, sigma, y))
        g, log_joint = self.terms(x, alpha, sigma, y)
        r = log_joint.softmax(1)
        h = r[:, None] * g
        if self.vectors is not None:
            negative_score, spread = (h.flatten(1) @ self.readout).chunk(2, dim=1)
        else:
            negative_score = self.from_shared_frame(h.sum(2))
            spread = self.from_shared_frame((self.values * h).sum(2))
        return r @ self.means + alpha * spread, negative_score

    def density(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> tuple[Tensor]:
        return (self.log_joint(x, alpha, sigma, y).logsumexp(1),)

    def class_densities(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: None) -> tuple[Tensor]:
        return (self.sum_by_class(self.log_joint(x, alpha, sigma, None), self.labels),)

    def draw(self, component: Tensor, z: Tensor) -> Tensor:
        deviation = self.values.mT[component].sqrt() * z
        return self.means[component] + self.rotate(component, deviation)

    def rotate(self, component: Tensor, z: Tensor) -> Tensor:
        """Coordinates z [n, E] in the eigenvectors of the components [n], back to [n, D]."""
        if self.vectors is None:
            return self.from_shared_frame(z)
        return torch.einsum("den,ne->nd", self.vectors[:, :, component], z)

    def covariance(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Tensor:
        """Cov[x_0 | x_t, y], [B, D, D]."""
        width = self.centres.numel() if self.vectors is None else self.vectors.numel()
        width += self.shape[0] ** 2
        return self.map_blocks(self.covariances, x_t, y, *self.scales(t), width=width)[0]

    def covariances(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> tuple[Tensor]:
        g, log_joint = self.terms(x, alpha, sigma, y)
        r = log_joint.softmax(1)[:, None]
        # r_k times eigenvalues of V_k
        shrunk = r * (sigma[..., None] ** 2 * self.values / self.variances(alpha, sigma))
        offset = alpha[..., None] * self.values * g
        if self.vectors is None:
            within = torch.diag_embed(shrunk.sum(2).expand(-1, *self.shape))
            m = self.centres + offset
        else:
            within = (shrunk[:, None] * self.vectors).flatten(2) @ self.vectors.flatten(1).mT
            m = self.means.mT + torch.einsum("dek,bek->bdk", self.vectors, offset)
        m = m - (r * m).sum(2, keepdim=True)
        result = within + (r * m) @ m.mT
        return (result if self.frame is None else self.frame @ result @ self.frame.mT,)

    def reverse_parts(self, x: Tensor, y: Tensor | None, levels: ReverseLevels) -> tuple[Tensor, Tensor, Tensor]:
        """Weights [b, K] of p(x_s | x_t), means minus alpha_s mu_k and variances, both in coordinates [.., E, K]."""
        alpha, sigma, alpha_s, sigma_s, transition = levels
        g, log_joint = self.terms(x, alpha, sigma, y)
        variances_s = self.variances(alpha_s, sigma_s)
        variances = variances_s * transition[..., None] / self.variances(alpha, sigma)
        return log_joint.softmax(1), (alpha / alpha_s)[..., None] * variances_s * g, variances

    def reverse_kernel(self, x_t: Tensor, t: Tensor, s: Tensor | None, y: Condition | None = None) -> ReverseKernel:
        """p(x_s | x_t, y) for s < t, or p(x_0 | x_t, y) for s None, as a Gaussian mixture.

        With a = alpha_t / alpha_s and G_k = a C_k(s) C_k(t)^-1: weights r_k(x_t), means alpha_s mu_k + G_k (x_t -
        alpha_t mu_k), covariances C_k(s) - a G_k C_k(s).

        Raises:
            ValueError: s that is not below t.
        """

        def parts(x, alpha, sigma, alpha_s, sigma_s, transition, y):
            levels = ReverseLevels(alpha, sigma, alpha_s, sigma_s, transition)
            r, offset, variances = self.reverse_parts(x, y, levels)
            if self.vectors is None:
                shift = self.from_shared_frame(offset.mT)
                matrices = torch.diag_embed(variances.mT.expand(-1, -1, *self.shape))
                matrices = matrices if self.frame is None else self.frame @ matrices @ self.frame.mT
            else:
                shift = torch.einsum("dek,bek->bkd", self.vectors, offset)
                matrices = torch.einsum("dek,bek,fek->bkdf", self.vectors, variances, self.vectors)
            return r, alpha_s[..., None] * self.means + shift, matrices

        levels = self.reverse_levels(t, s)
        r, means, matrices = self.map_blocks(parts, x_t, y, *levels, width=self.means.numel() * self.shape[0])
        return ReverseKernel(r, means, matrices[:1] if all(len(level) == 1 for level in levels) else matrices)

    def draw_reverse(self, x: Tensor, y: Tensor | None, levels: ReverseLevels, choice: Tensor, z: Tensor) -> Tensor:
        r, offset, variances = self.reverse_parts(x, y, levels)
        mass = r.cumsum(1)
        k = torch.searchsorted(mass, choice * mass[:, -1:], right=True).clamp(max=r.shape[1] - 1)
        index = k[..., None].expand(-1, offset.shape[1], -1)
        deviation = variances.expand_as(offset).gather(2, index)[..., 0].sqrt() * z
        step = self.rotate(k[:, 0], offset.gather(2, index)[..., 0] + deviation)
        return levels.alpha_s * self.means[k[:, 0]] + step
