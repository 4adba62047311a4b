"""The exact denoiser of a finite data set, as of a network that has memorized its training set.

Karras et al. 2022, arXiv 2206.00364, eq. 57 (width 0). With a width h, component k is N(y_k, h^2 I):

    v = alpha^2 h^2 + sigma^2,    r_k = softmax_k( -|x - alpha y_k|^2 / (2 v) ),    mean = sum_k r_k y_k
    E[x_0 | x_t] = (sigma^2 / v) mean + (alpha h^2 / v) x,    E[eps | x_t] = (sigma / v) (x - alpha mean)
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..runtime.ranges import check_range
from ..schedules import Schedule
from .base import Oracle, ReverseLevels

__all__ = ["Empirical"]


class Empirical(Oracle):
    """p_0 = mean_k N(y_k, h^2 I) over the examples y_k of a data set.

    The data keep their dtype and are processed in chunks, so that memory grows with the data, not with batch times data.
    Squared distances come from a matrix product: in float64 at sigma 0.002 the log-densities of CIFAR-sized images have an
    error of 1e-7.

    Arguments:
        data: [N, ...], numbers in [-1, 1] of any dtype, or uint8 u for u / 127.5 - 1.
        labels: class of each example, [N], from 0.
        schedule: the noise schedule of t; None = Cosine().
        width: h, standard deviation around each example, at least 0; with 0 densities exist only at sigma > 0.
        class_names: one per class; None = the indices.

    Raises:
        ValueError: a negative width, data without examples, labels that do not fit, a class without an example; in calls: a
            density at h = 0 and sigma = 0.
    """

    block = 2**20

    def __init__(
        self,
        data: Tensor,
        labels: Tensor,
        schedule: Schedule | None = None,
        width: float = 0.0,
        class_names: Sequence[str] | None = None,
    ):
        if data.ndim < 2 or not data.numel():
            raise ValueError(f"data must be [N, ...] with at least one example, got {list(data.shape)}")
        labels = torch.as_tensor(labels)
        super().__init__(data.shape[1:], torch.ones(len(data)), labels.cpu(), schedule, class_names)
        self.data, self.width = data.flatten(1), check_range("width", width, "[0, inf)")
        self.to(data.device)
        self.squares = self.log_weights.new_empty(len(data))  # |y_k|^2
        for part in self.chunks(1):
            self.squares[part] = self.examples(part).square().sum(1)
        if not bool(self.squares.isfinite().all()):
            raise ValueError("data must be finite")

    @property
    def row_size(self) -> int:
        return 2**12  # 256 rows a block

    def examples(self, part: slice | Tensor) -> Tensor:
        """Some examples, [n, D] float64."""
        data = self.data[part]
        return data.double() / 127.5 - 1 if data.dtype == torch.uint8 else data.double()

    def chunks(self, rows: int) -> list[slice]:
        """Slices of the data, each small enough for `rows` points at once."""
        size = max(1, self.block // max(rows, self.data.shape[1]))
        return [slice(first, first + size) for first in range(0, len(self.data), size)]

    def variance(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """v = alpha^2 h^2 + sigma^2, [1 or b, 1]."""
        v = (alpha * self.width) ** 2 + sigma**2
        if v.device.type == "cpu" and not bool((v > 0).all()):
            raise ValueError("an oracle of width 0 has no density at sigma = 0; use width > 0 or a time t > 0")
        return v

    def condition_on(self, log_joint: Tensor, y: Tensor | None, part: slice) -> Tensor:
        """log pi_k p_k(x) of a chunk -> log pi(k | y) p_k(x), -inf for those of other classes."""
        if y is None:
            return log_joint
        y = y[:, None]
        return torch.where((y == self.labels[part]) | (y == -1), log_joint, -torch.inf) - self.log_totals[y]

    def sweep(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """For each chunk: its slice, its examples [n, D], log pi(k | y) N(x; alpha y_k, v I) [b, n]."""
        v = self.variance(alpha, sigma)
        log_volume = 0.5 * x.shape[1] * (2 * math.pi * v).log()
        norm = x.square().sum(1, keepdim=True)
        for part in self.chunks(len(x)):
            data = self.examples(part)
            distance = norm - 2 * alpha * (x @ data.mT) + alpha**2 * self.squares[part]
            log_joint = self.log_weights[part] - 0.5 * distance / v - log_volume
            yield part, data, self.condition_on(log_joint, y, part)

    def statistics(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """mean [b, D] and log p_t(x | y) [b, 1], in one pass with a running maximum."""
        top = x.new_full((len(x), 1), torch.finfo(x.dtype).min)
        mass, total = torch.zeros_like(top), torch.zeros_like(x)
        for _, data, log_joint in self.sweep(x, alpha, sigma, y):
            higher = torch.maximum(top, log_joint.detach().amax(1, keepdim=True))
            p, rescaling = (log_joint - higher).exp(), (top - higher).exp()
            mass = mass * rescaling + p.sum(1, keepdim=True)
            total = total * rescaling + p @ data
            top = higher
        return total / mass, mass.log() + top

    def moments(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, _ = self.statistics(x, alpha, sigma, y)
        v = self.variance(alpha, sigma)
        return sigma**2 / v * mean + alpha * self.width**2 / v * x, (x - alpha * mean) / v

    def density(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> tuple[Tensor]:
        top = x.new_full((len(x),), torch.finfo(x.dtype).min)
        for _, _, log_joint in self.sweep(x, alpha, sigma, y):
            top = torch.logaddexp(top, log_joint.logsumexp(1))
        return (top,)

    def class_densities(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: None) -> tuple[Tensor]:
        top = x.new_full((len(x), self.num_classes), torch.finfo(x.dtype).min)
        for part, _, log_joint in self.sweep(x, alpha, sigma, None):
            top = torch.logaddexp(top, self.sum_by_class(log_joint, self.labels[part]))
        return (top,)

    def draw(self, component: Tensor, z: Tensor) -> Tensor:
        return self.examples(component) + self.width * z

    def covariance(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Tensor:
        """Cov[x_0 | x_t, y] = (sigma^2 h^2 / v) I + (sigma^2 / v)^2 sum_k r_k (y_k - mean)(y_k - mean)^T, [B, D, D]."""

        def parts(x, alpha, sigma, y):
            mean, log_density = self.statistics(x, alpha, sigma, y)
            spread = x.new_zeros(len(x), x.shape[1], x.shape[1])
            for _, data, log_joint in self.sweep(x, alpha, sigma, y):
                for row, r in enumerate((log_joint - log_density).exp()):
                    offset = data - mean[row]
                    spread[row] += (offset * r[:, None]).mT @ offset
            gain = (sigma**2 / self.variance(alpha, sigma))[..., None]
            return (gain * self.width**2 * torch.eye(x.shape[1]).to(x) + gain**2 * spread,)

        return self.map_blocks(parts, x_t, y, *self.scales(t))[0]

    def draw_reverse(self, x: Tensor, y: Tensor | None, levels: ReverseLevels, choice: Tensor, z: Tensor) -> Tensor:
        alpha, sigma, alpha_s, sigma_s, transition = levels
        _, log_density = self.statistics(x, alpha, sigma, y)
        below = torch.zeros_like(choice)
        k = torch.zeros_like(choice, dtype=torch.long)
        for _, _, log_joint in self.sweep(x, alpha, sigma, y):
            mass = below + (log_joint - log_density).exp().cumsum(1)
            k = k + (mass <= choice).sum(1, keepdim=True)
            below = mass[:, -1:]
        chosen = self.examples(k[:, 0].clamp(max=len(self.data) - 1))
        variance_s = (alpha_s * self.width) ** 2 + sigma_s**2
        variance_t = (alpha * self.width) ** 2 + sigma**2
        gain = alpha / alpha_s * variance_s / variance_t
        return alpha_s * chosen + gain * (x - alpha * chosen) + (variance_s * transition / variance_t).sqrt() * z
