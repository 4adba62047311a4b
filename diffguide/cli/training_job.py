"""The configuration of diffguide-train as a typed job."""

from functools import partial

import torch
from omegaconf import DictConfig, OmegaConf

from ..checkpoints.validation import at_most
from ..config.build import ConfigError, build, check_whole, needs_null, run_parent, to_dict
from ..objectives import Objective
from ..runtime.engine import launched_by_torchrun
from ..training.job import TrainingJob
from ..training.loop import Training
from .arguments import typed
from .guidance import GuidanceBuilder
from .resume import find_training
from .retyped import trusted
from .smaller_backbones import smaller_backbones
from .training_data import open_training_data

__all__ = ["build_training_job"]

MAX_MODULES = 2**16  # layers and tensors of a network; the largest published ones have a few thousand


def build_training_job(cfg: DictConfig) -> TrainingJob:
    """Builds every part of a training run; reads files, and writes none.

    Raises:
        ConfigError: a value that is wrong by itself or beside another, or data that are not there.
    """
    cfg, resumed = (cfg, None) if cfg.resume is None else find_training(cfg)
    check_training_settings(cfg)
    parent = run_parent(cfg, "dry_run" if cfg.dry_run else "train", cfg.name)
    training, engine = build(cfg, "training"), build(cfg, "engine")
    if launched_by_torchrun():
        engine.launch()
    with engine.rank_zero_first():  # who downloads what is missing
        data, note = open_training_data(cfg, resumed)
    torch.manual_seed(cfg.seed)
    with at_most(MAX_MODULES, f"it would have more than {MAX_MODULES} layers and tensors; make it smaller"):
        backbone = build(cfg, "backbone")
    objective = build(cfg, "objective", backbone, build(cfg, "schedule"))
    sampler = build(cfg, "sampler")
    check_objective(objective, training, engine.world_size, cfg.compile)
    config = to_dict(cfg) | {"resume": None}
    return TrainingJob(
        parent=parent,
        seed=cfg.seed,
        engine=engine,
        data=data,
        objective=objective,
        training=training,
        sampler=sampler,
        guide=GuidanceBuilder(config["guidance"], trusted(cfg), data.shape, data.class_names),
        config=config,
        config_yaml=OmegaConf.to_yaml(OmegaConf.create(config)),
        compiled=cfg.compile,
        dry_run=cfg.dry_run,
        folder=resumed and resumed.folder,
        checkpoint=resumed and resumed.checkpoint,
        note=note,
        smaller_objectives=partial(smaller_backbones, "train", objective, data),
    )


def check_training_settings(cfg: DictConfig) -> None:
    """Checks the values that belong to no component.

    Raises:
        ConfigError: one of another type or range.
    """
    check_whole(cfg, "seed", 0)
    for key in ("compile", "dry_run"):
        if not isinstance(cfg[key], bool):
            raise ConfigError(f"{key} must be true or false, got {cfg[key]!r}")
    check_label_dropout(cfg)


def check_label_dropout(cfg: DictConfig) -> None:
    """Checks that p_uncond fits the guidance: it belongs to guidance that needs the null condition.

    Raises:
        ConfigError: p_uncond without such guidance, 0 with it, or an objective that was given another one.
    """
    p_uncond = cfg.get("p_uncond", 0.0)
    given = any(override.split("=")[0].lstrip("+") == "p_uncond" for override in typed())
    if not needs_null(to_dict(cfg.guidance)):
        if given or p_uncond:
            raise ConfigError(
                f"p_uncond={p_uncond} has no effect with this guidance, which needs no unconditional model; remove it or use "
                "guidance=cfg"
            )
    elif not isinstance(p_uncond, int | float) or isinstance(p_uncond, bool) or not 0 < p_uncond <= 1:
        raise ConfigError(
            f"p_uncond must be in (0, 1] with this guidance, got {p_uncond}; use guidance=none to drop no labels"
        )
    own = cfg.objective.get("p_uncond", p_uncond)
    if own != p_uncond:
        raise ConfigError(f"objective.p_uncond={own} follows the root's p_uncond={p_uncond}: set that one")


def check_objective(objective: Objective, training: Training, world_size: int, compiled: bool) -> None:
    """Checks what an objective forbids: compilation, or dividing its batch.

    Raises:
        ConfigError: what it forbids is asked for.
    """
    name = type(objective).__name__
    if compiled and not objective.compilable:
        raise ConfigError(f"compile must be false with objective {name}, which differentiates its network by its input")
    if not objective.divisible and training.accumulate * world_size > 1:
        raise ConfigError(
            f"training.accumulate and engine.devices must be 1 with objective {name}, whose batch cannot be divided, got "
            f"{training.accumulate} and {world_size}"
        )
