"""The configuration of diffguide-eval as typed jobs, one per checkpoint."""

import sys
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from ..checkpoints.references import check_guides, with_guides
from ..config.build import ConfigError, build
from ..datasets import Dataset
from ..evaluation.job import EvaluationJob, remove_parts
from ..evaluation.metric import Metric
from ..first_stages.latent_data import LatentData
from ..models.half_precision import cast_network
from ..runtime.engine import Fabric
from ..runtime.errors import InputError
from .evaluation_targets import checkpoint_target, oracle_target
from .guidance import refuse_missing_texts, refuse_pixel_potentials
from .model_choice import build_oracle, check_model_keys, checkpoint_paths, settle_inference_precision
from .resume import Begun, find_evaluation
from .runner import clean_finished_run
from .settings import EvaluationSettings

__all__ = ["build_evaluation_jobs"]

ALIGNMENT = "diffguide.evaluation.quality.alignment_metric.Alignment"


def build_evaluation_jobs(config: dict[str, Any]) -> list[EvaluationJob]:
    """Builds every measurement of a command before the first one starts; none where a resumed one is finished.

    Arguments:
        config: composed and resolved.

    Raises:
        ConfigError: an invalid value, values that do not fit each other, or a metric that a checkpoint does not support.
    """
    settle_inference_precision(config)
    config, begun = (config, None) if config["resume"] is None else find_evaluation(config)
    settings = EvaluationSettings.read(config)
    paths = checkpoint_paths(config, several=True)
    check_model_keys(config)
    if begun is not None and begun.header is None:
        clean_finished_run(begun.folder, "its figures", lambda: remove_parts(begun.folder))
        return []
    engine = build(config["engine"], "engine")
    if engine.world_size > 1:
        raise ConfigError(
            f"engine.devices must be 1, got {engine.world_size}: one process measures; others may measure other checkpoints"
        )
    engine.launch()
    opened: dict[str, Dataset] = {}
    return [build_job(config, settings, engine, path, begun, opened) for path in paths]


def build_job(
    config: Mapping[str, Any],
    settings: EvaluationSettings,
    engine: Fabric,
    path: str | None,
    begun: Begun | None,
    opened: dict[str, Dataset],
) -> EvaluationJob:
    """One measurement.

    Arguments:
        path: of the checkpoint, None = an oracle.
        begun: the run to resume.
        opened: data sets that several checkpoints share, by their nodes.

    Raises:
        ConfigError: a model, data and metric that do not fit each other.
    """
    saved, precision = dict(config), config["engine"]["precision"]
    try:
        if path is None:
            source, data = build_oracle(config, engine.device)
            target = oracle_target(settings, source, data, engine.device)
        else:
            file = begun.file if begun and begun.file else path
            target = checkpoint_target(settings, file, config.get("dataset"), engine.device, opened)
            saved["checkpoint"] = path
            saved.pop("schedule", None)  # of an oracle
            if "dataset" in config:
                saved["dataset"] = target.identity["dataset"]
        if isinstance(target.context.data, LatentData):
            refuse_pixel_potentials(config["metric"], "metric")
        if config["metric"].get("_target_") != ALIGNMENT:  # which has texts
            refuse_missing_texts(config["metric"])
        node, guides = with_guides(config["metric"], "metric", engine.device, settings.trust)
        check_guides(guides, target.context.shape, target.context.class_names)
        metric = build(node, "metric").resolve(target.context)
        metric.check(target.context)
        if path is not None:
            check_precision(metric, precision)
            cast_network(target.context.uncounted, precision)
    except InputError:
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
        parent=begun.folder.parent if begun else settings.run_parent("evaluate", target.name),
        config_yaml=OmegaConf.to_yaml(OmegaConf.create(saved)),
        precision="float64" if path is None else precision,
        folder=begun and begun.folder,
    )


def check_precision(metric: Metric, precision: str) -> None:
    """Raises ConfigError for a metric that a rounded network makes wrong."""
    if metric.differentiates and precision != "32-true":
        raise ConfigError(
            f"metric={metric.name} needs engine.precision=32-true, got {precision}: the divergence of a rounded network is not "
            "that of its derivative, and the likelihood would be too high"
        )
