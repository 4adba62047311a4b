"""Denoisers: the interface of every method to a sampler.

    denoiser(x_t, t, y) -> Prediction(x_0, eps)

x_t [B, ...]; t float64, a 0-d CPU tensor (all rows at one level) or [B] on the device of x_t; y class indices [B] with -1
for "no condition in this row", an Embedding with its own mask of such rows, or None for no condition at all. The two
fields agree, x_t = alpha_t x_0 + sigma_t eps, unless a method re-noises with another eps on purpose.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from torch import Tensor

from ..backbones.conditions import Condition, Embedding
from ..backbones.perturbations import Perturbation
from ..schedules import Schedule

__all__ = [
    "Classifier",
    "Denoiser",
    "DenoiserInfo",
    "DenoiserWrapper",
    "Energy",
    "ExactDenoiser",
    "LogDensity",
    "Prediction",
    "SamplingError",
    "Tally",
    "is_guided",
]


class SamplingError(ValueError):
    """A sampler or a guidance failed during a run. The message says why, and what to change."""


class Prediction(NamedTuple):
    """Estimates of the clean data E[x_0 | x_t] and of the noise E[eps | x_t], each in the shape of x_t."""

    x_0: Tensor
    eps: Tensor


class Tally:
    """Evaluations so far, one per row: of denoisers and energies, and apart those of classifiers and other potentials."""

    evaluations = 0
    potential_evaluations = 0


class DenoiserInfo(NamedTuple):
    """What a denoiser states of itself.

    Attributes:
        schedule: the noise schedule that t refers to.
        levels: None where t is continuous, else the legal times, decreasing, float64.
        num_classes: number of classes, 0 where y is no class index.
        conditional: whether y means anything, be it a class index or an Embedding.
        has_null: whether a row without condition (y = -1) was trained.
        class_names: one per class, () where they are unknown.
        shape: of one example, None where it is unknown.
        stateful: whether a level depends on more than itself (momentum, noise), so that all samples must be at one.
        embeds: whether `embed` is available.
        compiled: whether torch.compile made its network, which then has no gradients of gradients.
        attention_layers, residual_blocks: of the network, as a backbone lists them, for `predict_perturbed`.
    """

    schedule: Schedule
    levels: Tensor | None
    num_classes: int
    conditional: bool
    has_null: bool
    class_names: Sequence[str]
    shape: Sequence[int] | None
    stateful: bool
    embeds: bool
    compiled: bool
    attention_layers: Sequence[int]
    residual_blocks: Sequence[int]


class Denoiser:
    """Base of everything a sampler can sample. Its attributes are the fields of `DenoiserInfo`, and:

    Attributes:
        tally: where its evaluations are counted, None = nowhere.
        loadable: whether a configuration may name the folder of a training run where it needs such a model.
    """

    loadable = True
    tally: Tally | None = None
    schedule: Schedule
    levels: Tensor | None = None
    num_classes: int = 0
    has_null: bool = False
    class_names: Sequence[str] = ()
    shape: Sequence[int] | None = None
    stateful: bool = False
    embeds: bool = False
    attention_layers: Sequence[int] = ()
    residual_blocks: Sequence[int] = ()

    @property
    def conditional(self) -> bool:
        return self.num_classes > 0

    @property
    def compiled(self) -> bool:
        return False

    @property
    def info(self) -> DenoiserInfo:
        return DenoiserInfo(*(getattr(self, name) for name in DenoiserInfo._fields))

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        raise NotImplementedError

    def start(self, noise: Any, times: Tensor) -> Self:
        """A fresh denoiser for one run over `times`; the denoiser itself where it keeps no state."""
        return self

    def skips_step(self, t: Tensor) -> bool:
        """Whether a step of the run from t, 0-d, leaves x unchanged: the first steps of CFG-Zero*."""
        return False

    def without_skipped_steps(self) -> Self:
        """The same run after its skipped steps, at whatever level it is evaluated (churn and restarts go up again)."""
        return self

    def embed(self, y: Condition) -> Embedding:
        """The condition as vectors, which the network takes in its place, where it has a network."""
        raise NotImplementedError

    def predict_perturbed(self, x_t: Tensor, t: Tensor, y: Condition | None, perturbation: Perturbation) -> Prediction:
        """The prediction of the same network, changed in some of its layers and in some rows."""
        raise NotImplementedError


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
        tally, num_classes, has_null, class_names, shape: as of a `Denoiser`.
    """

    schedule = levels = None
    tally: Tally | None = None
    num_classes: int = 0
    has_null: bool = False
    class_names: Sequence[str] = ()
    shape: Sequence[int] | None = None

    def start(self, noise: Any, times: Tensor) -> Self:
        """Itself: an energy keeps no state."""
        return self


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
    """A denoiser around another one, whose `info` it forwards and which it starts.

    Attributes:
        needs_null: whether training for it must drop the condition of some examples.
        uses_condition: whether it compares conditions, and so has no effect where a model ignores them.
        passthrough: whether its predictions are those of the wrapped denoiser, so that the protocols of that one hold for both.
    """

    needs_null = uses_condition = False
    passthrough = False

    def __init__(self, denoiser: Denoiser):
        self.denoiser, self.tally = denoiser, denoiser.tally

    def skips_step(self, t: Tensor) -> bool:
        return self.denoiser.skips_step(t)

    def without_skipped_steps(self) -> Self:
        fresh = copy.copy(self)
        fresh.denoiser = self.denoiser.without_skipped_steps()
        return fresh

    def embed(self, y: Condition) -> Embedding:
        return self.denoiser.embed(y)

    def predict_perturbed(self, x_t: Tensor, t: Tensor, y: Condition | None, perturbation: Perturbation) -> Prediction:
        return self.denoiser.predict_perturbed(x_t, t, y, perturbation)

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        """Whether it may change anything at some of these times, [N] float64 on the CPU.

        Arguments:
            labelled: whether there are rows with a condition.
        """
        return True

    def start(self, noise: Any, times: Tensor) -> Self:
        fresh = copy.copy(self)
        fresh.denoiser = self.denoiser.start(noise, times)
        return fresh


def is_guided(model: Denoiser | Energy) -> bool:
    """Whether the model is wrapped in guidance."""
    return isinstance(model, DenoiserWrapper) and not model.passthrough


def forward_attribute(name: str) -> property:
    """An attribute of a wrapper, read from the wrapped denoiser; () for the layers of one that is no passthrough."""

    def read(self: DenoiserWrapper) -> Any:
        if name in ("attention_layers", "residual_blocks") and not self.passthrough:
            return ()
        return getattr(self.denoiser, name)

    return property(read)


for name in DenoiserInfo._fields:
    setattr(DenoiserWrapper, name, forward_attribute(name))
