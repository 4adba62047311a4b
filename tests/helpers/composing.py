"""Configurations composed as the commands compose them."""

from functools import cache

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from diffguide.config.build import config_dir, fill_label_dropout


def composed(*overrides: str) -> DictConfig:
    """The configuration of `diffguide-train` with these overrides."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("train", list(overrides))
    fill_label_dropout(cfg)
    return cfg


@cache
def composed_once(*overrides: str) -> DictConfig:
    """The same for several tests, which must not change it."""
    return composed(*overrides)
