"""The configuration of diffguide-sample as a typed job."""

from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ..checkpoints import store as checkpoints
from ..class_names import explain_shadowed_class, resolve_labels
from ..config.build import ConfigError, build, check_whole, run_parent, to_dict
from ..files.shards import Shards
from ..models.evaluation_counters import count_evaluations
from ..runtime.engine import Fabric
from ..runtime.errors import input_errors
from ..sampling import run as sampling
from ..sampling.job import SamplingJob
from ..sampling.sources import CheckpointSource, SampleSource
from .guidance import GuidanceBuilder
from .model_choice import build_oracle, check_model_keys
from .resume import find_samples
from .retyped import trusted
from .runner import tidy

__all__ = ["build_sampling_job"]

MAX_SAMPLES = 10**7  # of a run, whose labels are a list


def build_sampling_job(cfg: DictConfig) -> SamplingJob | None:
    """Builds every part of a sampling run; None where a resumed run is finished already.

    Raises:
        ConfigError: a value that is wrong by itself or beside another, or no such checkpoint.
    """
    cfg, begun = (cfg, None) if cfg.resume is None else find_samples(cfg)
    check_sampling_settings(cfg)
    moved = {} if "oracle" in cfg else to_dict(cfg.get("dataset", OmegaConf.create()))
    unused = () if "oracle" in cfg else ("schedule", "dataset")
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in unused])
    engine = build(cfg, "engine")
    if begun is not None and begun.header is None:
        if engine.is_global_zero:
            shards = Shards(begun.folder / "shards", cfg.n, cfg.batch_size)
            tidy(begun.folder, "all its samples", shards.remove)
        return None
    replan = partial(build_plan, cfg, engine)
    plan, config = replan(begun and begun.file), to_dict(cfg)
    precision = config["engine"]["precision"] if plan.source.oracle is None else str(plan.source.dtype)[6:]
    return SamplingJob(
        plan=plan,
        replan=replan,
        engine=engine,
        parent=begun.folder.parent if begun else run_parent(cfg, "sample", cfg.name or default_name(plan.source)),
        batch_size=cfg.batch_size,
        recorded={"guidance": config["guidance"], "sampler": config["sampler"], "precision": precision},
        config_yaml=OmegaConf.to_yaml(cfg, resolve=True),
        png=cfg.png,
        trajectory=cfg.trajectory,
        moved=moved,
        notes=notes(plan, config["labels"]),
        folder=begun and begun.folder,
        header=begun and begun.header,
    )


def default_name(source: SampleSource) -> str:
    """The name of a run that is given none: its training run's, or its oracle's."""
    return (
        source.config["name"] if isinstance(source, CheckpointSource) else HydraConfig.get().runtime.choices["oracle"]
    )


def check_sampling_settings(cfg: DictConfig) -> None:
    """Checks what can be said before anything is built.

    Raises:
        ConfigError: a value of the wrong type, neither a checkpoint nor an oracle, or keys of the one beside the other.
    """
    for key, least in {"n": 1, "batch_size": 1, "seed": 0}.items():
        check_whole(cfg, key, least)
    if cfg.n > MAX_SAMPLES:
        raise ConfigError(f"n must be at most 10^7 samples a run, got {cfg.n}: make several runs with other seeds")
    for key in ("png", "trajectory"):
        if not isinstance(cfg[key], bool):
            raise ConfigError(f"{key} must be true or false, got {cfg[key]!r}")
    if OmegaConf.is_list(cfg.checkpoint):
        raise ConfigError("checkpoint must be one run, got a list: sample several with -m checkpoint=a,b")
    if "oracle" not in cfg:
        check_checkpoint(cfg)
    check_model_keys(cfg)
    if "oracle" not in cfg and "dataset" in cfg:
        if HydraConfig.get().mode != RunMode.MULTIRUN or list(cfg.dataset) != ["path"]:
            raise ConfigError(
                "dataset belongs to oracle=empirical, and sampling a checkpoint needs none: remove it; dataset.path says where "
                "the data of a checkpoint lie now, for the trade-off of a sweep (-m)"
            )


def check_checkpoint(cfg: DictConfig) -> None:
    """Raises ConfigError where `checkpoint` is missing, or names several."""
    if not isinstance(cfg.checkpoint, str):
        raise ConfigError(
            "checkpoint is missing: give checkpoint=outputs/train/<name>/v001, the folder of a training run, or "
            "oracle=<name> to sample a law that is known exactly, see --help"
        )
    if "," in cfg.checkpoint and not Path(cfg.checkpoint).exists():
        raise ConfigError(
            f"checkpoint: there is no {cfg.checkpoint}; sample several with -m checkpoint={cfg.checkpoint}"
        )


def build_plan(cfg: DictConfig, engine: Fabric, file: Path | None) -> sampling.SamplingPlan:
    """What to sample; file None = the checkpoint that `checkpoint` means.

    Raises:
        ConfigError: a model, guidance, sampler and labels that do not go together.
    """
    source = build_source(cfg, engine, file)
    model, tally = count_evaluations(source.model)
    node = to_dict(cfg.guidance)
    builder = GuidanceBuilder(node, trusted(cfg), source.shape, source.class_names)
    guided, sampler = builder(source.model, engine.device, model), build(cfg, "sampler")
    if not source.class_names and guided.num_classes:  # a generator without classes, steered by what has them
        source.class_names = classes_of(builder, guided.num_classes)
    with input_errors("sampler"):
        sampler.times(guided)
    with input_errors("labels"):
        labels = resolve_labels(to_dict(cfg)["labels"], cfg.n, source.class_names)
    if labels is None and not guided.has_null:
        which = "this one" if not source.model.has_null else "the guide"
        raise ConfigError(
            f"labels=null needs a model that dropped labels in training (guidance=cfg); {which} never did"
        )
    background = source.background(labels or [-1]) if len(source.shape) == 1 else None
    seeds = range(cfg.seed, cfg.seed + cfg.n)
    return sampling.SamplingPlan(source, guided, tally, sampler, seeds, labels, background, builder.references)


def build_source(cfg: DictConfig, engine: Fabric, file: Path | None) -> SampleSource:
    """The oracle or the checkpoint to sample."""
    if "oracle" in cfg:
        return build_oracle(cfg, engine.device)
    try:
        return CheckpointSource(checkpoints.find(file or cfg.checkpoint), cfg.weights, engine.device, trusted(cfg))
    except checkpoints.CheckpointError as error:
        raise ConfigError(f"checkpoint: {error}") from error


def classes_of(builder: GuidanceBuilder, count: int) -> list[str]:
    """The class names of the first model in the guidance that has so many, else their numbers."""
    for reference in builder.references:
        if len(reference.class_names) == count:
            return list(reference.class_names)
    return [str(index) for index in range(count)]


def notes(plan: sampling.SamplingPlan, labels: Any) -> list[str]:
    """What a user should know before the samples are made."""
    lines = (
        plan.source.note,
        sampling.explain_no_op_guidance(plan.guided, plan.sampler, plan.labels is not None),
        explain_shadowed_class(labels, plan.source.class_names),
    )
    return [line for line in lines if line]
