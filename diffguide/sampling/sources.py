"""What a sampling run samples: a checkpoint's model or an oracle, and what the run says and shows of it."""

import copy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ..checkpoints import store as checkpoints
from ..checkpoints.allowlist import construct, validate_config
from ..datasets.base import Dataset, Split
from ..figures.scatter import POINTS, Backdrop, backdrop
from ..files.run_folders import sha256
from ..models.protocols import Denoiser, Energy
from ..oracles import Oracle

__all__ = ["Checkpoint", "Exact", "Source", "at_hand", "in_memory", "training_data"]

GRID = 500  # points of an exact density


class Source:
    """
    Attributes:
        model: on the device, sampled in the precision `dtype`.
        shape: of one sample.
        class_names: one per class.
        file: the checkpoint's, None = there is none.
        oracle: on the CPU, None = there is no truth to compare with.
        note: why its samples mean nothing, None where they may.
    """

    model: Denoiser | Energy
    shape: Sequence[int]
    class_names: Sequence[str]
    dtype = torch.float32
    file: Path | None = None
    oracle: Oracle | None = None
    note: str | None = None

    def identity(self) -> dict[str, Any]:
        """What decides the samples beside guidance, sampler, seeds and labels: entries of the manifest's header."""
        raise NotImplementedError

    def backdrop(self, labels: Sequence[int]) -> Backdrop:
        """What samples with these labels are drawn over, where they are vectors."""
        raise NotImplementedError


class Checkpoint(Source):
    """A model that was trained.

    Arguments:
        file: of the checkpoint.
        weights: ema or objective.
        device: where the model goes.
        trust: names of classes outside diffguide that the file may build.

    Raises:
        CheckpointError: a file that is damaged, or may not be built.
    """

    def __init__(self, file: Path, weights: str, device: torch.device, trust: Sequence[str]):
        loaded = checkpoints.load(file, weights, device, trust)
        if not isinstance(loaded.model, Denoiser | Energy):
            raise checkpoints.CheckpointError(
                f"{file} holds a {type(loaded.model).__name__}, which makes no samples; it steers a generator: "
                "checkpoint=<generator> guidance=classifier guidance.classifier=<this run>"
            )
        self.file, self.weights, self.config, self.model = file, weights, loaded.config, loaded.model
        self.shape, self.class_names = loaded.facts["shape"], loaded.facts["class_names"]
        self.note = checkpoints.explain_untrained(loaded)

    def identity(self) -> dict[str, Any]:
        return {
            "checkpoint": str(self.file),
            "checkpoint_sha256": sha256(self.file),
            "weights": self.weights,
        }

    def backdrop(self, labels: Sequence[int]) -> Backdrop:
        return backdrop(training_data(self.config), self.shape[0])


class Exact(Source):
    """An oracle: float64, or float32 where the device has none.

    Arguments:
        oracle: on the CPU.
        nodes: of the configuration that it was built from: oracle, schedule, and dataset where it is made of data.
        device: where a copy of it goes to be sampled.
    """

    def __init__(self, oracle: Oracle, nodes: dict[str, Any], device: torch.device):
        self.oracle, self.nodes = oracle, nodes
        self.model = oracle if device.type == "cpu" else copy.deepcopy(oracle).to(device)
        self.shape, self.class_names = oracle.shape, oracle.class_names
        self.dtype = torch.float32 if device.type == "mps" else torch.float64

    def identity(self) -> dict[str, Any]:
        return self.nodes

    def backdrop(self, labels: Sequence[int]) -> Backdrop:
        """Exact samples with classes drawn from these labels, and on a line their density."""
        rng = torch.Generator().manual_seed(0)
        y = torch.tensor(labels)[torch.randint(len(labels), (POINTS,), generator=rng)]
        x = self.oracle.sample(POINTS, rng, y)[0]
        curve = self.curve(x, labels) if self.shape[0] == 1 else None
        return backdrop(x, self.shape[0], curve, "exact samples")

    def curve(self, x: Tensor, labels: Sequence[int]) -> numpy.ndarray:
        """(x, p(x)) [G, 2] over the range of samples x [M, 1] and a little more: classes weighted as they occur in labels."""
        low, high = x.min().item(), x.max().item()
        line = torch.linspace(low - 0.1 * (high - low), high + 0.1 * (high - low), GRID, dtype=torch.float64)
        t = torch.tensor(0.0, dtype=torch.float64)
        density = sum(
            count / len(labels) * self.oracle.log_density(line[:, None], t, torch.full((GRID,), label)).exp()
            for label, count in Counter(labels).items()
        )
        return torch.stack([line, density], dim=1).numpy()


def in_memory(data: Dataset) -> dict[str, Tensor]:
    """The training examples as a network sees them, `data` [N, ...] in [-1, 1], and their `labels` [N]; windows central."""
    split = data.train
    x = split.x if isinstance(split, Split) else torch.stack([split[k][0] for k in range(len(split))])
    return {"data": data.view(x), "labels": split.y}


def training_data(config: dict) -> Tensor | None:
    """The vectors that a run with this `dataset` node was trained on, to draw samples over; None where they are not at hand.

    The node comes from a file, so only data sets that are drawn from a seed are built: others read files or download.
    """
    try:
        return (
            construct(config["dataset"], "dataset", ()).train.x
            if validate_config(config["dataset"], "dataset").synthetic
            else None
        )
    except (TypeError, ValueError):  # a node that is not ours (CheckpointError), or does not fit
        return None


def at_hand(node: dict | None) -> Dataset:
    """The data set of a checkpoint's `dataset` node, of ours and from files that lie here: nothing is downloaded.

    Raises:
        ValueError: a node that is not ours, or files that are gone.
    """
    validate_config(node, "dataset")
    return construct(node | ({"download": False} if "download" in node else {}), "dataset", ())
