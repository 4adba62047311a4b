"""The six laws on which guidance is ranked, each with one class that is sampled."""

from collections.abc import Callable
from pathlib import Path

import torch
from figure_files import build_oracle
from torch import Tensor

from diffguide.backbones.conditions import Condition
from diffguide.config.build import config_dir
from diffguide.datasets import Dataset, Digits
from diffguide.datasets.base import Split
from diffguide.guidance.potentials.base import Potential
from diffguide.guidance.reference import References
from diffguide.models.protocols import Denoiser, DenoiserWrapper, Prediction
from diffguide.oracles import Empirical, GaussianMixture, Oracle
from diffguide.schedules import EDM

__all__ = [
    "LAWS",
    "CleanClassifier",
    "Examples",
    "Law",
    "LawSamples",
    "WithoutCondition",
    "blur",
    "list_options",
    "make_law",
]

RARE = 1e-9  # weight of the class whose law without condition is then that of the other class alone
PER_BRANCH = 8  # Gaussians of a branch of the tree
EXAMPLES = 200  # of each class, for methods that need training examples


def list_options(group: str) -> list[str]:
    """The options of a group of configs/."""
    return sorted(path.stem for path in (Path(config_dir()) / group).glob("*.yaml"))


class Law:
    """An oracle, the class that is sampled, and its modes.

    Arguments:
        name: in tables.
        oracle: with classes.
        label: the class that is sampled.
        unwanted: another class, for methods that lead away from one.
        group: components of a mode, which follow each other.
    """

    def __init__(self, name: str, oracle: Oracle, label: int = 0, unwanted: int = 1, group: int = 1):
        self.name, self.oracle, self.label, self.unwanted, self.group = name, oracle, label, unwanted, group
        own = oracle.log_weights.exp()[oracle.labels == label]
        self.mode_weights = (own / own.sum()).reshape(-1, group).sum(1)

    def of_class(self, n: int) -> Tensor:
        return torch.full((n,), self.label)

    def sample(self, n: int, seed: int) -> Tensor:
        """n exact samples of the class, float64 [n, D]."""
        return self.oracle.sample(n, torch.Generator().manual_seed(seed), self.of_class(n))[0].flatten(1)

    def find_modes(self, x: Tensor) -> Tensor:
        """The most probable mode of the class for each point [n, D], [n]."""
        members = self.oracle.labels == self.label
        if isinstance(self.oracle, Empirical):
            return torch.cdist(x, self.oracle.examples(members)).argmin(1)
        assert isinstance(self.oracle, GaussianMixture)
        scales = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        parts = []
        for part in x.split(500):
            log_joint = self.oracle.log_joint(part, *scales, self.of_class(len(part)))[:, members]
            parts.append(log_joint.reshape(len(part), -1, self.group).logsumexp(2).argmax(1))
        return torch.cat(parts)


class WithoutCondition(DenoiserWrapper):
    """The unconditional part of a law, for guidance by a classifier or a potential; it takes classes and ignores them."""

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        return self.denoiser(x_t, t, None)


class CleanClassifier(Potential):
    """log p(y | x) of clean data: what a perfect classifier of clean examples says."""

    of_class = True

    def __init__(self, oracle: Oracle):
        self.oracle = oracle

    def __call__(self, x: Tensor, y: Condition | None) -> Tensor:
        assert isinstance(y, Tensor)
        return self.oracle.log_prob(x, None).gather(1, y.clamp(min=0)[:, None])[:, 0]


class Examples(References):
    """Exact samples of the class as references."""

    def __init__(self, law: Law, count: int):
        self.examples = law.sample(count, seed=7).reshape(count, *law.oracle.shape)


class LawSamples(Dataset):
    """Exact samples of every class of a law as a data set."""

    def __init__(self, oracle: Oracle):
        y = torch.arange(oracle.num_classes).repeat(EXAMPLES)
        split = Split(oracle.sample(len(y), torch.Generator().manual_seed(8), y)[0], y)
        super().__init__(split, split, split, class_names=oracle.class_names)


def blur(oracle: Oracle, width: float) -> Denoiser:
    """The law convolved with N(0, width^2): what a worse model knows of it, for autoguidance."""
    if isinstance(oracle, Empirical):
        width = (oracle.width**2 + width**2) ** 0.5
        return Empirical(oracle.data.reshape(-1, *oracle.shape), oracle.labels, oracle.schedule, width)
    assert isinstance(oracle, GaussianMixture)
    noise = width**2 * torch.eye(oracle.means.shape[1], dtype=torch.float64)
    covariances = oracle.component_covariances(torch.arange(len(oracle.means))) + noise
    weights, labels = oracle.log_weights.exp().tolist(), oracle.labels.tolist()
    return GaussianMixture(weights, oracle.means.tolist(), covariances.tolist(), labels, oracle.schedule)


def overlapping() -> Oracle:
    """Four classes of three Gaussians each in six dimensions, which overlap."""
    arguments = {"dimensions": 6, "classes": 4, "components": 3, "spread": 0.5, "std": 0.4}
    return build_oracle("oracle=highdim", *(f"oracle.{key}={value}" for key, value in arguments.items()))


LAWS: dict[str, Callable[[], Law]] = {
    "two Gaussians": lambda: Law("two Gaussians", build_oracle("oracle=pair1d", f"oracle.weights=[{RARE},1]")),
    "three Gaussians": lambda: Law("three Gaussians", build_oracle("oracle=cfg_figure")),
    "anisotropic": lambda: Law("anisotropic", build_oracle("oracle=anisotropic")),
    "tree": lambda: Law("tree", build_oracle("oracle=autoguidance_tree", "oracle.depth=5"), group=PER_BRANCH),
    "6-D overlapping": lambda: Law("6-D overlapping", overlapping()),
    "digits": lambda: Law("digits", build_digits(), label=8, unwanted=1),
}


def build_digits(width: float = 0.3) -> Oracle:
    """The 1000 training digits, each a Gaussian so wide that the law is smooth."""
    split = Digits().train
    return Empirical(split.x, split.y, EDM(), width)


def make_law(name: str) -> Law:
    return LAWS[name]()
