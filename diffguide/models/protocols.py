"""Denoisers: what every method of this library shows to a sampler.

    denoiser(x_t, t, y) -> Prediction(x_0, eps)

x_t [B, ...]; t float64, a 0-d CPU tensor (all rows at one level) or [B] on the device of x_t; y class indices [B] with -1
for "no condition in this row", an Embedding with its own mask of such rows, or None for no condition at all. The two
fields agree, x_t = alpha_t x_0 + sigma_t eps, unless a method re-noises with another eps on purpose.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..backbones.conditions import Condition, Embedding
from ..backbones.perturbations import Perturbation
from ..schedules import Schedule

__all__ = [
    "Prediction", "Denoiser", "ExactDenoiser", "LogDensity", "Energy", "Classifier", "DenoiserWrapper", "SamplingError",
]  # fmt: skip


class SamplingError(ValueError):
    """What a run that was begun cannot end, in its sampler or its guidance: it says why, and what to change."""


class Prediction(NamedTuple):
    """Estimates of the clean data E[x_0 | x_t] and of the noise E[eps | x_t], each in the shape of x_t."""

    x_0: Tensor
    eps: Tensor


class Denoiser:
    """Base of everything a sampler can sample.

    Attributes:
        schedule: the noise schedule that t refers to.
        levels: None where t is continuous, else the legal times, decreasing, float64.
        num_classes: number of classes, 0 where y is no class index.
        conditional: whether y means anything, be it a class index or an Embedding.
        has_null: whether a row without condition (y = -1) was trained.
        class_names: one per class, () where nobody said them.
        shape: of one example, None where nobody said it.
        stateful: whether a level depends on more than itself (momentum, noise), so that all samples must be at one.
        embeds: whether `embed` says what the network makes of a condition.
        attention_layers, residual_blocks: of the network, as a backbone lists them: where `predict_perturbed` can change it.
        compiled: whether torch.compile made its network, which then has no gradients of gradients.
        loadable: whether a configuration may name the folder of a training run where it needs such a model.
    """

    loadable = True
    schedule: Schedule
    levels: Tensor | None = None
    num_classes: int = 0
    has_null: bool = False
    class_names: Sequence[str] = ()
    shape: Sequence[int] | None = None
    stateful: bool = False
    embeds: bool = False
    compiled: bool = False
    attention_layers: Sequence[int] = ()
    residual_blocks: Sequence[int] = ()

    @property
    def conditional(self) -> bool:
        return self.num_classes > 0

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        raise NotImplementedError

    def start(self, noise, times: Tensor) -> "Denoiser":
        """A fresh denoiser for one run over `times`; where nothing is remembered, the denoiser itself."""
        return self

    def skips_step(self, t: Tensor) -> bool:
        """Whether a step of the run from t, 0-d, leaves x where it is: the first steps of CFG-Zero*."""
        return False

    def without_skipped_steps(self) -> "Denoiser":
        """The same run after its still steps, at whatever level it is asked (churn and restarts go up again)."""
        return self

    def embed(self, y: Condition) -> Embedding:
        """The condition as vectors, which the network takes in its place, where it has a network."""
        raise NotImplementedError

    def predict_perturbed(self, x_t: Tensor, t: Tensor, y: Condition | None, perturbation: Perturbation) -> Prediction:
        """The prediction of the same network, changed in some of its layers and in some rows, where it has such layers."""
        raise NotImplementedError

    def counted(self, other: "Denoiser") -> "Denoiser":
        """Another denoiser, whose evaluations count as this one's, where somebody counts these."""
        return other

    def count_potential(self, rows: int) -> None:
        """Says that a classifier or another log-potential was asked about so many rows, where somebody counts."""

    def count_evaluations(self, rows: int) -> None:
        """Says that its log-density was asked about so many rows, where somebody counts."""


class ExactDenoiser(Denoiser):
    """A denoiser that knows more of p(x_0 | x_t) than its mean: what an exact reverse step needs."""

    def covariance(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Tensor:
        """Cov[x_0 | x_t, y], [B, D, D] with D the number of values of one example."""
        raise NotImplementedError

    def sample_reverse(
        self, x_t: Tensor, t: Tensor, s: Tensor | None, y: Condition | None, choice: Tensor, z: Tensor
    ) -> Tensor:
        """A draw from p(x_s | x_t, y), s < t, or from p(x_0 | x_t, y) for s None.

        Arguments:
            choice: [B] uniform in [0, 1).
            z: standard normal, in the shape of x_t.
        """
        raise NotImplementedError


class LogDensity:
    """log p_t(x) as a function of x.

    Attributes:
        normalized: whether exp(log_density) integrates to 1; False = up to a constant, which may depend on t.
    """

    normalized: bool = False

    def log_density(self, x: Tensor, t: Tensor | None, y: Condition | None = None) -> Tensor:
        """log p_t(x | y) in nats, [B]; t is None for a model without noise levels."""
        raise NotImplementedError


class Energy(LogDensity):
    """A log-density without noise levels: no denoiser, and yet a sampler of log-densities can sample it.

    Attributes:
        schedule, levels: None, for there are no noise levels.
        num_classes, has_null, class_names, shape: as of a `Denoiser`.
    """

    schedule = levels = None
    num_classes: int = 0
    has_null: bool = False
    class_names: Sequence[str] = ()
    shape: Sequence[int] | None = None

    def start(self, noise, times: Tensor) -> "Energy":
        """An energy remembers nothing: itself."""
        return self

    def count_evaluations(self, rows: int) -> None:
        """Says that it was asked about so many rows, where somebody counts."""


class Classifier:
    """log p(y | x_t) as a function of x_t.

    Attributes:
        schedule: the noise schedule that t refers to; a model without noise levels has none.
    """

    loadable = True
    schedule: Schedule
    num_classes: int = 0

    def log_prob(self, x_t: Tensor, t: Tensor | None) -> Tensor:
        """Normalised log-probabilities of the classes, [B, num_classes]; t is None for a model without noise levels."""
        raise NotImplementedError


class DenoiserWrapper(Denoiser):
    """A denoiser made of another one, whose facts it forwards. It starts what it wraps.

    Attributes:
        needs_null: whether training for it must drop the condition of some examples.
        uses_condition: whether it compares conditions, and so does nothing where a model ignores them.
        passthrough: whether it shows the law of what it wraps, so that whatever else that knows holds for both.
    """

    needs_null = uses_condition = False
    passthrough = False

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser

    schedule = property(lambda self: self.denoiser.schedule)
    levels = property(lambda self: self.denoiser.levels)
    num_classes = property(lambda self: self.denoiser.num_classes)
    conditional = property(lambda self: self.denoiser.conditional)
    has_null = property(lambda self: self.denoiser.has_null)
    class_names = property(lambda self: self.denoiser.class_names)
    shape = property(lambda self: self.denoiser.shape)
    stateful = property(lambda self: self.denoiser.stateful)
    embeds = property(lambda self: self.denoiser.embeds)
    attention_layers = property(lambda self: self.denoiser.attention_layers if self.passthrough else ())
    residual_blocks = property(lambda self: self.denoiser.residual_blocks if self.passthrough else ())
    compiled = property(lambda self: self.denoiser.compiled)

    def skips_step(self, t: Tensor) -> bool:
        return self.denoiser.skips_step(t)

    def without_skipped_steps(self) -> "DenoiserWrapper":
        fresh = copy.copy(self)
        fresh.denoiser = self.denoiser.without_skipped_steps()
        return fresh

    def embed(self, y: Condition) -> Embedding:
        return self.denoiser.embed(y)

    def predict_perturbed(self, x_t: Tensor, t: Tensor, y: Condition | None, perturbation: Perturbation) -> Prediction:
        return self.denoiser.predict_perturbed(x_t, t, y, perturbation)

    def counted(self, other: Denoiser) -> Denoiser:
        return self.denoiser.counted(other)

    def count_potential(self, rows: int) -> None:
        self.denoiser.count_potential(rows)

    def count_evaluations(self, rows: int) -> None:
        self.denoiser.count_evaluations(rows)

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        """Whether it may change anything at some of these times, [N] float64 on the CPU.

        Arguments:
            labelled: whether there are rows with a condition.
        """
        return True

    def start(self, noise, times: Tensor) -> "DenoiserWrapper":
        fresh = copy.copy(self)
        fresh.denoiser = self.denoiser.start(noise, times)
        return fresh
