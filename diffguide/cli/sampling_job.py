"""The configuration of diffguide-sample as a typed job."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from ..backbones.conditions import RowCondition
from ..checkpoints import store as checkpoints
from ..class_names import explain_shadowed_class, resolve_labels
from ..config.build import ConfigError, build
from ..files.shards import Shards
from ..guidance.potentials.values import find_text_potentials
from ..models.evaluation_counters import count_evaluations
from ..models.half_precision import cast_network
from ..models.protocols import Denoiser, Energy
from ..runtime.engine import Fabric
from ..runtime.errors import convert_input_errors
from ..sampling import run as sampling
from ..sampling.job import SamplingJob
from ..sampling.sources import CheckpointSource, SampleSource
from ..sampling.stored import StoredForm
from .guidance import GuidanceBuilder, refuse_missing_texts
from .model_choice import build_oracle, check_model_keys, checkpoint_paths, settle_inference_precision
from .prompts import give_prompts, read_conditions, read_prompts
from .resume import find_samples
from .runner import clean_finished_run
from .settings import SamplingSettings

__all__ = ["build_sampling_job"]


def build_sampling_job(config: dict[str, Any]) -> SamplingJob | None:
    """Builds every part of a sampling run; None where a resumed run is finished.

    Arguments:
        config: composed and resolved.

    Raises:
        ConfigError: an invalid value, values that do not fit each other, or a missing checkpoint.
    """
    settle_inference_precision(config)
    if config["prompts"] is not None:
        config["prompts"] = read_prompts(config["prompts"])
    config, begun = (config, None) if config["resume"] is None else find_samples(config)
    settings = SamplingSettings.read(config)
    [path] = checkpoint_paths(config, several=False)
    check_model_keys(config)
    moved: dict[str, Any] = {}
    if path is not None:
        moved = check_moved_data(config.get("dataset", {}))
        config = {key: node for key, node in config.items() if key not in ("schedule", "dataset")}  # of an oracle
    engine = build(config["engine"], "engine")
    if begun is not None and begun.header is None:
        if engine.is_global_zero:
            shards = Shards(begun.folder / "shards", settings.n, settings.batch_size)
            clean_finished_run(begun.folder, "all its samples", shards.remove)
        return None
    replan = partial(build_plan, config, settings, engine)
    plan = replan(begun and begun.file)
    precision = config["engine"]["precision"] if path is not None else str(plan.source.dtype)[6:]
    return SamplingJob(
        plan=plan,
        replan=replan,
        engine=engine,
        parent=begun.folder.parent if begun else settings.run_parent("sample", default_name(plan.source)),
        batch_size=settings.batch_size,
        recorded={"guidance": config["guidance"], "sampler": config["sampler"], "precision": precision},
        config_yaml=OmegaConf.to_yaml(OmegaConf.create(config)),
        png=settings.png,
        trajectory=settings.trajectory,
        moved=moved,
        notes=list_notes(plan, config["labels"]),
        folder=begun and begun.folder,
        header=begun and begun.header,
    )


def default_name(source: SampleSource) -> str:
    """The name of a run without one: that of its training run, or of its oracle."""
    if isinstance(source, CheckpointSource):
        return source.config["name"]
    return HydraConfig.get().runtime.choices["oracle"]


def check_moved_data(node: dict[str, Any]) -> dict[str, Any]:
    """The keys that say where the data of a checkpoint are now, for the trade-off of a sweep.

    Raises:
        ConfigError: other keys of a data set, or a single run, which needs no data.
    """
    if node and (HydraConfig.get().mode != RunMode.MULTIRUN or list(node) != ["path"]):
        raise ConfigError(
            "dataset has no effect with a checkpoint, only with oracle=empirical: remove it; in a sweep (-m), dataset.path is "
            "the place of the checkpoint's data"
        )
    return node


def build_plan(
    config: Mapping[str, Any], settings: SamplingSettings, engine: Fabric, file: Path | None
) -> sampling.SamplingPlan:
    """The plan of what to sample.

    Arguments:
        file: of the checkpoint, None = the one that the configuration names.

    Raises:
        ConfigError: a model, guidance, sampler and labels that do not fit each other.
    """
    prompts = config.get("prompts")
    if prompts is None or config["labels"] is None:
        refuse_missing_texts(config["guidance"])
    source = open_source(config, settings, engine, file)
    model, tally = count_evaluations(source.model)
    latents = isinstance(source, CheckpointSource) and source.in_latents
    builder = GuidanceBuilder(config["guidance"], settings.trust, source.shape, source.class_names, latents)
    guided = builder(source.model, engine.device, model)
    sampler = build(config["sampler"], "sampler")
    if not source.class_names and guided.num_classes:  # the classes of a guide, for a generator without classes
        source.class_names = guide_classes(builder, guided.num_classes)
    with convert_input_errors("sampler"):
        sampler.times(guided)
    names, conditions = choose_conditions(prompts, guided, config["labels"])
    with convert_input_errors("labels"):
        labels = resolve_labels(
            config["labels"], settings.n, names or source.class_names, "prompt" if names else "class"
        )
    if names and conditions is None and not guided.has_null:
        raise ConfigError(
            "this model takes classes alone and never dropped them in training, so it has no samples for prompts: give one "
            'text, prompt="...", and classes by labels='
        )
    if labels is None and not guided.has_null:
        if not guided.num_classes:
            raise ConfigError(
                "this model takes the vectors of a condition, such as a text, and commands have none to give: sample it from "
                "Python, with y = diffguide.backbones.Embedding(vectors)"
            )
        which = "this one" if not source.model.has_null else "the guide"
        raise ConfigError(
            f"labels=null needs a model that dropped labels in training (guidance=cfg); {which} never did"
        )
    background = source.background(labels or [-1]) if len(source.shape) == 1 else None
    seeds = range(settings.seed, settings.seed + settings.n)
    give_prompts(guided, prompts, seeds, labels)
    return sampling.SamplingPlan(
        source, guided, tally, sampler, seeds, labels, background, builder.references, names, conditions
    )


def choose_conditions(prompts: Any, guided: Denoiser | Energy, labels: Any) -> tuple[list[str], RowCondition | None]:
    """The prompts of a run as they are shown and their conditions; ([], None) for a run with classes or without condition.

    Raises:
        ConfigError: prompts for a model that takes none, or none for a model that needs some.
    """
    conditioning = guided.conditioning
    if prompts is not None:
        return read_conditions(prompts, conditioning, bool(find_text_potentials(guided)))
    if conditioning is not None and labels is not None:
        what = "texts" if conditioning.reads_text else "conditions"
        raise ConfigError(f"this model takes {what}: give prompts=[...], prompts=<file>.txt, or labels=null for none")
    return [], None


def open_source(
    config: Mapping[str, Any], settings: SamplingSettings, engine: Fabric, file: Path | None
) -> SampleSource:
    """The oracle or the checkpoint to sample.

    Raises:
        ConfigError: an invalid oracle, or a checkpoint that cannot be loaded.
    """
    if "oracle" in config:
        return build_oracle(config, engine.device)[0]
    try:
        file = checkpoints.find(file or config["checkpoint"])
        first_stage = build(config["first_stage"], "first_stage") if config.get("first_stage") else None
        source = CheckpointSource(
            file,
            settings.weights,
            engine.device,
            settings.trust,
            settings.null_class,
            settings.adapter,
            settings.adapter_scale,
            settings.latents,
            first_stage,
        )
    except checkpoints.CheckpointError as error:
        raise ConfigError(f"checkpoint: {error}") from error
    with convert_input_errors("engine"):
        cast_network(source.model, config["engine"]["precision"])
    return source


def guide_classes(builder: GuidanceBuilder, count: int) -> Sequence[str]:
    """The class names of the first guide with this number of classes; without one, the numbers of the classes."""
    named = (guide.class_names for guide in builder.references if len(guide.class_names) == count)
    return list(next(named, map(str, range(count))))


def explain_latents(stored: StoredForm) -> str | None:
    """What a run writes for latents; None for images and vectors."""
    if stored.is_picture or len(stored.shape) != 3:
        return None
    channels, rest = stored.shape[0], ", ".join(map(str, stored.shape))
    return (
        f"samples have {channels} channels: they are latents, which the autoencoder of this model decodes; samples.npz has "
        f"them as float32 [n, {rest}], and grid.png shows the first {3 if channels > 2 else 1} channels"
    )


def list_notes(plan: sampling.SamplingPlan, labels: Any) -> list[str]:
    """Lines to print before sampling: a model, guidance or labels that may not do what the user expects."""
    notes = (
        plan.source.note,
        explain_latents(plan.stored),
        sampling.explain_no_op_guidance(plan.guided, plan.sampler, plan.labels is not None),
        explain_shadowed_class(labels, plan.source.class_names),
    )
    return [note for note in notes if note]
