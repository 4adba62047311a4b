"""ReCFG with its table: the weak noise times what training examples say of each value at each noise level."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..class_names import ConditionValue
from ..datasets.base import Dataset
from ..datasets.digits import Digits
from ..models.protocols import Denoiser, Prediction
from ..runtime.ranges import check_whole
from ..schedules import EVERYWHERE, broadcast_rows
from .contrast import CONSTANT_RAMP, LINEAR_RULE, ClassifierFree
from .ramps import Ramp
from .reference import DatasetReferences
from .rules import Rule, replace_eps

__all__ = ["RectifiedTable"]


class RectifiedTable(ClassifierFree):
    """Weak: the network without its condition, its eps times r = E[c u] / E[u^2] of each value, level and class.

    c and u are the noise predictions with and without the class, and E is over noised training examples of the class. Xia,
    Xue, Shen, Yi, Gong, Liu, "Rectified Diffusion Guidance for Conditional Generation", CVPR 2025, arXiv 2410.18737, as their
    `calculate_lookup.py` computes it. The paper's text has E[c] / E[u]; for an exact model E[c] is 0 at every level. A level's
    table is computed where it is first evaluated, with `count` examples of every class. Rows without class have r = 1.

    Arguments:
        denoiser: of classes, trained with the null condition.
        scale: 1 = off (conditional), above 1 = guided.
        interval, rule, ramp: as in `Contrast`.
        dataset: whose training examples are noised, with the model's classes; None = `Digits()`.
        count: examples of a class, at least 1; 500 in the paper.
        seed: of their noise, at least 0.

    Raises:
        ValueError: a denoiser whose condition is no class, other classes than the data's, too few examples, or a schedule of
            zero terminal SNR, where eps does not determine x_0.
    """

    option = "recfg_table"
    has_law = False

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 2.0,
        interval: Sequence[float] = EVERYWHERE,
        dataset: Dataset | None = None,
        count: int = 64,
        seed: int = 0,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
        negative: ConditionValue = None,
    ):
        super().__init__(denoiser, scale, interval, rule, ramp, negative)
        dataset = Digits() if dataset is None else dataset
        if denoiser.num_classes != len(dataset.class_names):
            raise ValueError(
                f"guidance=recfg_table needs a model of the dataset's {len(dataset.class_names)} classes, this one has "
                f"{denoiser.num_classes}: set dataset@guidance.dataset"
            )
        if denoiser.stateful:
            raise ValueError(
                "guidance=recfg_table evaluates other examples beside the samples: list it before guidance with memory"
            )
        if denoiser.schedule.zero_terminal_snr:
            raise ValueError("guidance=recfg_table scales eps, which does not determine x_0 at zero terminal SNR")
        classes = range(len(dataset.class_names))
        self.examples = torch.stack([DatasetReferences(dataset, label, count).examples for label in classes])
        rng = torch.Generator().manual_seed(check_whole("seed", seed, 0))
        self.noise = torch.randn(self.examples.shape[1:], generator=rng, dtype=torch.float64)
        self.ratios: dict[float, Tensor] = {}  # of levels that were seen, shared by all runs

    def predict_both(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        strong, weak = super().predict_both(x_t, t, y)
        return strong, self.rectify(weak, t, y)

    def predict_weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        return self.rectify(super().predict_weak(x_t, t, y), t, y)

    def rectify(self, weak: Prediction, t: Tensor, y: Condition | None) -> Prediction:
        """The weak prediction with its eps times the ratios of each row's class and level."""
        if y is None:
            return weak
        if not isinstance(y, Tensor):
            raise ValueError(f"guidance=recfg_table needs class indices, got {type(y).__name__}")
        if t.ndim:
            levels = torch.stack([self.ratio(time, weak.eps)[label] for time, label in zip(t, y)])
        else:
            levels = self.ratio(t, weak.eps)[y.cpu()]
        labelled = broadcast_rows(y >= 0, weak.eps.ndim)
        ratio = torch.where(labelled, levels.to(weak.eps), 1)
        return replace_eps(weak, ratio * weak.eps, t, self.schedule)

    def ratio(self, t: Tensor, like: Tensor) -> Tensor:
        """r at a time, 0-d: [classes, ...]; computed once, in the precision of `like`."""
        time = float(t)
        if time not in self.ratios:
            self.ratios[time] = torch.stack(
                [self.compute_ratio(t.cpu(), label, like) for label in range(len(self.examples))]
            )
        return self.ratios[time]

    def compute_ratio(self, t: Tensor, label: int, like: Tensor) -> Tensor:
        """r of one class at a time, in the shape of an example, float64 on the CPU."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        x_t = (alpha * self.examples[label] + sigma * self.noise).to(like)
        y = torch.full((len(x_t),), label, device=x_t.device)
        c, u = (side.eps.cpu().double() for side in super().predict_both(x_t, t, y))
        square = u.square().mean(0)
        return torch.where(square > 0, (c * u).mean(0) / square, 1)
