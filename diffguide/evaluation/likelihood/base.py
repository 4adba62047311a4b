"""Base of the metrics that state how probable a model finds every example of a split."""

import functools
import math
from collections.abc import Callable

import numpy
import torch
from torch import Tensor

from ...figures.plot_spec import Plot
from ...models.decoders import Discretized
from ...models.protocols import DenoiserWrapper, Energy
from ...randomness import Noise
from ..metric import EvalContext, Figure, Metric, MetricResult
from .dequantization import Dequantization, estimate_likelihood
from .elbo import start_log_snr

__all__ = ["Density", "PointDensity", "nll_parts"]

Arrays = dict[str, Tensor]
Within = Callable[[float], None]  # told the share of a batch that is done, whenever the model was asked
Answer = Callable[[Tensor, Tensor | None, Noise, Within], Arrays]


class Density(Metric):
    """Base of the metrics that state -log p per dimension of every example.

    Arguments:
        conditional: true: log p(x given its class); false: log p(x), for which a conditional model must have been trained
            with p_uncond > 0; None: the first where the model has classes.
        values: K values of an element, 2 / (K - 1) apart in [-1, 1]; 0 = continuous; None = the run's
            dataset.quantization_levels, and 0 for vectors.
        log_snr_max: log-SNR of z_0, where the likelihood starts; None = the schedule's.

    Attributes:
        part: name of the figure nll_<part>, and of the parts that are kept.
        key: of its node in the configuration, for messages.

    Raises:
        ValueError: values that are none; from check: a model or data that cannot answer.
    """

    part: str
    key = "metric"

    def __init__(self, conditional: bool | None, values: int | None, log_snr_max: float | None):
        if values is not None and (values < 0 or values == 1):
            raise ValueError(f"values must be 0 (continuous) or at least 2, got {values}")
        self.conditional_on_y, self.values, self.log_snr_max = conditional, values, log_snr_max

    def uses_labels(self, context: EvalContext) -> bool:
        """Whether examples come with their class."""
        classes = bool(context.model.num_classes)
        return classes if self.conditional_on_y is None else self.conditional_on_y and classes

    def num_values(self, context: EvalContext) -> int:
        """K.

        Raises:
            ValueError: nobody said it.
        """
        values = (
            (context.config.get("dataset") or {}).get("quantization_levels") if self.values is None else self.values
        )
        if values is None and len(context.shape) == 1:  # vectors are continuous
            values = 0
        if values is None:
            raise ValueError(
                f"metric={self.name} needs the number of values that an element of the data can have, and this checkpoint "
                f"does not say it: set {self.key}.values (17 for digits, 256 for bytes, 0 for continuous data)"
            )
        return int(values)

    def start_log_snr(self, context: EvalContext) -> float:
        """The log-SNR of z_0; of a model of discrete levels that of the nearest of them.

        Raises:
            ValueError: there is none.
        """
        model = context.model
        try:
            if self.log_snr_max is None or model.levels is None:
                return start_log_snr(model.schedule, self.log_snr_max)
            t = model.schedule.t_of(torch.tensor(start_log_snr(model.schedule, self.log_snr_max), dtype=torch.float64))
            return float(model.schedule.log_snr(model.levels[(model.levels - t).abs().argmin()]))
        except ValueError as error:
            raise ValueError(f"{self.key}: {error}") from error

    def check(self, context: EvalContext) -> None:
        super().check(context)
        if isinstance(context.model, Energy):
            raise ValueError(
                f"metric={self.name} needs a normalised density, and a {context.model_name} states its own up to a constant: "
                "take metric=ood"
            )
        self.num_values(context)
        self.start_log_snr(context)
        if values := self.num_values(context):
            try:
                Discretized(values).check(context.batch(0)[0])
            except ValueError as error:
                raise ValueError(
                    f"metric={self.name}: the data are not of {values} values equally spaced in [-1, 1]: set {self.key}.values "
                    "(17 for digits, 256 for bytes, 0 for continuous data)"
                ) from error
        model = context.model
        inner = model.denoiser if context.counter is model else model
        if isinstance(inner, DenoiserWrapper) and not inner.passthrough:
            raise ValueError(
                f"metric={self.name}: guidance ({type(inner).__name__}) has no likelihood; measure the model"
            )
        if self.conditional_on_y and not model.num_classes:
            raise ValueError(
                f"{self.key}.conditional=true needs a model with classes; this {context.model_name} has none"
            )
        if self.conditional_on_y is False and model.num_classes and not model.has_null:
            raise ValueError(
                f"{self.key}.conditional=false needs a model that was trained without labels too (p_uncond above 0); this one "
                f"never was: take {self.key}.conditional=true"
            )
        if self.uses_labels(context) and not bool((context.labels >= 0).all()):
            raise ValueError(
                f"metric={self.name} is conditional, and the {context.split} split has examples without label"
            )

    def nll_fn(self, context: EvalContext) -> Answer:
        """A function of a batch: parts of -log p in nats, [B] each; "noise", their error from finite draws; for a curve
        "starts", -log p [B, K]. While it works it says how far it is."""
        raise NotImplementedError

    def facts(self, context: EvalContext) -> dict[str, object]:
        """What the figure depends on."""
        raise NotImplementedError

    def curve(
        self, context: EvalContext, later: Tensor, column: str, unit: str
    ) -> tuple[list[dict[str, float]], list[Plot]]:
        """Rows and plots of what its answers hold as "starts", [N, K] in the figure's unit; most hold none."""
        raise NotImplementedError

    def offset(self, context: EvalContext) -> float:
        """Bits/dim that turn its density into one of discrete data."""
        return 0.0

    def nll_of_examples(self, context: EvalContext) -> Arrays:
        """What `nll_fn` answers for every example, [N] each, on the CPU."""
        given = self.uses_labels(context)
        nats = functools.cache(
            self.nll_fn
        )  # its pilot run, where it has one, waits for a batch that is not kept already

        def tell(done: int) -> None:
            context.progress(done, context.n, f"examples, {self.part}")

        def answer(first: int) -> dict[str, numpy.ndarray]:
            (x, y), ask = context.batch(first), nats(context)
            tell(first)
            noise = context.noise(first, x.dtype)
            found = ask(x, y if given else None, noise, lambda share: tell(first + int(share * len(x))))
            return {name: part.cpu().numpy() for name, part in found.items()}

        answers = []
        for first in context.firsts:
            answers.append(context.parts.part(f"{self.part}_{first:010d}", lambda: answer(first)))
            tell(min(first + context.batch_size, context.n))
        return {name: torch.cat([torch.as_tensor(part[name]) for part in answers]) for name in answers[0]}

    def measure(self, context: EvalContext) -> MetricResult:
        return self.summarize(context, self.nll_of_examples(context))

    def summarize(self, context: EvalContext, examples: Arrays) -> MetricResult:
        """Figure, facts and curve of what `nll_of_examples` answered."""
        given, values, size = self.uses_labels(context), self.num_values(context), math.prod(context.shape)
        noise, later = examples.get("noise"), examples.get("starts")
        found = estimate_likelihood(nll_parts(examples), size, noise, self.offset(context))
        unit, scale = ("bits/dim", 1.0) if values else ("nats/dim", math.log(2))
        error = None if found.standard_error is None else found.standard_error * scale
        figure = Figure(found.bits_per_dim * scale, error, found.n, unit)
        facts = {
            "nats_per_dim": found.nats_per_dim, "bits_per_dim": found.bits_per_dim, "dimensions": size, "values": values,
            "standard_error_bits_per_dim": found.standard_error, "drawing_error_bits_per_dim": found.noise,
            "offset_bits_per_dim": found.offset, "parts_nats_per_dim": found.parts, "given_class": given,
            "log_snr_max": self.start_log_snr(context), "split": context.split, "seed": context.seed, "n": found.n,
        }  # fmt: skip
        name = f"nll_{self.part}" + ("_given_class" if given else "")
        facts |= self.facts(context)
        if later is None:
            return MetricResult({name: figure}, {name: facts})
        rows, plots = self.curve(context, later * scale / math.log(2) / size, name, unit)
        facts["lowest_of_curve"] = min(rows, key=lambda row: row[name])
        return MetricResult({name: figure}, {name: facts}, rows, plots)


def nll_parts(examples: Arrays) -> Arrays:
    """Those of an answer whose sum is -log p, in nats."""
    return {name: part for name, part in examples.items() if name not in ("noise", "starts")}


class PointDensity(Density):
    """Base of the metrics that know log p at a point: discrete data are dequantised first, `draws` times for each example.

    Arguments:
        dequantization: the way from discrete data to a point.
        draws: at least 1; with two or more the error from drawing is known.
        conditional, values, log_snr_max: see `Density`.

    Attributes:
        random: whether the density itself is drawn.
    """

    random = False

    def __init__(
        self, dequantization: Dequantization, draws: int, conditional: bool | None, values: int | None,
        log_snr_max: float | None,
    ):  # fmt: skip
        super().__init__(conditional, values, log_snr_max)
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        self.dequantization, self.draws = dequantization, draws

    def log_density(
        self, context: EvalContext, x: Tensor, y: Tensor | None, noise: Noise, index: int, within: Within
    ) -> Tensor:
        """log p(x) in nats, [B], of z_0 = x_0 + s_0 eps at x; `index` counts the draws."""
        raise NotImplementedError

    def repetitions(self, context: EvalContext) -> int:
        """Draws for each example: one where nothing is drawn."""
        return self.draws if self.random or self.num_values(context) else 1

    def nll_fn(self, context: EvalContext) -> Answer:
        values, start = self.num_values(context), self.start_log_snr(context)

        def density(x: Tensor, y: Tensor | None, noise: Noise, within: Within) -> Arrays:
            if values:
                Discretized(values).check(x)
            costs, corrections, repetitions = [], [], self.repetitions(context)
            for index in range(repetitions):
                point, correction = x, x.new_zeros(len(x), dtype=torch.float64)
                if values:
                    point, correction = self.dequantization(x, values, start, noise, index)

                def drawn(share: float) -> None:
                    within((index + share) / repetitions)

                costs.append(-self.log_density(context, point, y, noise, index, drawn).double())
                corrections.append(-correction)
                drawn(1.0)
            costs, corrections = torch.stack(costs), torch.stack(corrections)
            found = {"density": costs.mean(0)} | ({"dequantisation": corrections.mean(0)} if values else {})
            if len(costs) > 1:
                found["noise"] = (costs + corrections).std(0) / math.sqrt(len(costs))
            return found

        return density

    def offset(self, context: EvalContext) -> float:
        values = self.num_values(context)
        return self.dequantization.offset(values) if values else 0.0

    def facts(self, context: EvalContext) -> dict[str, object]:
        discrete = bool(self.num_values(context))
        return {
            "dequantisation": self.dequantization.text if discrete else "none: continuous",
            "draws": self.repetitions(context), "noise_level": math.exp(-self.start_log_snr(context) / 2),
        }  # fmt: skip
