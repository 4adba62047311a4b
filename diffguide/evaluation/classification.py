"""How well a classifier of noisy data knows the class, level by level."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..batches import fetch
from ..datasets import Dataset
from ..denoisers import Classifier
from ..runs import write_atomically

__all__ = ["accuracies", "write_accuracy"]

MOST, AT_ONCE = 1000, 250  # examples of a picture, of a batch
LEVELS = (0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)  # noise levels sigma / alpha


@torch.no_grad()
def accuracies(classifier: Classifier, x_0: Tensor, y: Tensor, noise_levels: Sequence[float], seed: int) -> list[float]:
    """The share of examples whose class the classifier names at each noise level, one noise per example, the same at all.

    Arguments:
        x_0: [N, ...] in [-1, 1], on the classifier's device.
        y: classes [N].
        noise_levels: sigma / alpha; those beyond the ends of its schedule are moved there.
    """
    schedule, found = classifier.schedule, []
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed)).to(x_0)
    for level in noise_levels:
        log_snr = -2 * torch.tensor(level, dtype=torch.float64).log()
        log_snr = log_snr.clamp(schedule.log_snr_min, schedule.log_snr_max)
        t, (alpha, sigma) = schedule.t_of(log_snr).clamp(0, 1), schedule.scales(log_snr)
        parts = (float(alpha) * x_0 + float(sigma) * eps).split(AT_ONCE)
        answers = torch.cat([classifier.log_prob(x_t, t).argmax(1) for x_t in parts])
        found.append(float((answers == y).double().mean()))
    return found


def write_accuracy(path: Path, classifier: Classifier, data: Dataset, seed: int, device: torch.device) -> None:
    """Writes a PNG: accuracy on the validation split, of 1000 examples at most, against the noise level.

    Raises:
        WriteError: the disk is full, the folder is gone, ...
    """
    from matplotlib.figure import Figure

    x, y = fetch(data.validation, torch.arange(min(len(data.validation.y), MOST)))
    found = accuracies(classifier, data.view(x).to(device), y.to(device), LEVELS, seed)
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.semilogx(LEVELS, found, marker="o")
    axis.axhline(1 / classifier.num_classes, color="0.6", linestyle="--", label="by chance")
    axis.set(xlabel="noise level sigma / alpha", ylabel="held-out accuracy", ylim=(0, 1))
    axis.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=100))
