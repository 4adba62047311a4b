"""Denoisers: what every method of this library shows to a sampler.

    denoiser(x_t, t, y) -> Prediction(x_0, eps)

x_t [B, ...]; t float64, a 0-d CPU tensor (all rows at one level) or [B] on the device of x_t; y class indices [B] with -1
for "no condition in this row", an Embedding with its own mask of such rows, or None for no condition at all. The two
fields agree, x_t = alpha_t x_0 + sigma_t eps, unless a method re-noises with another eps on purpose.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .backbones import Backbone
from .backbones.conditions import Condition, Embedding
from .backbones.perturbations import Perturbation
from .parameterizations import Parameterization, Rows
from .schedules import Schedule

__all__ = [
    "Prediction", "Denoiser", "ExactDenoiser", "LogDensity", "Classifier", "Preconditioned", "DenoiserWrapper",
    "EvaluationCounter", "SamplingError", "capable",
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
        remembers: whether a level depends on more than itself (momentum, noise), so that all samples must be at one.
        embeds: whether `embed` says what the network makes of a condition.
        attention_layers, residual_blocks: of the network, as a backbone lists them: where `perturbed` can change it.
        compiled: whether torch.compile made its network, which then has no gradients of gradients.
        stored: whether a configuration may name the folder of a training run where it needs such a model.
    """

    stored = True
    schedule: Schedule
    levels: Tensor | None = None
    num_classes: int = 0
    has_null: bool = False
    class_names: Sequence[str] = ()
    shape: Sequence[int] | None = None
    remembers: bool = False
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

    def embed(self, y: Condition) -> Embedding:
        """The condition as vectors, which the network takes in its place, where it has a network."""
        raise NotImplementedError

    def perturbed(self, x_t: Tensor, t: Tensor, y: Condition | None, perturbation: Perturbation) -> Prediction:
        """The prediction of the same network, changed in some of its layers and in some rows, where it has such layers."""
        raise NotImplementedError

    def counted(self, other: "Denoiser") -> "Denoiser":
        """Another denoiser, whose evaluations count as this one's, where somebody counts these."""
        return other

    def count_potential(self, rows: int) -> None:
        """Says that a classifier or another log-potential was asked about so many rows, where somebody counts."""


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


class Classifier:
    """log p(y | x_t) as a function of x_t.

    Attributes:
        schedule: the noise schedule that t refers to; a model without noise levels has none.
    """

    stored = True
    schedule: Schedule
    num_classes: int = 0

    def log_prob(self, x_t: Tensor, t: Tensor | None) -> Tensor:
        """Normalised log-probabilities of the classes, [B, num_classes]; t is None for a model without noise levels."""
        raise NotImplementedError


class Preconditioned(nn.Module, Denoiser):
    """A backbone read through a parameterization: x0_hat = c_skip x_t + c_out F(c_in x_t, log_snr, y), likewise eps.

    Karras et al. 2022, arXiv 2206.00364, eq. 7. The network sees the log-SNR, never t; one that was built
    without noise conditioning sees neither.

    Arguments:
        backbone: module (x, log_snr [B] or None, y) -> F.
        schedule: the noise schedule.
        parameterization: the meaning of F.
        has_null: whether training dropped the condition, so that y = -1 means something.

    Raises:
        ValueError: a parameterization that divides by alpha on a schedule that ends at alpha = 0.
    """

    def __init__(self, backbone: Backbone, schedule: Schedule, parameterization: Parameterization, has_null: bool):
        super().__init__()
        if schedule.zero_terminal_snr and parameterization.needs_signal:
            raise ValueError(
                f"a network that predicts {type(parameterization).__name__.lower()} cannot be used at zero terminal SNR: "
                f"at t = 1 {type(schedule).__name__} holds no signal (log_snr_min=-inf) and x_0 would be divided by 0; "
                "take objective=x0, v, flow or edm, or a finite log_snr_min"
            )
        self.backbone, self.schedule, self.parameterization = backbone, schedule, parameterization
        self.num_classes = backbone.num_classes
        self.has_null = bool(has_null) or not backbone.conditional

    @property
    def conditional(self) -> bool:
        return self.backbone.conditional

    embeds = conditional
    attention_layers = property(lambda self: self.backbone.attention_layers)
    residual_blocks = property(lambda self: self.backbone.residual_blocks)
    compiled = property(lambda self: self.backbone.compiled)

    def embed(self, y: Condition) -> Embedding:
        return self.backbone.embed(y)

    def output(
        self, x_t: Tensor, t: Tensor, y: Condition | None = None, perturbation: Perturbation | None = None
    ) -> tuple[Tensor, Rows]:
        """The network's output F and the rows that read it, in the dtype of x_t, float32 at least."""
        return self.output_at(x_t, self.schedule.log_snr(t), y, perturbation)

    def output_at(
        self, x_t: Tensor, log_snr: Tensor, y: Condition | None = None, perturbation: Perturbation | None = None
    ) -> tuple[Tensor, Rows]:
        """`output` at a log-SNR of the schedule, float64."""
        x_t = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        rows = self.parameterization.rows(*self.schedule.scales(log_snr, x_t.ndim)).to(x_t)
        level = log_snr.to(x_t).expand(len(x_t)) if self.backbone.noise_conditioned else None
        changed = () if perturbation is None else (perturbation,)  # which a network of one's own need not know
        return self.backbone(rows.c_in * x_t, level, y, *changed).to(x_t.dtype), rows

    def forward(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        return self.read(x_t, *self.output(x_t, t, y))

    def perturbed(self, x_t: Tensor, t: Tensor, y: Condition | None, perturbation: Perturbation) -> Prediction:
        return self.read(x_t, *self.output(x_t, t, y, perturbation))

    def read(self, x_t: Tensor, output: Tensor, rows: Rows) -> Prediction:
        """The estimates that the network's output means."""
        x_t = x_t.to(output.dtype)
        return Prediction(rows.c_skip * x_t + rows.c_out * output, rows.e_skip * x_t + rows.e_out * output)


class DenoiserWrapper(Denoiser):
    """A denoiser made of another one, whose facts it forwards. It starts what it wraps.

    Attributes:
        needs_null: whether training for it must drop the condition of some examples.
        by_condition: whether it compares conditions, and so does nothing where a model ignores them.
        transparent: whether it shows the law of what it wraps, so that whatever else that knows holds for both.
    """

    needs_null = by_condition = False
    transparent = False

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser

    schedule = property(lambda self: self.denoiser.schedule)
    levels = property(lambda self: self.denoiser.levels)
    num_classes = property(lambda self: self.denoiser.num_classes)
    conditional = property(lambda self: self.denoiser.conditional)
    has_null = property(lambda self: self.denoiser.has_null)
    class_names = property(lambda self: self.denoiser.class_names)
    shape = property(lambda self: self.denoiser.shape)
    remembers = property(lambda self: self.denoiser.remembers)
    embeds = property(lambda self: self.denoiser.embeds)
    attention_layers = property(lambda self: self.denoiser.attention_layers if self.transparent else ())
    residual_blocks = property(lambda self: self.denoiser.residual_blocks if self.transparent else ())
    compiled = property(lambda self: self.denoiser.compiled)

    def embed(self, y: Condition) -> Embedding:
        return self.denoiser.embed(y)

    def perturbed(self, x_t: Tensor, t: Tensor, y: Condition | None, perturbation: Perturbation) -> Prediction:
        return self.denoiser.perturbed(x_t, t, y, perturbation)

    def counted(self, other: Denoiser) -> Denoiser:
        return self.denoiser.counted(other)

    def count_potential(self, rows: int) -> None:
        self.denoiser.count_potential(rows)

    def steers(self, times: Tensor, labelled: bool) -> bool:
        """Whether it may change anything at some of these times, [N] float64 on the CPU.

        Arguments:
            labelled: whether there are rows with a condition.
        """
        return True

    def start(self, noise, times: Tensor) -> "DenoiserWrapper":
        fresh = copy.copy(self)
        fresh.denoiser = self.denoiser.start(noise, times)
        return fresh


class EvaluationCounter(DenoiserWrapper):
    """Counts evaluations, one per row (two conditions of B images are 2 B): of the network, and apart of potentials."""

    transparent = True

    def __init__(self, denoiser: Denoiser):
        super().__init__(denoiser)
        self.count = [0, 0]  # a list, so that the copies which `start` makes count together

    @property
    def evaluations(self) -> int:
        return self.count[0]

    @property
    def potential_evaluations(self) -> int:
        return self.count[1]

    def counted(self, other: Denoiser) -> "EvaluationCounter":
        counter = EvaluationCounter(other)
        counter.count = self.count
        return counter

    def count_potential(self, rows: int) -> None:
        self.count[1] += rows

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        self.count[0] += len(x_t)
        return self.denoiser(x_t, t, y)

    def perturbed(self, x_t: Tensor, t: Tensor, y: Condition | None, perturbation: Perturbation) -> Prediction:
        self.count[0] += len(x_t)
        return self.denoiser.perturbed(x_t, t, y, perturbation)


def capable(denoiser: Denoiser, protocol: type) -> Denoiser | None:
    """The denoiser itself, or the one whose law it shows, where it has a protocol; None where it has not."""
    while isinstance(denoiser, DenoiserWrapper) and denoiser.transparent and not isinstance(denoiser, protocol):
        denoiser = denoiser.denoiser
    return denoiser if isinstance(denoiser, protocol) else None
