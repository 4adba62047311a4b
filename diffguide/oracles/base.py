"""Base of the oracles: a noised mixture with class labels that is denoiser, density and classifier."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Classifier, ExactDenoiser, LogDensity, Prediction
from ..schedules import Cosine, Schedule

__all__ = ["Oracle", "ReverseLevels"]


class ReverseLevels(NamedTuple):
    """alpha and sigma at t and at s, and Var[x_t | x_s] = sigma_t^2 (1 - SNR_t / SNR_s)."""

    alpha: Tensor
    sigma: Tensor
    alpha_s: Tensor
    sigma_s: Tensor
    transition: Tensor


class Oracle(ExactDenoiser, LogDensity, Classifier):
    """A mixture p_0 = sum_k pi_k p_k whose component k has class label(k), noised to x_t = alpha x_0 + sigma eps.

    The computation is in float64, in blocks of rows; results have the dtype of x_t, float32 at least. Gradients reach x_t.
    t is a 0-d tensor or [B]; for a density, t None means the clean distribution p_0.

    Arguments:
        shape: shape of one example.
        weights: pi_k, [K], at least 0; normalised here.
        labels: class of each component, [K].
        schedule: the noise schedule of t; None = Cosine().
        class_names: one per class; None = the indices.

    Raises:
        ValueError: weights, labels or names out of range, or a class without weight.
    """

    normalized = True
    has_null = True
    shape: Sequence[int]
    block = 2**16  # numbers in one working array, so that it fits into a core's cache

    def __init__(
        self,
        shape: Sequence[int],
        weights: Tensor,
        labels: Tensor,
        schedule: Schedule | None,
        class_names: Sequence[str] | None,
    ):
        if not bool((weights >= 0).all()) or not 0 < float(weights.sum()) < torch.inf:
            raise ValueError("weights must be finite, at least 0 and not all 0")
        if labels.shape != weights.shape or labels.is_floating_point():
            raise ValueError(f"labels must be {len(weights)} integers, one per component, got {list(labels.shape)}")
        largest = int(labels.max())
        names = [str(c) for c in range(largest + 1)] if class_names is None else list(class_names)
        if int(labels.min()) < 0 or largest >= len(names):
            raise ValueError(
                f"labels must lie in 0..{len(names) - 1} for {len(names)} classes, got {int(labels.min())} to {largest}"
            )
        weights = weights.double() / weights.double().sum()
        totals = torch.zeros(len(names) + 1, dtype=torch.float64).index_add(0, labels, weights)
        totals[-1] = 1.0  # y = -1: no condition
        if not bool((totals > 0).all()):
            raise ValueError(f"class {int(totals.argmin())} has no component of positive weight")
        self.schedule = Cosine() if schedule is None else schedule
        self.shape, self.labels = tuple(shape), labels.long()
        self.class_names, self.num_classes = tuple(names), len(names)
        self.log_weights, self.log_totals = weights.log(), totals.log()

    @property
    def device(self) -> torch.device:
        return self.log_weights.device

    def to(self, device: torch.device | str) -> "Oracle":
        """Moves the tensors in place; for a device without float64 they stay on the CPU and only results move."""
        target = torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(target))
        self.schedule.to(device)
        return self

    # A subclass implements these for a block of rows: x [b, D] float64; alpha, sigma [1 or b, 1]; y [b] or None.

    def moments(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """E[x_0 | x_t, y] and -grad log p_t(x | y), each [b, D]."""
        raise NotImplementedError

    def density(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> tuple[Tensor]:
        """(log p_t(x | y),), [b]."""
        raise NotImplementedError

    def class_densities(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: None) -> tuple[Tensor]:
        """(log p_t(x, y),), [b, num_classes]."""
        raise NotImplementedError

    def draw(self, component: Tensor, z: Tensor) -> Tensor:
        """x_0 [n, D] from the components [n], z [n, D] standard normal."""
        raise NotImplementedError

    def draw_reverse(self, x: Tensor, y: Tensor | None, levels: ReverseLevels, choice: Tensor, z: Tensor) -> Tensor:
        """x_s [b, D] as in `sample_reverse`; choice [b, 1], z [b, D]."""
        raise NotImplementedError

    # The protocols.

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        def parts(x, alpha, sigma, y):
            x_0, negative_score = self.moments(x, alpha, sigma, y)
            return x_0, sigma * negative_score

        return Prediction(*(field.reshape(x_t.shape) for field in self.map_blocks(parts, x_t, y, *self.scales(t))))

    def score(self, x_t: Tensor, t: Tensor | None, y: Condition | None = None) -> Tensor:
        """grad_x log p_t(x | y), in the shape of x_t."""
        return -self.map_blocks(self.moments, x_t, y, *self.scales(t))[1].reshape(x_t.shape)

    def log_density(self, x: Tensor, t: Tensor | None, y: Condition | None = None) -> Tensor:
        """log p_t(x | y) in nats, [B]; t None = log p_0."""
        return self.map_blocks(self.density, x, y, *self.scales(t))[0]

    def log_prob(self, x_t: Tensor, t: Tensor | None) -> Tensor:
        """log p(y | x_t), [B, num_classes]."""
        return self.map_blocks(self.class_densities, x_t, None, *self.scales(t))[0].log_softmax(1)

    def level_log_prob(self, x: Tensor, times: Tensor, prior: Tensor | None = None) -> Tensor:
        """log q(t | x) = log P(t) p_t(x) / sum_u P(u) p_u(x), [B, L]: the posterior of the noise level.

        Arguments:
            times: noise levels, [L].
            prior: P(t), [L]; None = uniform.
        """
        exact = x.to(self.device).double()
        log_joint = torch.stack([self.log_density(exact, t) for t in times.cpu()], dim=1)
        if prior is not None:
            log_joint = log_joint + prior.to(log_joint).log()
        return self.cast_like(log_joint.log_softmax(1), x)

    def sample(self, n: int, rng: torch.Generator, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """n exact samples of p_0 and their labels: x_0 [n, ...] float64, [n].

        Arguments:
            rng: generator on the CPU.
            y: class of each row, [n], -1 = any class; None = any class in every row.
        """
        y = torch.full((n,), -1) if y is None else y.cpu()
        labels, weights = self.labels.cpu(), self.log_weights.exp().cpu()
        component = torch.empty(n, dtype=torch.long)
        for label in y.unique().tolist():
            rows = (y == label).nonzero()[:, 0]
            allowed = weights if label == -1 else torch.where(labels == label, weights, 0.0)
            component[rows] = torch.multinomial(allowed, len(rows), replacement=True, generator=rng)
        z = torch.randn(n, *self.shape, generator=rng, dtype=torch.float64).flatten(1)
        component = component.to(self.device)
        return self.draw(component, z.to(self.device)).reshape(n, *self.shape), self.labels[component]

    def sample_reverse(
        self, x_t: Tensor, t: Tensor, s: Tensor | None, y: Condition | None, choice: Tensor, z: Tensor
    ) -> Tensor:
        """A sample of p(x_s | x_t, y): choice [B] uniform in [0, 1) picks the component, z is standard normal.

        Raises:
            ValueError: s that is not below t.
        """

        def draw(x, alpha, sigma, alpha_s, sigma_s, transition, choice, z, y):
            return (self.draw_reverse(x, y, ReverseLevels(alpha, sigma, alpha_s, sigma_s, transition), choice, z),)

        choice, z = choice[:, None].to(self.device).double(), z.to(self.device).double().flatten(1)
        (result,) = self.map_blocks(draw, x_t, y, *self.reverse_levels(t, s), choice, z)
        return result.reshape(x_t.shape)

    # Helpers.

    def scales(self, t: Tensor | None) -> tuple[Tensor, Tensor]:
        """alpha and sigma, [1 or B, 1] on the oracle's device."""
        if t is None:
            return self.log_weights.new_ones(1, 1), self.log_weights.new_zeros(1, 1)
        alpha, sigma = (part.reshape(-1, 1).to(self.device) for part in self.schedule.alpha_sigma(t))
        return alpha, sigma

    def reverse_levels(self, t: Tensor, s: Tensor | None) -> ReverseLevels:
        """The levels of a step from t to s < t, or to clean data for s None, each [1 or B, 1]."""
        alpha, sigma = self.scales(t)
        ratio = self.schedule.log_snr(t) - (torch.inf if s is None else self.schedule.log_snr(s))
        if not bool((ratio < 0).all()):
            raise ValueError(f"s must be below t in a reverse step, got t = {t} and s = {s}")
        transition = -(sigma**2) * torch.expm1(ratio.reshape(-1, 1).to(self.device))
        return ReverseLevels(alpha, sigma, *self.scales(s), transition)

    def cast_like(self, result: Tensor, x: Tensor) -> Tensor:
        """A float64 result in the dtype of x, float32 at least, on the device of x."""
        return result.to(torch.promote_types(x.dtype, torch.float32)).to(x.device)

    def map_blocks(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        x: Tensor,
        y: Condition | None,
        *levels: Tensor,
        width: int | None = None,
    ) -> list[Tensor]:
        """The concatenated results of function(x, *levels, y) on blocks of rows.

        Arguments:
            width: numbers per row in the largest working array of `function`; None = `row_size`.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"the examples of this oracle have shape {list(self.shape)}, got a batch {list(x.shape)}")
        y = self.to_indices(y, len(x))
        exact = x.to(self.device).double().flatten(1)
        rows = max(1, self.block // (width or self.row_size))
        results = []
        for first in range(0, max(len(x), 1), rows):
            part = slice(first, first + rows)
            inner = (level if len(level) == 1 else level[part] for level in levels)
            results.append(function(exact[part], *inner, None if y is None else y[part]))
        return [self.cast_like(torch.cat(field), x) for field in zip(*results)]

    @property
    def row_size(self) -> int:
        """Numbers per row in the largest working array."""
        raise NotImplementedError

    def to_indices(self, y: Condition | None, n: int) -> Tensor | None:
        """The condition as class indices [n] on the oracle's device."""
        if y is None:
            return None
        if not isinstance(y, Tensor) or y.shape != (n,) or y.is_floating_point():
            raise ValueError(f"y must be class indices [{n}] with -1 for none, got {type(y).__name__}")
        if y.device.type == "cpu" and n and not -1 <= int(y.min()) <= int(y.max()) < self.num_classes:
            raise ValueError(
                f"class indices must lie in -1..{self.num_classes - 1}, got {int(y.min())} to {int(y.max())}"
            )
        return y.to(self.device).long()

    def sum_by_class(self, log_joint: Tensor, labels: Tensor) -> Tensor:
        """log of the sum over the components of each class, [b, num_classes]."""
        index = labels.expand_as(log_joint)
        top = log_joint.new_full((len(log_joint), self.num_classes), torch.finfo(log_joint.dtype).min)
        top = top.scatter_reduce(1, index, log_joint.detach(), "amax")
        mass = torch.zeros_like(top).scatter_add(1, index, (log_joint - top.gather(1, index)).exp())
        return mass.log() + top
