"""Several contrasts with one strong side, whose changes are added."""

from collections.abc import Callable, Mapping
from typing import Self

from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser, DenoiserWrapper, Prediction, keep_variance
from ..randomness import Noise
from .contrast import Contrast
from .rules import Rescale

__all__ = ["SummedContrasts"]


class SummedContrasts(DenoiserWrapper):
    """strong + sum_k (contrast_k - strong); then the standard deviation of x_0 is moved towards the strong one.

    With linear rules strong + sum_k (scale_k - 1) (strong - weak_k): `Nested` applies one contrast to the result of another,
    this one adds what each does to the denoiser alone. LTX-2's composition of classifier-free, spatio-temporal (skipped
    blocks) and modality guidance, as in diffusers' `LTX2Guidance`, whose skipped-block scale is scale - 1 here. The strong
    side is evaluated once, and one weak side per contrast.

    Arguments:
        denoiser: what is guided.
        parts: contrasts by name, at least one: functions of the denoiser. In a YAML file each is a node with
            `_partial_: true`, or an option `/guidance@parts.<name>: <option>` in its defaults.
        rescale: phi of `Rescale`, in [0, 1]; 0 = off, 0.7 in LTX-2.

    Raises:
        ValueError: no parts, a part that is no contrast, or one of a rule that depends on earlier noise levels.
    """

    def __init__(
        self, denoiser: Denoiser, parts: Mapping[str, Callable[[Denoiser], DenoiserWrapper]], rescale: float = 0.0
    ):
        super().__init__(denoiser)
        self.rescale = Rescale(rescale)
        self.parts: dict[str, Contrast] = {}
        for name, make in parts.items():
            part = make(denoiser)
            if not isinstance(part, Contrast):
                raise ValueError(
                    f"parts.{name} must be a contrast, such as cfg, autoguidance or slg, got {type(part).__name__}"
                )
            if part.stateful and not denoiser.stateful:
                raise ValueError(f"parts.{name} depends on earlier noise levels: take another rule")
            self.parts[name] = part
        if not self.parts:
            raise ValueError("parts is empty: list at least one contrast, or take guidance=none")
        self.needs_null = any(part.needs_null for part in self.parts.values())
        self.uses_condition = any(part.uses_condition for part in self.parts.values())

    def start(self, noise: Noise | None, times: Tensor) -> Self:
        fresh = super().start(noise, times)
        fresh.parts = {}
        for name, part in self.parts.items():
            fresh.parts[name] = part.start(noise, times)
            fresh.parts[name].denoiser = fresh.denoiser  # one run of what all of them guide
        return fresh

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        return any(part.acts_at(times, labelled) for part in self.parts.values())

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        strong = self.denoiser(x_t, t, y)
        x_0, eps = strong.x_0, strong.eps
        changed = False
        for part in self.parts.values():
            guided = part.guide_strong(strong, x_t, t, y)
            if guided is not strong:
                x_0, eps, changed = x_0 + (guided.x_0 - strong.x_0), eps + (guided.eps - strong.eps), True
        if not changed:
            return strong
        return keep_variance(self.rescale.match(strong, Prediction(x_0, eps), t, self.schedule), strong)
