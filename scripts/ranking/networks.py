"""Guidance on trained networks: quality of samples against the scale, and the area under each method's trade-off curve."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy
import torch
from figure_files import load_or_make, load_or_train
from omegaconf import OmegaConf
from torch import Tensor

import diffguide
from diffguide.checkpoints import store as checkpoints
from diffguide.config.build import build
from diffguide.datasets import MNIST, Dataset, Digits
from diffguide.datasets.base import fetch_examples
from diffguide.evaluation.quality.features import Features
from diffguide.evaluation.quality.frechet import Moments, frechet_distance
from diffguide.evaluation.quality.label_agreement import LabelClassifier
from diffguide.evaluation.quality.local import Local
from diffguide.evaluation.quality.precision_recall import precision_recall
from diffguide.figures.image_grids import quantize
from diffguide.guidance import Autoguidance
from diffguide.models.protocols import Denoiser
from diffguide.samplers import FKC, DPMpp2M, DPMpp2MSDE, generate

from .methods import read_option
from .tables import write_csv

__all__ = ["NETWORKS", "NETWORK_METHODS", "Judge", "compare_networks", "covered_area", "recall_at"]

STEPS = 12  # with two evaluations a step
FINE_STEPS, PARTICLES = 40, 4  # where the law of the SDE itself is meant, at many times the cost
COMPARED = 1000  # examples of the training split
AGREEMENTS = (0.995, 1.0)  # at which recall is compared


class NetworkMethod(NamedTuple):
    """An option at some scales.

    Attributes:
        settings: other keys of the option.
        evaluations: a step.
        sampler: "ode", "sde", "fine sde", "fkc"; the last two take FINE_STEPS.
    """

    option: str
    scales: Sequence[float] = (1.25, 1.5, 2.0, 3.0)
    settings: Mapping[str, Any] = {}
    evaluations: int = 2
    sampler: str = "ode"


NETWORK_METHODS: dict[str, NetworkMethod] = {
    "none": NetworkMethod("none", [1.0], evaluations=1),
    "none, fine SDE": NetworkMethod("none", [1.0], evaluations=1, sampler="fine sde"),
    "cfg": NetworkMethod("cfg"),
    "cfg, fkc": NetworkMethod("cfg", (1.25, 2.0), sampler="fkc"),  # ten times as dear as the others
    "cfg, SDE": NetworkMethod("cfg", sampler="sde"),
    "interval": NetworkMethod("cfg", settings={"interval": [0.3, 3.0]}),
    "apg": NetworkMethod("apg", settings={"rule.norm_threshold": 2.5}),
    "cfgpp": NetworkMethod("cfgpp", (0.1, 0.2, 0.3, 0.5)),
    "cfg_rescale": NetworkMethod("cfg_rescale"),
    "mambo_g": NetworkMethod("mambo_g"),
    "pmc_cfg": NetworkMethod("pmc_cfg"),
    "icg": NetworkMethod("icg"),
    "autoguidance": NetworkMethod("autoguidance"),
    "tsr": NetworkMethod("tsr", settings={"std": 0.5}, evaluations=1),
}


class Network(NamedTuple):
    """Training arguments, a data set, and its local features."""

    overrides: Sequence[str]
    feature_steps: int


NETWORKS: dict[str, Network] = {
    "digits": Network((), 300),
    "mnist": Network(("experiment=mnist_laptop", "training.images=28000", "training.checkpoint_images=14000"), 300),
}


def load_data(kind: str, folder: Path, source: Path | None) -> tuple[Dataset, list[str]]:
    """The data set, and the arguments with which a training reads it."""
    if kind == "digits":
        return Digits(), []
    if source is not None:
        write_mnist(folder / "data", source)
    return MNIST(str(folder / "data"), download=False, validation=1000), [
        f"dataset.path={folder / 'data'}",
        "dataset.download=false",
    ]


def write_mnist(folder: Path, source: Path) -> None:
    """Writes images [N, 28, 28] and labels of an .npz as the files of MNIST, a fifth of them as the test split."""
    with numpy.load(source) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    cut = len(labels) - len(labels) // 5
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True, exist_ok=True)
    for split, rows in {"train": slice(0, cut), "t10k": slice(cut, None)}.items():
        for name, array in {"images-idx3": images[rows], "labels-idx1": labels[rows]}.items():
            head = numpy.array([0x800 + array.ndim, *array.shape], ">i4").tobytes()
            (raw / f"{split}-{name}-ubyte").write_bytes(head + array.astype(numpy.uint8).tobytes())


class Judge:
    """Figures of pictures.

    Arguments:
        data: whose validation split precision and recall are compared with, on pixels, as many as there are samples; FD is
            compared with its training split.
        features: of FD.
    """

    def __init__(self, data: Dataset, features: Features):
        self.features = features
        features.prepare(data, torch.device("cpu"), lambda *_: None)
        x, y = fetch_examples(data.train, torch.arange(min(COMPARED, len(data.train.y))))
        train = data.preprocess(x)
        self.classifier = LabelClassifier(train.flatten(1), y)
        held_out = fetch_examples(data.validation, torch.arange(min(COMPARED, len(data.validation.y))))[0]
        self.real = data.preprocess(held_out).flatten(1)
        self.moments = self.compute_moments(quantize(train))

    def compute_moments(self, images: Tensor) -> Moments:
        features = self.features(images).features
        return Moments(features.shape[1]).add(features)

    def __call__(self, images: Tensor, labels: Sequence[int]) -> dict[str, float]:
        """FD, precision, recall, agreed labels of bytes [N, C, H, W]."""
        x = images.flatten(1).double() / 127.5 - 1
        shares = precision_recall(self.real[: len(x)], x, k=3)._asdict()
        agreed = self.classifier.accuracy(x, labels)
        return {"agreed": agreed, "fd": frechet_distance(self.compute_moments(images), self.moments)} | shares


def guide_network(name: str, model: Denoiser, weak: Denoiser, scale: float) -> Denoiser:
    """The guided network; `weak` is an earlier checkpoint."""
    method = NETWORK_METHODS[name]
    if method.option == "autoguidance":
        return Autoguidance(model, weak, scale)
    node = OmegaConf.create(deepcopy(read_option(method.option)))
    for key, value in {"scale": scale, **method.settings}.items():
        if key != "scale" or "scale" in node:
            OmegaConf.update(node, key, value)
    return build(node, "guidance", model)


def draw(name: str, guided: Denoiser, n: int) -> Tensor:
    """Bytes [n, C, H, W] of the classes in turn."""
    method = NETWORK_METHODS[name]
    steps = 2 * STEPS // method.evaluations
    fine = DPMpp2MSDE(FINE_STEPS)
    sampler = {"ode": DPMpp2M(steps), "sde": DPMpp2MSDE(steps), "fine sde": fine, "fkc": FKC(fine, PARTICLES)}
    labels = [index % guided.num_classes for index in range(n)]
    assert guided.shape is not None
    parts = generate(guided, sampler[method.sampler], range(n), labels, guided.shape, batch_size=50)
    return quantize(torch.cat(list(parts)))


def covered_area(points: Sequence[tuple[float, float]]) -> float:
    """The area of the points (x, y) that are at most some point of a curve in both coordinates; 1 is ideal."""
    area, height, left = 0.0, 0.0, 0.0
    ordered = sorted(points)
    for index, (x, _) in enumerate(ordered):
        height = max(y for _, y in ordered[index:])
        area, left = area + (x - left) * height, x
    return area


def recall_at(runs: Sequence[Mapping[str, float]], agreement: float) -> float:
    """Recall where the share of agreed labels first reaches a value, linear between scales; nan if it never does."""
    for before, after in zip([None, *runs], runs):
        if after["agreed"] >= agreement:
            if before is None or before["agreed"] >= agreement:
                return after["recall"]
            share = (agreement - before["agreed"]) / (after["agreed"] - before["agreed"])
            return before["recall"] + share * (after["recall"] - before["recall"])
    return float("nan")


def run_seed(kind: str, folder: Path, judge: Judge, arguments: Sequence[str], seed: int, chosen: Any) -> Iterator[dict]:
    """The runs of one trained network: a row per method and scale."""
    run = f"{kind}_{seed}"
    overrides = [*NETWORKS[kind].overrides, *arguments, f"seed={seed}"]
    model = load_or_train(folder, run, *overrides)
    newest = max((folder / "outputs/train" / run).glob("v*"))
    weak = diffguide.load(checkpoints.list_checkpoints(newest / "checkpoints")[0])
    for name in chosen.methods or NETWORK_METHODS:
        for scale in NETWORK_METHODS[name].scales:
            guided = guide_network(name, model, weak, scale)
            make = partial(draw, name, guided, chosen.n)
            images = load_or_make(folder / f"samples/{run}/{name}_{scale:g}_{chosen.n}.npy", make)
            labels = [index % guided.num_classes for index in range(chosen.n)]
            row = {"data": kind, "seed": seed, "method": name, "scale": scale} | judge(images, labels)
            print(
                " ".join(f"{key}={value:.3g}" if isinstance(value, float) else str(value) for key, value in row.items())
            )
            yield row


def summarize_networks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per method, means over seeds: areas under its curves (scale 1 included), recall at equal agreement, best FD."""
    seeds = sorted({row["seed"] for row in rows})
    plain = {row["seed"]: row for row in rows if row["method"] == "none"}
    summary = []
    for name in dict.fromkeys(row["method"] for row in rows):
        curves = []
        for seed in seeds:
            own = [row for row in rows if row["method"] == name and row["seed"] == seed]
            start = [plain[seed]] if seed in plain and not name.startswith("none") and name != "cfgpp" else []
            curves.append(start + own)
        areas = {
            f"area of {other} over recall": mean(
                covered_area([(run["recall"], run[other]) for run in c]) for c in curves
            )
            for other in ("precision", "agreed")
        }
        recalls = {f"recall at {level:g} agreed": mean(recall_at(c, level) for c in curves) for level in AGREEMENTS}
        best = {"least fd": mean(min(run["fd"] for run in c) for c in curves)}
        summary.append({"method": name, "seeds": len(seeds)} | areas | recalls | best)
    return summary


def compare_networks(chosen: argparse.Namespace) -> None:
    """Trains what is missing, and writes networks_<data>.csv and networks_<data>_summary.csv."""
    folder = chosen.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    data, arguments = load_data(chosen.networks, folder, chosen.data)
    judge = Judge(data, Local(NETWORKS[chosen.networks].feature_steps, cache=str(folder / "features")))
    rows = []
    for seed in chosen.seeds:
        rows += list(run_seed(chosen.networks, folder, judge, arguments, seed, chosen))
    write_csv(chosen.output / f"networks_{chosen.networks}.csv", rows)
    summary = summarize_networks(rows)
    write_csv(chosen.output / f"networks_{chosen.networks}_summary.csv", summary)
    for row in summary:
        print(" | ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
