"""Networks and objectives of diffguide as its commands compose them."""

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from diffguide.config.build import config_dir, fill_label_dropout
from diffguide.datasets import Dataset, Split
from diffguide.objectives import Objective

CLASSES = 10


def compose_training(*overrides: str) -> DictConfig:
    """The resolved configuration of a training."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", overrides=[*overrides, "name=benchmark"])
    fill_label_dropout(cfg)
    OmegaConf.resolve(cfg)
    return cfg


def build_objective(cfg: DictConfig) -> Objective:
    """The objective of a configuration, with new weights."""
    torch.manual_seed(0)
    return instantiate(cfg.objective, instantiate(cfg.backbone), instantiate(cfg.schedule), _convert_="all")


def random_images(shape: tuple[int, ...], count: int) -> Dataset:
    """Uniform noise in the place of images."""
    rng = torch.Generator().manual_seed(0)
    split = Split(2 * torch.rand(count, *shape, generator=rng) - 1, torch.arange(count) % CLASSES)
    return Dataset(split, split, split, [str(label) for label in range(CLASSES)])


def cycle_labels(count: int, device: torch.device) -> Tensor:
    """Class indices 0, 1, ..., 9, 0, ... [count]."""
    return torch.arange(count, device=device) % CLASSES
