"""Base of the metrics of samples: new ones of the model, or those of a run of diffguide-sample."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ...guidance import Unguided
from ...guidance.potentials.base import tilts_energy
from ...models.protocols import Denoiser, DenoiserWrapper, Energy
from ...samplers import Heun, Sampler
from ..metric import EvalContext, Metric
from ..probe import check_conditioning

__all__ = ["SampledMetric"]


class SampledMetric(Metric):
    """
    Arguments:
        guidance: model -> guided denoiser; None = no guidance.
        sampler: None = `Heun()`.
        samples: folder of a run of diffguide-sample; None = new samples.
    """

    def __init__(
        self,
        guidance: Callable[[Denoiser], DenoiserWrapper] | None,
        sampler: Sampler | None,
        samples: str | None,
    ):
        self.guidance = guidance or partial(Unguided)
        self.sampler = sampler or Heun()
        self.folder = None if samples is None else Path(samples).expanduser()

    def guide(self, context: EvalContext) -> Denoiser | Energy:
        """Adds the guidance to the model; an energy without a potential is returned unchanged."""
        return self.guidance(context.model)

    def check_model(self, context: EvalContext) -> None:
        """Raises ValueError unless the model makes images, and the guidance fits it."""
        is_energy = isinstance(context.model, Energy)
        if context.as_protocol(Denoiser) is None and not is_energy:
            raise ValueError(
                f"metric={self.name} needs a denoiser or an energy; this checkpoint holds a {context.model_name}"
            )
        guidance = getattr(self.guidance, "func", self.guidance)
        if is_energy and guidance is not Unguided and not tilts_energy(guidance):
            raise ValueError(
                f"metric.guidance has no effect on a {context.model_name}, an energy, which uses its labels without guidance: "
                "use guidance@metric.guidance=none, or a potential"
            )
        if len(context.shape) != 3:
            raise ValueError(
                f"metric={self.name} needs images; this model makes vectors of shape {list(context.shape)}: use a sweep of "
                "diffguide-sample -m"
            )

    def check_sampler(self, context: EvalContext) -> Denoiser | Energy:
        """The guided model; raises ValueError for a sampler or a guidance that does not fit the model."""
        guided = self.guide(context)
        try:
            self.sampler.times(guided)
        except ValueError as error:
            raise ValueError(f"metric.sampler: {error}") from error
        if getattr(guided, "needs_null", False):
            check_conditioning(context.uncounted, context.shape, context.device)
        return guided
