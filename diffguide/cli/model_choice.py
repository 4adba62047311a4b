"""What is sampled or measured: a checkpoint, or an oracle in its place."""

from omegaconf import DictConfig, OmegaConf

from ..config.build import ConfigError, build, takes
from .arguments import typed

__all__ = ["build_oracle", "check_model", "model_of"]

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # what autocast gives; weights stay float32


def check_model(cfg: DictConfig) -> None:
    """What goes with a checkpoint, what with an oracle, and what with neither.

    Raises:
        ConfigError: both, keys of the one beside the other, or values that no weights and no precision have.
    """
    said = {text.lstrip("+~").split("=")[0].split(".")[0] for text in typed()}
    if "oracle" in cfg:
        if cfg.checkpoint is not None:
            raise ConfigError("checkpoint and oracle are two models: give one of them, and leave the other out")
        for key in said & ({"weights"} if cfg.resume is not None else {"weights", "trust"}):
            raise ConfigError(f"{key} is of a checkpoint, and an oracle has nothing that was trained: leave it out")
        if cfg.engine.precision != PRECISIONS[0]:
            raise ConfigError(
                f"engine.precision={cfg.engine.precision} is of networks; an oracle computes in float64: leave it out"
            )
    elif "schedule" in said:
        raise ConfigError("schedule is of an oracle, a checkpoint has the one that it was trained with: leave it out")
    if cfg.weights not in ("ema", "objective"):
        raise ConfigError(f"weights must be ema (averaged) or objective (as trained), got {cfg.weights!r}")
    if cfg.engine.precision not in PRECISIONS:
        raise ConfigError(f"engine.precision must be one of {', '.join(PRECISIONS)}, got {cfg.engine.precision}")


def model_of(cfg: DictConfig) -> str:
    """What a message calls the model."""
    return "this oracle" if "oracle" in cfg else "this checkpoint"


def build_oracle(cfg: DictConfig, device):
    """The oracle of a configuration, as a source: with its schedule, and its data where it is made of data.

    Raises:
        ConfigError: an oracle, schedule and data that do not go together.
    """
    from ..sampling.sources import Exact, in_memory

    nodes = [key for key in ("oracle", "schedule", "dataset") if key in cfg]
    kwargs = {"schedule": build(cfg, "schedule")}
    if "dataset" in cfg:
        if not takes(cfg, "oracle", "data"):
            raise ConfigError(
                f"dataset is of oracle=empirical, and {cfg.oracle._target_} is no law of data: leave it out"
            )
        data = build(cfg, "dataset")
        kwargs |= in_memory(data)
    oracle = build(cfg, "oracle", kwargs=kwargs)
    if "dataset" in cfg and cfg.oracle.get("class_names") is None:
        oracle.class_names = data.class_names[: oracle.num_classes]
    whole = OmegaConf.to_container(cfg, resolve=True)
    return Exact(oracle, {key: whole[key] for key in nodes}, device)
