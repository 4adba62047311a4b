"""diffguide-train: compose the configuration, build the components, train."""

import sys
from collections.abc import Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from .configuration import (
    ConfigError,
    build,
    check_whole,
    config_dir,
    one_line_errors,
    run_command,
    run_parent,
    telling,
)  # fmt: skip

__all__ = ["main", "train"]


def train(cfg: DictConfig) -> None:
    """One training run: prints the folder it wrote as its last line on stdout."""
    import torch

    from .runs import claim_version

    check_whole(cfg, "seed", 0)
    if not isinstance(cfg.compile, bool):
        raise ConfigError(f"compile must be true or false, got {cfg.compile!r}")
    check_label_dropout(cfg)
    parent = run_parent(cfg, "train", cfg.name)
    training, engine, data = build(cfg, "training"), build(cfg, "engine"), build(cfg, "dataset")
    torch.manual_seed(cfg.seed)
    backbone = build(cfg, "backbone")
    objective, sampler = build(cfg, "objective", backbone, build(cfg, "schedule")), build(cfg, "sampler")
    with telling("sampler"):  # everything that cannot be is told before anything is written
        sampler.times(build(cfg, "guidance", objective.model))
    with telling("training"):
        training.share(engine.world_size)
        training.make_optimizer(objective)
    probe(objective, data)
    resume = find_resumed(cfg) if cfg.resume is not None else None
    if cfg.compile:
        backbone.compile()

    engine.launch()
    folder = None
    if engine.is_global_zero:
        with telling("output_root"):
            folder = resume.parent.parent if resume else claim_version(parent)
            for part in ("checkpoints", "samples"):
                (folder / part).mkdir(exist_ok=True)
            OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    folder = engine.broadcast(folder)

    def draw(averaged, path) -> None:
        """Eight samples of each class (250 of vectors), the same seeds every time."""
        from .images import sample_picture
        from .samplers import generate

        guided = build(cfg, "guidance", averaged.model)
        each = 8 if data.train.x.ndim > 2 else 250
        labels = [index for index in range(max(guided.num_classes, 1)) for _ in range(each)]
        labels = labels if guided.num_classes else [-1] * 10 * each
        seeds, shape = range(len(labels)), data.shape
        samples = torch.cat(list(generate(guided, sampler, seeds, labels, shape, 250, engine.device))).cpu()
        sample_picture(path, samples, labels, data.class_names, data.train.x)

    config = OmegaConf.to_container(cfg, resolve=True)
    training.run(engine, objective, data, folder, cfg.seed, config, draw, resume)
    if engine.is_global_zero:
        pictures = sorted((folder / "samples").glob("*.png"))
        print(f"samples: {pictures[-1]}", file=sys.stderr)
        print(folder)


def probe(objective, data) -> None:
    """One forward pass of two examples: does the network fit the data?

    Raises:
        ConfigError: it does not; says what the network said.
    """
    import torch

    classes = objective.model.num_classes
    if classes not in (0, len(data.class_names)):
        raise ConfigError(
            f"backbone.num_classes is {classes}, but the data have {len(data.class_names)} (0 = unconditional)"
        )
    try:
        with torch.no_grad():
            objective(data.train.x[:2], data.train.y[:2], torch.Generator().manual_seed(0))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"backbone: it does not fit the data, whose examples are {list(data.shape)}: {reason}"
        ) from error


def check_label_dropout(cfg: DictConfig) -> None:
    """p_uncond belongs to guidance that needs the null condition.

    Raises:
        ConfigError: p_uncond without such guidance, 0 with it, or an objective that was given another one.
    """
    p_uncond = cfg.get("p_uncond", 0.0)
    given = any(override.split("=")[0].lstrip("+") == "p_uncond" for override in HydraConfig.get().overrides.task)
    if not getattr(get_class(cfg.guidance._target_), "needs_null", False):
        if given or p_uncond:
            raise ConfigError(
                f"p_uncond={p_uncond} means nothing with this guidance, which drops no label; take guidance=cfg"
            )
    elif not isinstance(p_uncond, int | float) or isinstance(p_uncond, bool) or not 0 < p_uncond <= 1:
        raise ConfigError(
            f"p_uncond must be in (0, 1] with this guidance, got {p_uncond}; take guidance=none to drop none"
        )
    if cfg.objective.get("p_uncond", p_uncond) != p_uncond:
        raise ConfigError(
            f"objective.p_uncond={cfg.objective.p_uncond} follows the root's p_uncond={p_uncond}: set that one"
        )


def find_resumed(cfg: DictConfig):
    """The newest checkpoint of the run to continue.

    Raises:
        ConfigError: nothing there, nothing left to do, or a run of another configuration.
    """
    from pathlib import Path

    from . import checkpoints

    if not isinstance(cfg.resume, str) or Path(cfg.resume).expanduser().is_file():
        raise ConfigError(f"resume must be a run folder such as outputs/train/digits/v001, got {cfg.resume!r}")
    try:
        path = checkpoints.find(cfg.resume)
        metadata = checkpoints.read(path)[1]
        checkpoints.read(path.with_suffix(".optimizer.safetensors"))
    except checkpoints.CheckpointError as error:
        raise ConfigError(f"resume: {error}") from error
    if not (path.parent.name == "checkpoints" and (path.parent.parent / "config.yaml").is_file()):
        raise ConfigError(f"resume: {cfg.resume} is no run folder of diffguide-train")
    saved, today = metadata["config"], OmegaConf.to_container(cfg, resolve=True)
    free = {"images", "log_images", "validation_images", "checkpoint_images", "sample_images"}
    for config in (saved, today):  # how long and how often may change, what is computed may not
        config["training"] = {key: value for key, value in config["training"].items() if key not in free}
    for key in ("dataset", "backbone", "schedule", "objective", "training", "seed"):
        if today[key] != saved[key]:
            raise ConfigError(
                f"resume={cfg.resume} was trained with {key}: {saved[key]}; this command has {today[key]}"
            )
    if metadata["images"] >= cfg.training.images:
        raise ConfigError(f"resume: {cfg.resume} has its {metadata['images']} images; ask for more training.images")
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
