"""The learning rate over a run, and how it continues when the run is extended.

After n images of a run of length L it is peak w(n) s(n), with the warm-up w(n) = min(1, (n + batch) / warmup_images) and
the cosine s(n) = (1 + cos(pi n / L)) / 2. If the length changes to L after b images, `training.extend` selects:

    as_if_planned   s(n) = (1 + cos(pi n / L)) / 2                   as in a run with the length L from the start
    constant        s(n) = s_b                                       until the end
    decay_again     s(n) = s_b (1 + cos(pi (n - b) / (L - b))) / 2   from s_b down to 0 over the added images

s_b = max(extend_rate, s(b) of the former plan), so that the rate of a run that was stopped early does not drop. The cosines
are those of SGDR (Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..checkpoints.extension import EXTEND, Extension

__all__ = ["LearningRatePlan", "resume_plan"]


class LearningRatePlan(NamedTuple):
    """The learning rate of every step of a run.

    Arguments:
        peak: learning rate after warm-up.
        warmup_images: linear rise at the start.
        batch_size: images per step.
        length: of the run, L, images.
        extension: of a run whose length was changed, None = unchanged.
    """

    peak: float
    warmup_images: int
    batch_size: int
    length: int
    extension: Extension | None = None

    def factor(self, images: int) -> float:
        """s(images), in units of the peak."""
        first, start = 0, 1.0
        if self.extension is not None:
            first, start = self.extension.images, self.extension.start
            if self.extension.extend == "constant":
                return start
        return start * (0.5 + 0.5 * math.cos(math.pi * min((images - first) / (self.length - first), 1)))

    def rate_at(self, images: int) -> float:
        """The learning rate of the step after `images` images."""
        return self.peak * min(1.0, (images + self.batch_size) / max(self.warmup_images, 1)) * self.factor(images)

    def extend_to(self, images: int, length: int, extend: str, extend_rate: float) -> "LearningRatePlan":
        """The plan of a run whose length changes after `images` images."""
        start = max(extend_rate, self.factor(images))
        extension = None if extend == "as_if_planned" else Extension(images, extend, start)
        return self._replace(length=length, extension=extension)


def resume_plan(
    current: LearningRatePlan, facts: Mapping[str, Any], extend: str, extend_rate: float
) -> tuple[LearningRatePlan, dict[str, Any], str]:
    """The plan of a run resumed from a checkpoint; if its length changed, a note for metrics.jsonl and a line for the log.

    Arguments:
        current: the plan of the resumed command, without an extension.
        facts: of the checkpoint; its configuration has the former length.
        extend, extend_rate: of `Training`.
    """
    images, before = facts["images"], facts["config"]["training"]
    former = current._replace(length=before["images"], extension=Extension.read(facts))
    if former.length == current.length:
        return former, {}, ""
    plan = former.extend_to(images, current.length, extend, extend_rate)
    former = former._replace(peak=before["learning_rate"], warmup_images=before["warmup_images"])
    rates = [former.rate_at(images), plan.rate_at(images)]
    others = ", ".join(name for name in EXTEND if name != extend)
    line = (
        f"training.images changes from {former.length} to {plan.length}: after {images} images the learning rate goes from "
        f"{rates[0]:.3g} to {rates[1]:.3g}, and ends at {plan.rate_at(plan.length):.3g} "
        f"(training.extend={extend}; other values: {others})"
    )
    return plan, {"extend": extend, "learning_rates": rates}, line
