"""The models that a sampling run can sample: that of a checkpoint, or an oracle."""

import copy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ..checkpoints import store as checkpoints
from ..checkpoints.adapter_files import identify_adapter
from ..checkpoints.allowlist import construct, validate_config
from ..checkpoints.diffusers_folder import is_weights
from ..checkpoints.explanations import explain_origin, explain_untrained
from ..checkpoints.first_stages import decode_only, open_latents
from ..checkpoints.text_pipelines import describe_autoencoder
from ..conditions.frozen_text import FrozenText
from ..datasets.base import Dataset, fetch_examples
from ..figures.scatter import MAX_DATA_POINTS, ScatterBackground, build_background
from ..files.weights import hash_weights
from ..first_stages import FirstStage
from ..first_stages.sources import FirstStageSource
from ..first_stages.space import LatentFacts
from ..models.protocols import Denoiser, Energy
from ..oracles import Oracle
from .stored import StoredForm

__all__ = [
    "CheckpointSource",
    "OracleSource",
    "SampleSource",
    "load_local_dataset",
    "training_data",
    "training_tensors",
]

DENSITY_POINTS = 500  # points of the curve of an exact density


class SampleSource:
    """Base of the sources of samples.

    Attributes:
        model: on the device, sampled in the precision `dtype`.
        shape: of one sample.
        class_names: one per class.
        file: of the checkpoint, None = no checkpoint.
        oracle: on the CPU, None = the distribution is unknown.
        note: a warning that the model is untrained, None = it is trained.
    """

    model: Denoiser | Energy
    shape: Sequence[int]
    class_names: Sequence[str]
    dtype = torch.float32
    file: Path | None = None
    oracle: Oracle | None = None
    note: str | None = None

    @property
    def stored(self) -> StoredForm:
        """What a sample becomes on the disk."""
        return StoredForm.of(self.shape)

    def identity(self) -> dict[str, Any]:
        """Entries of the manifest's header that identify the model."""
        raise NotImplementedError

    def parts(self) -> dict[str, Any]:
        """Those of the entries that identify what the samples are made by beside the network: text encoders, a first stage."""
        return {}

    def background(self, labels: Sequence[int]) -> ScatterBackground:
        """The background of a scatter plot of samples with these labels."""
        raise NotImplementedError


class CheckpointSource(SampleSource):
    """A trained model.

    Arguments:
        file: of the checkpoint.
        weights: ema or objective.
        device: of the model.
        trust: names of classes outside diffguide that the file may use.
        null_class, adapter, adapter_scale: see `checkpoints.store.load`.
        latents: whether latents are kept, rather than decoded by the first stage of the model.
        first_stage: of a model of latents that does not know its own; None = that of its pipeline, if it is of diffusers.

    Attributes:
        in_latents: whether its examples are latents of a first stage.

    Raises:
        CheckpointError: the file is damaged, uses a class that is not trusted, or has no generator; a first stage that is
            missing, was another one in training, or has no effect.
    """

    file: Path

    def __init__(
        self,
        file: Path,
        weights: str,
        device: torch.device,
        trust: Sequence[str],
        null_class: int | None = None,
        adapter: str | None = None,
        adapter_scale: float = 1.0,
        latents: bool = False,
        first_stage: FirstStageSource | None = None,
    ):
        loaded = checkpoints.load(file, weights, device, trust, null_class, adapter, adapter_scale)
        if isinstance(loaded.model, FirstStage):
            raise checkpoints.CheckpointError(
                f"{file} holds an autoencoder, which makes no pictures of its own: train a model in its latents with "
                f"diffguide-train first_stage=small_kl first_stage.path={file.parent.parent}"
            )
        if not isinstance(loaded.model, Denoiser | Energy):
            raise checkpoints.CheckpointError(
                f"{file} holds a {type(loaded.model).__name__}, which cannot be sampled; to guide a generator by it use "
                "checkpoint=<generator> guidance=classifier guidance.classifier=<this run>"
            )
        self.file, self.weights, self.config, self.model = file, weights, loaded.config, loaded.model
        self.shape, self.class_names = loaded.facts["shape"], loaded.facts["class_names"]
        self.adapter = identify_adapter(adapter, adapter_scale)
        self.note = explain_untrained(loaded) or explain_origin(loaded)
        beside = describe_autoencoder(file.parent.parent) if is_weights(file) else None
        self.in_latents = any(stage is not None for stage in (loaded.facts.get("first_stage"), first_stage, beside))
        self.form = find_form(loaded, file, trust, latents, first_stage, beside, device)

    @property
    def stored(self) -> StoredForm:
        return self.form

    def identity(self) -> dict[str, Any]:
        file = {"checkpoint": str(self.file), "checkpoint_sha256": hash_weights(self.file)}
        return file | {"weights": self.weights} | self.adapter | self.parts()

    def parts(self) -> dict[str, Any]:
        stage = self.form.first_stage_sha256
        found = {"text_encoders_sha256": hash_encoders(self.model), "first_stage_sha256": stage}
        return {key: value for key, value in found.items() if value}

    def background(self, labels: Sequence[int]) -> ScatterBackground:
        return build_background(training_data(self.config), self.shape[0])


def hash_encoders(model: Denoiser | Energy) -> dict[str, str]:
    """The hashes of the frozen text encoders of a model, which were computed when it was opened or trained, by their names."""
    conditioning = getattr(model, "conditioning", None)
    parts = [] if conditioning is None else conditioning.named_modules()
    return {
        name.rpartition(".")[2] or part.encoder.kind: part.sha256
        for name, part in parts
        if isinstance(part, FrozenText)
    }


def find_form(
    loaded: checkpoints.Loaded,
    file: Path,
    trust: Sequence[str],
    latents: bool,
    first_stage: FirstStageSource | None,
    beside: FirstStageSource | None,
    device: torch.device,
) -> StoredForm:
    """How the samples of a checkpoint are stored, see `CheckpointSource`; `beside` is the first stage of a pipeline."""
    known, shape = loaded.facts.get("first_stage"), loaded.facts["shape"]
    if known is not None and first_stage is not None:
        raise checkpoints.CheckpointError(f"first_stage has no effect: {file} was trained with its own; remove it")
    if latents and first_stage is None and beside is not None:
        return StoredForm.of(shape)
    if latents and (known is None or first_stage is not None):
        raise checkpoints.CheckpointError(
            "latents=true has no effect: "
            + ("remove first_stage" if first_stage else f"{file} has no first stage, remove it")
        )
    if latents:
        return StoredForm.latents(shape, LatentFacts.read(known))
    space = open_latents(loaded.config, loaded.facts, file, trust)
    if (given := first_stage or beside) is not None:
        space = decode_only(given, shape, trust)
    return StoredForm.of(shape) if space is None else StoredForm.decoded(space.to(device))


class OracleSource(SampleSource):
    """An oracle, in float64; in float32 on devices without float64.

    Arguments:
        oracle: on the CPU.
        nodes: its nodes of the configuration: oracle, schedule, and dataset if it is built from data.
        device: of the copy that is sampled.
    """

    oracle: Oracle

    def __init__(self, oracle: Oracle, nodes: dict[str, Any], device: torch.device):
        self.oracle, self.nodes = oracle, nodes
        self.model = oracle if device.type == "cpu" else copy.deepcopy(oracle).to(device)
        assert oracle.shape is not None  # every oracle states it
        self.shape, self.class_names = oracle.shape, oracle.class_names
        self.dtype = torch.float32 if device.type == "mps" else torch.float64

    def identity(self) -> dict[str, Any]:
        return self.nodes

    def background(self, labels: Sequence[int]) -> ScatterBackground:
        """Exact samples with classes drawn from these labels; in one dimension also their density."""
        rng = torch.Generator().manual_seed(0)
        y = torch.tensor(labels)[torch.randint(len(labels), (MAX_DATA_POINTS,), generator=rng)]
        x = self.oracle.sample(MAX_DATA_POINTS, rng, y)[0]
        curve = self.density_curve(x, labels) if self.shape[0] == 1 else None
        return build_background(x, self.shape[0], curve, "exact samples")

    def density_curve(self, x: Tensor, labels: Sequence[int]) -> numpy.ndarray:
        """(x, p(x)) [G, 2] over the range of samples x [M, 1] and 10 % more, with classes as frequent as in labels."""
        low, high = x.min().item(), x.max().item()
        line = torch.linspace(low - 0.1 * (high - low), high + 0.1 * (high - low), DENSITY_POINTS, dtype=torch.float64)
        t = torch.tensor(0.0, dtype=torch.float64)
        density = torch.zeros_like(line)
        for label, count in Counter(labels).items():
            y = torch.full((DENSITY_POINTS,), label)
            density += count / len(labels) * self.oracle.log_density(line[:, None], t, y).exp()
        return torch.stack([line, density], dim=1).numpy()


def training_tensors(data: Dataset) -> dict[str, Tensor]:
    """The preprocessed training examples, `data` [N, ...] in [-1, 1], and their `labels` [N]."""
    x, y = fetch_examples(data.train, torch.arange(len(data.train.y)))
    return {"data": data.preprocess(x), "labels": y}


def training_data(config: dict) -> Tensor | None:
    """The training vectors of a run with this `dataset` node, for a scatter plot; None = they are not available.

    The node is from a file, so only synthetic data sets are built: others would read files or download.
    """
    try:
        if not validate_config(config["dataset"], "dataset").synthetic:
            return None
        return construct(config["dataset"], "dataset", ()).train.x
    except (TypeError, ValueError):  # a class outside diffguide (CheckpointError), or arguments that do not fit
        return None


def load_local_dataset(node: dict[str, Any]) -> Dataset:
    """Builds a `dataset` node of a checkpoint from local files; ValueError for a class outside diffguide or missing files."""
    validate_config(node, "dataset")
    return construct(node | ({"download": False} if "download" in node else {}), "dataset", ())
