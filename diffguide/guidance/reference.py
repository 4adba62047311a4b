"""Guidance by examples: towards, or away from, the mean that a few references predict."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..datasets.base import Dataset, fetch_examples
from ..datasets.digits import Digits
from ..models.protocols import Denoiser, Prediction
from ..oracles import Empirical
from ..runtime.ranges import check_whole
from ..schedules import EVERYWHERE
from .contrast import CONSTANT_RAMP, LINEAR_RULE, Contrast
from .potentials.pictures import read_array
from .ramps import Ramp
from .rules import Rule

__all__ = ["DatasetReferences", "FileReferences", "ReferenceGuidance", "References"]


class References:
    """Examples [N, ...], in the units of the data.

    Attributes:
        examples: float64.
    """

    examples: Tensor


class FileReferences(References):
    """Examples from an .npz with one array [N, ...], or one image.

    Arguments:
        path: of the file.

    Raises:
        ValueError: a file that cannot be read, or numbers that are not finite.
    """

    def __init__(self, path: str):
        array = read_array(path, None)
        self.examples = array if path.endswith(".npz") else array[None]
        if self.examples.ndim < 2 or not self.examples.numel() or not bool(self.examples.isfinite().all()):
            raise ValueError(f"{path} must hold finite numbers [N, ...], found {list(self.examples.shape)}")


class DatasetReferences(References):
    """The first training examples of a class.

    Arguments:
        dataset: None = `Digits()`.
        label: the class, from 0; None = any.
        count: number of examples, at least 1.

    Raises:
        ValueError: fewer examples than `count`.
    """

    def __init__(self, dataset: Dataset | None = None, label: int | None = 0, count: int = 16):
        dataset = Digits() if dataset is None else dataset
        split = dataset.train
        rows = torch.arange(len(split.y)) if label is None else (split.y == label).nonzero()[:, 0]
        if len(rows) < check_whole("count", count, 1):
            raise ValueError(f"count must be at most {len(rows)}, the number of examples of class {label}, got {count}")
        self.examples = dataset.preprocess(fetch_examples(split, rows[:count])[0]).double()


class ReferenceGuidance(Contrast):
    """Weak: the exact denoiser of the references, mu = sum_k softmax_k(-|x_t - alpha d_k|^2 / (2 sigma^2)) d_k.

    With scale = 1 - beta, x_0 = (1 - beta) strong.x_0 + beta mu: Curvo, Zhdanov, Eijkelboom, van de Meent, "Follow the Mean:
    Reference-Guided Flow Matching", 2026, arXiv 2605.10302, reference-mean guidance, whose beta_t a ramp gives. The authors'
    code divides |x_t - alpha d_k|^2 by the number of values, which makes the weights more even. It needs no condition; a
    scale above 1 leads away from the references.

    Arguments:
        denoiser: any, guided or not.
        references: examples in the data's units and shape; None = `DatasetReferences()`.
        scale: 1 = off, 0 = the references alone, between them 1 - beta of the paper.
        interval, rule, ramp: as in `Contrast`; the paper guides at all levels, lucidrains' code above sigma / alpha 0.18.

    Raises:
        ValueError: references of another shape than the model's data.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        references: References | None = None,
        scale: float = 0.9,
        interval: Sequence[float] = EVERYWHERE,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
    ):
        super().__init__(denoiser, scale, interval, rule, ramp)
        examples = (DatasetReferences() if references is None else references).examples
        if denoiser.shape is not None and list(examples.shape[1:]) != list(denoiser.shape):
            raise ValueError(
                f"references must have the shape of the data {list(denoiser.shape)}, got {list(examples.shape[1:])}"
            )
        self.law = Empirical(examples, torch.zeros(len(examples), dtype=torch.long), denoiser.schedule)

    def predict_both(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        return self.denoiser(x_t, t, y), self.predict_weak(x_t, t, y)

    def predict_weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        if self.law.device != x_t.device:
            self.law.to(x_t.device)
        return Prediction(*(field.to(x_t) for field in self.law(x_t, t, None)))
