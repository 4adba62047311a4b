"""Independent condition guidance: no condition is imitated by one that has nothing to do with the sample."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition, RowCondition, concatenate_conditions, has_condition
from ..models.protocols import Denoiser, Prediction
from ..schedules import EVERYWHERE
from .base import split_prediction, stack_rows
from .contrast import CONSTANT_RAMP, LINEAR_RULE
from .draws import DrawingContrast
from .embedded import change_embedded, measure
from .ramps import Ramp
from .rules import Rule

__all__ = ["ICG"]


class ICG(DrawingContrast):
    """Weak: the same network with a condition drawn at random for each sample and noise level.

    Sadat, Kansy, Hilliges, Weber, "No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models", 2024,
    arXiv 2407.02687, section 4 and appendix G: D(random) + scale (D(y) - D(random)), with scale 1.4 for a DiT. It needs no
    trained null condition, which the average over random conditions replaces.

    A random class is uniform over all classes, the sample's own among them. In place of a text, or of another embedded
    condition, its vectors are drawn: standard normals times the standard deviation of the values of the embedding, here of the
    tokens of the sample. Attributes, numbers and pictures beside them have no embedding and stay.
    Rows without condition are not guided.

    Arguments:
        denoiser: network with a condition.
        scale: 1 = off (conditional), 0 = the random condition alone, above 1 = guided.
        interval, rule, ramp: as in `Contrast`.

    Raises:
        ValueError: a denoiser without a condition, or without an embedding of it; from a call: outside a run, where there is no
            noise, or with t [B].
    """

    option = "icg"
    draw_space = 5
    uses_condition = True

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 1.4,
        interval: Sequence[float] = EVERYWHERE,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
    ):
        super().__init__(denoiser, scale, interval, rule, ramp)
        conditioning = denoiser.conditioning
        if not denoiser.conditional:
            raise ValueError(
                "guidance=icg needs a model with a condition, and this one has none; take guidance=none, tsg, tpg or pag"
            )
        if conditioning is not None and not conditioning.gives_vectors:
            raise ValueError(
                f"guidance=icg draws classes and embedded texts, and {type(conditioning).__name__} has none: take guidance=cfg"
            )
        if not denoiser.num_classes and not denoiser.embeds:
            raise ValueError(
                "guidance=icg needs a model with one embedding of its condition; if guidance is nested, list icg before "
                "autoguidance"
            )

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        return labelled and super().acts_at(times, labelled)

    def predict_both(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        if y is None:
            side = self.denoiser(x_t, t, None)
            return side, side
        weak = self.draw_condition(x_t, t, y)
        given = y if isinstance(weak, Tensor) else self.denoiser.embed(y)  # as it is, if it is embedded
        both = self.denoiser(*stack_rows(x_t, t, 2), concatenate_conditions([given, weak]))
        strong, other = split_prediction(both, 2)
        return strong, other

    def predict_weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        return self.denoiser(x_t, t, None if y is None else self.draw_condition(x_t, t, y))

    def draw_condition(self, x_t: Tensor, t: Tensor, y: Condition) -> Condition:
        """A random condition in every row of y that has one."""
        if self.denoiser.conditioning is None and self.denoiser.num_classes:
            return self.draw_class(x_t, t, y)

        def change(vectors: Tensor, mask: Tensor | None, number: int) -> Tensor:
            deviation = measure(vectors, mask)[1]
            drawn = deviation * self.draw(vectors, vectors.shape[1:], t, number)
            return drawn if mask is None else torch.where(mask[:, :, None], drawn, vectors)

        return change_embedded(self.denoiser.embed(y), change)

    def draw_class(self, x_t: Tensor, t: Tensor, y: Condition) -> Condition:
        count = self.denoiser.num_classes
        uniform = torch.special.ndtr(self.draw(x_t.flatten(1)[:, 0], (1,), t, 0)[:, 0].double())
        drawn = (uniform * count).long().clamp(max=count - 1)
        classes = torch.where(has_condition(y), drawn, -1)
        return self.denoiser.embed(classes) if isinstance(y, RowCondition) else classes
