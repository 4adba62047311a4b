"""diffguide-train: compose the configuration, build the components, train."""

import sys
from collections.abc import Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from .configuration import ConfigError, build, check_whole, config_dir, one_line_errors, run_command, run_parent

__all__ = ["main", "train"]


def train(cfg: DictConfig) -> None:
    """One training run: prints the folder it wrote as its last line on stdout."""
    import torch

    from .runs import claim_version

    check_whole(cfg, "seed", 0)
    check_label_dropout(cfg)
    training, engine, data = build(cfg, "training"), build(cfg, "engine"), build(cfg, "dataset")
    torch.manual_seed(cfg.seed)
    backbone = build(cfg, "backbone")
    if cfg.compile:
        backbone.compile()
    objective = build(cfg, "objective", backbone, build(cfg, "schedule"))
    sampler = build(cfg, "sampler")
    sampler.times(build(cfg, "guidance", objective.model))  # a grid that cannot be is told before the training
    resume = find_resumed(cfg) if cfg.resume else None
    try:  # told before anything is written
        training.share(engine.world_size)
        training.make_optimizer(objective)
    except ValueError as error:
        raise ConfigError(f"training: {error}") from error

    engine.launch()
    folder = None
    if engine.is_global_zero:
        folder = resume.parent.parent if resume else claim_version(run_parent(cfg, "train", cfg.name))
        for part in ("checkpoints", "samples"):
            (folder / part).mkdir(exist_ok=True)
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    folder = engine.broadcast(folder)

    def draw(averaged, path) -> None:
        """Eight samples of each class, the same seeds every time."""
        from .images import sample_picture
        from .samplers import generate

        guided = build(cfg, "guidance", averaged.model)
        labels = [index for index in range(len(data.class_names)) for _ in range(8 if data.train.x.ndim > 2 else 250)]
        seeds, shape = range(len(labels)), data.shape
        samples = torch.cat(list(generate(guided, sampler, seeds, labels, shape, 250, engine.device))).cpu()
        sample_picture(path, samples, labels, data.class_names, data.train.x)

    config = OmegaConf.to_container(cfg, resolve=True)
    training.run(engine, objective, data, folder, cfg.seed, config, draw, resume)
    if engine.is_global_zero:
        pictures = sorted((folder / "samples").glob("*.png"))
        print(f"samples: {pictures[-1]}", file=sys.stderr)
        print(folder)


def check_label_dropout(cfg: DictConfig) -> None:
    """p_uncond belongs to guidance that needs the null condition.

    Raises:
        ConfigError: p_uncond without such guidance, or 0 with it.
    """
    p_uncond = cfg.get("p_uncond", 0.0)
    given = any(override.split("=")[0].lstrip("+") == "p_uncond" for override in HydraConfig.get().overrides.task)
    if not get_class(cfg.guidance._target_).needs_null:
        if given or p_uncond:
            raise ConfigError(
                f"p_uncond={p_uncond} means nothing with this guidance, which drops no label; take guidance=cfg"
            )
    elif not isinstance(p_uncond, (int, float)) or not 0 < p_uncond <= 1:
        raise ConfigError(
            f"p_uncond must be in (0, 1] with this guidance, got {p_uncond}; take guidance=none to drop none"
        )


def find_resumed(cfg: DictConfig):
    """The newest checkpoint of the run to continue.

    Raises:
        ConfigError: nothing there, or a run of another configuration.
    """
    from . import checkpoints

    try:
        path = checkpoints.find(cfg.resume)
        saved = checkpoints.read(path)[1]["config"]
    except checkpoints.CheckpointError as error:
        raise ConfigError(f"resume: {error}") from error
    today = OmegaConf.to_container(cfg, resolve=True)
    for key in ("dataset", "backbone", "schedule", "objective", "seed"):
        if today[key] != saved[key]:
            raise ConfigError(
                f"resume={cfg.resume} was trained with {key}: {saved[key]}; this command has {today[key]}"
            )
    return path


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="train")
def command(cfg: DictConfig) -> None:
    with one_line_errors("diffguide-train"):
        train(cfg)


def main(argv: Sequence[str] | None = None) -> None:
    """The console script `diffguide-train`; argv without the program's name."""
    run_command(command, "diffguide-train", argv)


if __name__ == "__main__":
    main()
