"""Several guidances at once, one around the other."""

from collections.abc import Callable, Mapping

from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser, DenoiserWrapper, Prediction

__all__ = ["Nested"]


class Nested(DenoiserWrapper):
    """last(... second(first(denoiser))): each guidance wraps what the ones before made of the denoiser.

    Arguments:
        denoiser: what is guided.
        parts: guidances by name, from inside out, each a function of the denoiser that it wraps, at least one; in a file
            each is a node with `_partial_: true`, or an option: `/guidance@parts.<name>: <option>` under its defaults.

    Raises:
        ValueError: no parts; what the parts raise.
    """

    def __init__(self, denoiser: Denoiser, parts: Mapping[str, Callable[[Denoiser], DenoiserWrapper]]):
        if not parts:
            raise ValueError("parts is empty: list at least one guidance, from inside out, or take guidance=none")
        self.parts: list[DenoiserWrapper] = []
        for part in parts.values():
            denoiser = part(denoiser)
            self.parts.append(denoiser)
            self.needs_null = self.needs_null or denoiser.needs_null
            self.uses_condition = self.uses_condition or denoiser.uses_condition
        super().__init__(denoiser)

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        return any(part.acts_at(times, labelled) for part in self.parts)

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        return self.denoiser(x_t, t, y)
