"""Denoisers: the interface of every method to a sampler.

    denoiser(x_t, t, y) -> Prediction(x_0, eps)

x_t [B, ...]; t float64, a 0-d CPU tensor (all rows at one level) or [B] on the device of x_t; y class indices [B] with -1
for "no condition in this row", an Embedding with its own mask of such rows, or None for no condition in any row. The two
fields satisfy x_t = alpha_t x_0 + sigma_t eps, unless a method re-noises with another eps on purpose.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from torch import Tensor

from ..backbones.conditioning import Conditioning
from ..backbones.conditions import Condition, RowCondition
from ..backbones.perturbations import Perturbation
from ..schedules import Schedule
from .log_densities import LogDensity
from .predictions import Prediction, StackedPrediction, VariancePrediction, WeightedPrediction, keep_variance, take_rows
from .tally import Tally
from .tilts import NamesLaw, Tilt

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
    "StackedPrediction",
    "Tally",
    "VariancePrediction",
    "WeightedPrediction",
    "is_guided",
    "keep_variance",
    "take_rows",
]


class SamplingError(ValueError):
    """A sampler or a guidance failed during a run. The message names the cause and what to change."""


class DenoiserInfo(NamedTuple):
    """The properties of a denoiser.

    Attributes:
        schedule: the noise schedule of t.
        levels: the valid times, decreasing, float64; None = every t in [0, 1].
        num_classes: number of classes; 0 = y is no class index.
        conditional: whether y (class indices or an Embedding) has an effect.
        has_null: whether rows without condition (y = -1) were trained.
        class_names: one per class; () = unknown.
        shape: shape of one example; None = unknown.
        stateful: whether a prediction depends on earlier calls (momentum, noise), so that all rows need one noise level.
        embeds: whether `embed` is available.
        is_compiled: whether the network is compiled by torch.compile, and so has no second derivatives.
        attention_layers, residual_blocks: those of the backbone, for `predict_perturbed`.
        perturbations: those of the backbone, beside those of attention maps and outputs of blocks.
        learned_variance: whether predictions are `VariancePrediction`s.
        conditioning: what reads conditions that are no class indices, such as texts; None = there are none.
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
    is_compiled: bool
    attention_layers: Sequence[int]
    residual_blocks: Sequence[int]
    perturbations: tuple[type[Perturbation], ...]
    learned_variance: bool
    conditioning: Conditioning | None


class Denoiser(NamesLaw):
    """Base of every model that samplers take. Its attributes are the fields of `DenoiserInfo` and these:

    Attributes:
        tally: the counters of its evaluations; None = they are not counted.
        loadable: whether a configuration may give the folder of a training run in place of a node of this class.
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
    perturbations: tuple[type[Perturbation], ...] = ()
    learned_variance: bool = False
    conditioning: Conditioning | None = None

    @property
    def conditional(self) -> bool:
        return self.num_classes > 0

    @property
    def is_compiled(self) -> bool:
        return False

    @property
    def info(self) -> DenoiserInfo:
        return DenoiserInfo(*(getattr(self, name) for name in DenoiserInfo._fields))

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        raise NotImplementedError

    def start(self, noise: Any, times: Tensor) -> Self:
        """A denoiser with fresh state for one run over `times`; the same object if it keeps no state."""
        return self

    def skips_step(self, t: Tensor) -> bool:
        """Whether the sampler leaves x unchanged in its step from t, 0-d (the first steps of CFG-Zero*)."""
        return False

    def without_skipped_steps(self) -> Self:
        """A copy that skips no step, for churn and restarts, which return to high noise levels."""
        return self

    def embed(self, y: Condition) -> RowCondition:
        """The vectors of a condition, which the network takes in its place."""
        raise NotImplementedError

    def predict_perturbed(self, x_t: Tensor, t: Tensor, y: Condition | None, perturbation: Perturbation) -> Prediction:
        """The prediction of the same network with some layers perturbed in some rows."""
        raise NotImplementedError


class ExactDenoiser(Denoiser):
    """A denoiser with the covariance and samples of p(x_0 | x_t), for exact reverse steps."""

    def covariance(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Tensor:
        """Cov[x_0 | x_t, y], [B, D, D], where D is the number of elements of one example."""
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


class Energy(LogDensity):
    """A log-density without noise levels, which samplers of log-densities take. It is no denoiser.

    Attributes:
        schedule, levels, conditioning: None, since there are no noise levels, and no other conditions than classes.
        tally, num_classes, has_null, class_names, shape: as in a `Denoiser`.
    """

    schedule = levels = conditioning = None
    tally: Tally | None = None
    num_classes: int = 0
    has_null: bool = False
    class_names: Sequence[str] = ()
    shape: Sequence[int] | None = None

    def start(self, noise: Any, times: Tensor) -> Self:
        """The same object: an energy keeps no state."""
        return self


class Classifier:
    """log p(y | x_t) as a function of x_t.

    Attributes:
        schedule: the noise schedule of t; a model without noise levels has none.
    """

    loadable = True
    schedule: Schedule
    num_classes: int = 0

    def log_prob(self, x_t: Tensor, t: Tensor | None) -> Tensor:
        """log p(y | x_t) for every class y, [B, num_classes]; t is None for a model without noise levels."""
        raise NotImplementedError


class DenoiserWrapper(Denoiser):
    """A denoiser around another one. It forwards `info` and `start`.

    Attributes:
        needs_null: whether its model must be trained with rows without condition.
        uses_condition: whether it compares conditions, and so has no effect on a model without them.
        passthrough: whether its predictions are those of the wrapped denoiser, whose protocols then hold for it too.
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

    def embed(self, y: Condition) -> RowCondition:
        return self.denoiser.embed(y)

    def predict_perturbed(self, x_t: Tensor, t: Tensor, y: Condition | None, perturbation: Perturbation) -> Prediction:
        return self.denoiser.predict_perturbed(x_t, t, y, perturbation)

    def tilt(self) -> Tilt | None:
        return self.denoiser.tilt() if self.passthrough else None

    def explain_no_law(self) -> str | None:
        return self.denoiser.explain_no_law() if self.passthrough else f"{type(self).__name__} has none"

    def predict_weighted(self, x_t: Tensor, t: Tensor, y: Condition | None) -> WeightedPrediction:
        return self.denoiser.predict_weighted(x_t, t, y)

    def end_value(self, x: Tensor, y: Condition | None) -> Tensor | None:
        return self.denoiser.end_value(x, y)

    def explain_no_density(self) -> str | None:
        return self.explain_no_law() or self.denoiser.explain_no_density()

    def guided_log_density(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        return self.denoiser.guided_log_density(x_t, t, y)

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        """Whether it may change a prediction at one of these times, [N] float64 on the CPU.

        Arguments:
            labelled: whether some rows have a condition.
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
    """An attribute of the wrapped denoiser; () for the layers of a wrapper that is no passthrough."""

    def read(self: DenoiserWrapper) -> Any:
        if name in ("attention_layers", "residual_blocks", "perturbations") and not self.passthrough:
            return ()
        return getattr(self.denoiser, name)

    return property(read)


for name in DenoiserInfo._fields:
    setattr(DenoiserWrapper, name, forward_attribute(name))
