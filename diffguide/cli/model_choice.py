"""What is sampled or measured: a checkpoint, or an oracle in its place."""

from typing import Any

from omegaconf import DictConfig

from ..config.build import ConfigError, accepts_argument, build, to_dict
from .arguments import typed

__all__ = ["build_oracle", "check_model_keys"]

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # what autocast gives; weights stay float32


def check_model_keys(cfg: DictConfig) -> None:
    """Checks that the keys of a command go with its model, a checkpoint or an oracle.

    Raises:
        ConfigError: both, keys of the one beside the other, or values that no weights and no precision have.
    """
    typed_keys = {text.lstrip("+~").split("=")[0].split(".")[0] for text in typed()}
    if "oracle" in cfg:
        if cfg.checkpoint is not None:
            raise ConfigError("checkpoint and oracle are two models: give one of them")
        for key in typed_keys & ({"weights"} if cfg.resume is not None else {"weights", "trust"}):
            raise ConfigError(f"{key} has no effect with an oracle, which was not trained: remove it")
        if cfg.engine.precision != PRECISIONS[0]:
            raise ConfigError(
                f"engine.precision={cfg.engine.precision} has no effect with an oracle, which computes in float64: remove it"
            )
    elif "schedule" in typed_keys:
        raise ConfigError(
            "schedule has no effect with a checkpoint, which has the one that it was trained with: remove it"
        )
    if cfg.weights not in ("ema", "objective"):
        raise ConfigError(f"weights must be ema (averaged) or objective (as trained), got {cfg.weights!r}")
    if cfg.engine.precision not in PRECISIONS:
        raise ConfigError(f"engine.precision must be one of {', '.join(PRECISIONS)}, got {cfg.engine.precision}")


def build_oracle(cfg: DictConfig, device):
    """The oracle of a configuration, as a source: with its schedule, and its data where it is made of data.

    Raises:
        ConfigError: an oracle, schedule and data that do not go together.
    """
    from ..sampling.sources import OracleSource, training_tensors

    arguments = {"schedule": build(cfg, "schedule")}
    if "dataset" in cfg:
        if not accepts_argument(cfg, "oracle", "data"):
            raise ConfigError(
                f"dataset belongs to oracle=empirical, and {cfg.oracle._target_} takes no data: remove it"
            )
        data = build(cfg, "dataset")
        arguments |= training_tensors(data)
    oracle = build(cfg, "oracle", kwargs=arguments)
    if "dataset" in cfg and cfg.oracle.get("class_names") is None:
        oracle.class_names = data.class_names[: oracle.num_classes]
    config = to_dict(cfg)
    nodes: dict[str, Any] = {key: config[key] for key in ("oracle", "schedule", "dataset") if key in config}
    return OracleSource(oracle, nodes, device)
