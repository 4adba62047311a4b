"""Several guidances, one around the other."""

from collections.abc import Callable, Mapping

from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser, DenoiserWrapper, Prediction
from ..models.tilts import Tilt

__all__ = ["Nested"]


class Nested(DenoiserWrapper):
    """last(... second(first(denoiser))): each guidance wraps the result of those before it.

    Arguments:
        denoiser: what is guided.
        parts: guidances by name, from inside out, at least one: functions of the denoiser that they wrap. In a YAML file
            each is a node with `_partial_: true`, or an option `/guidance@parts.<name>: <option>` in its defaults.
    """

    def __init__(self, denoiser: Denoiser, parts: Mapping[str, Callable[[Denoiser], DenoiserWrapper]]):
        if not parts:
            raise ValueError("parts is empty: list at least one guidance, from inside out, or take guidance=none")
        self.parts: list[DenoiserWrapper] = []
        for part in parts.values():
            guided = part(denoiser)
            if guided is denoiser:  # Unguided
                continue
            denoiser = guided
            self.parts.append(guided)
            self.needs_null = self.needs_null or guided.needs_null
            self.uses_condition = self.uses_condition or guided.uses_condition
        super().__init__(denoiser)

    def tilt(self) -> Tilt | None:
        return self.denoiser.tilt()

    def explain_no_law(self) -> str | None:
        return self.denoiser.explain_no_law()

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        return not self.parts or any(part.acts_at(times, labelled) for part in self.parts)

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        return self.denoiser(x_t, t, y)
