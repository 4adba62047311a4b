"""The configuration of diffguide-eval as typed jobs, one per checkpoint."""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..checkpoints.references import check_guides, with_guides
from ..config.build import ConfigError, build, check_whole, run_parent, to_dict
from ..datasets import Dataset
from ..evaluation.job import EvaluationJob, remove_parts
from ..runtime.engine import Fabric
from .evaluation_targets import checkpoint_target, oracle_target
from .model_choice import build_oracle, check_model_keys
from .resume import Begun, find_evaluation
from .retyped import trusted
from .runner import tidy

__all__ = ["build_evaluation_jobs"]


def build_evaluation_jobs(cfg: DictConfig) -> list[EvaluationJob]:
    """Builds every measurement of a command, so that all can be made before one is; none where a resumed one is finished.

    Raises:
        ConfigError: a value that is wrong by itself or beside another, or a metric that a checkpoint cannot answer.
    """
    cfg, begun = (cfg, None) if cfg.resume is None else find_evaluation(cfg)
    check_evaluation_settings(cfg)
    cfg = OmegaConf.masked_copy(
        cfg, [str(key) for key in cfg if "oracle" in cfg or key != "schedule"]
    )  # the rest is unused
    if begun is not None and begun.header is None:
        tidy(begun.folder, "its figures", lambda: remove_parts(begun.folder))
        return []
    engine = build(cfg, "engine")
    if engine.world_size > 1:
        raise ConfigError(
            f"engine.devices must be 1, got {engine.world_size}: one process measures; others may measure other checkpoints"
        )
    engine.launch()
    opened: dict[str, Dataset] = {}
    return [build_job(cfg, engine, path, begun, opened) for path in checkpoint_paths(cfg)]


def check_evaluation_settings(cfg: DictConfig) -> None:
    """Checks what can be said before anything is built.

    Raises:
        ConfigError: a value of the wrong type or range, no checkpoint.
    """
    for key, least in {"batch_size": 1, "seed": 0, "n": 1}.items():
        if key != "n" or cfg.n is not None:  # null = the whole split
            check_whole(cfg, key, least)
    if cfg.split not in ("train", "validation", "test"):
        raise ConfigError(f"split must be train, validation or test, got {cfg.split!r}")
    paths = checkpoint_paths(cfg)
    if "oracle" not in cfg and not (paths and all(isinstance(path, str) for path in paths)):
        raise ConfigError(
            "checkpoint is missing: give checkpoint=outputs/train/<name>/v001, the folder of a training run, a list of "
            "them, checkpoint=[a,b], or oracle=<name>; see --help"
        )
    for path in filter(None, paths):
        if "," in path and not Path(path).exists():
            raise ConfigError(
                f"checkpoint: there is no {path}; several are a list, checkpoint=[{path}], or one after another with -m "
                f"checkpoint={path}"
            )
    check_model_keys(cfg)


def checkpoint_paths(cfg: DictConfig) -> list[Any]:
    """The checkpoints, one or several; [None] beside an oracle."""
    return list(cfg.checkpoint) if OmegaConf.is_list(cfg.checkpoint) else [cfg.checkpoint]


def build_job(
    cfg: DictConfig, engine: Fabric, path: str | Path | None, begun: Begun | None, opened: dict[str, Dataset]
) -> EvaluationJob:
    """One measurement, of a checkpoint or of an oracle (path None).

    Arguments:
        opened: data sets, which several checkpoints share.

    Raises:
        ConfigError: a model, data and metric that do not go together.
    """
    measured: dict[str, Any] = {"checkpoint": path}
    if path is None:
        target, precision = oracle_target(cfg, build_oracle(cfg, engine.device), engine.device), "float64"
    else:
        target, precision = (
            checkpoint_target(cfg, begun.file if begun and begun.file else path, engine.device, opened),
            cfg.engine.precision,
        )
        if "dataset" in cfg:
            measured["dataset"] = target.identity["dataset"]
    try:
        node = to_dict(cfg.metric)
        node, guides = with_guides(node, "metric", engine.device, trusted(cfg))
        check_guides(guides, target.context.shape, target.context.class_names)
        metric = build({"metric": node}, "metric").resolve(target.context)
        metric.check(target.context)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if target.note:
        print(target.note, file=sys.stderr)
    return EvaluationJob(
        context=target.context,
        metric=metric,
        identity=target.identity | {"guides": {guide.key: guide.identity() for guide in guides}},
        engine=engine,
        parent=begun.folder.parent if begun else run_parent(cfg, "evaluate", cfg.name or target.name),
        config_yaml=OmegaConf.to_yaml(OmegaConf.merge(cfg, measured), resolve=True),
        precision=precision,
        folder=begun and begun.folder,
    )
