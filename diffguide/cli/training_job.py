"""The configuration of diffguide-train as a typed job."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from ..checkpoints import data_record as provenance
from ..checkpoints.allowlist import ROLES
from ..checkpoints.validation import at_most
from ..conditions.examples import ConditionedData
from ..config.build import ConfigError, build, needs_null
from ..config.type_checks import check_types
from ..datasets import Dataset
from ..objectives import Denoising, Objective
from ..runtime.compiling import should_compile
from ..runtime.engine import launched_by_torchrun, set_mixed_precision
from ..runtime.precision import AUTO, FULL, MIXED, choose_precision
from ..training.job import TrainingJob
from ..training.loop import Training
from ..training.probe import make_probe
from .adaptation import add_adapter, check_adapter, take_adapter
from .arguments import changed_keys
from .conditions import place_condition, settle_conditioning
from .guidance import GuidanceBuilder, refuse_missing_texts
from .initialization import find_ancestor
from .latents import drop_empty_first_stage, enter_latents, take_first_stage
from .resume import Resumed, find_training
from .settings import TrainingSettings
from .smaller_backbones import smaller_backbones
from .teachers import give_inputs, load_teachers

__all__ = ["build_training_job", "settle_precision"]

MIN_WORK = 3e10  # images times parameters of a training whose precision is chosen: half a minute on a core
MAX_MODULES = 2**16  # layers and tensors of a network; the largest published ones have a few thousand


def build_training_job(config: dict[str, Any]) -> TrainingJob:
    """Builds every part of a training run; reads files, and writes none.

    Arguments:
        config: composed and resolved.

    Raises:
        ConfigError: an invalid value, values that do not fit each other, or missing data.
    """
    check_adapter(config)
    config = drop_empty_first_stage(place_condition(config))
    config, resumed = (config, None) if config["resume"] is None else find_training(config)
    settings = TrainingSettings.read(config)
    config, ancestor = find_ancestor(config) if resumed is None else (config, None)
    config, first_stage = take_first_stage(config, ancestor)
    config, adapter = take_adapter(config)
    if resumed is None or "p_uncond" in changed_keys():
        check_label_dropout(config.get("p_uncond", 0.0), config["guidance"], config["objective"])
    for key in ("dataset", "backbone", "schedule", "objective", "guidance", "sampler"):  # before a download
        check_types(config[key], key, ROLES[key].given)
    config = give_inputs(config)
    parent = settings.run_parent("dry_run" if settings.dry_run else "train")
    training, engine = build(config["training"], "training"), build(config["engine"], "engine")
    if launched_by_torchrun():
        engine.launch()
    with engine.rank_zero_first():  # rank 0 downloads and encodes what is missing
        data, note = open_training_data(config["dataset"], resumed)
        latents = enter_latents(config, first_stage, data, settings, engine, resumed, ancestor)
    config, data = (config, data) if latents is None else (latents.config, latents.data)
    node, lessons = load_teachers(config["objective"], engine.device, settings.trust, data)
    backbone, objective = build_objective({**config, "objective": node}, settings.seed)
    config = settle_conditioning(config, backbone)
    remarks = lessons if latents is None else [*lessons, latents.remark]
    if ancestor is not None:
        remarks.append(ancestor.start(objective, data.class_names))
    if adapter is not None:
        config, line = add_adapter(config, adapter, objective)
        remarks.append(line)
    refuse_missing_texts(config["guidance"])
    sampler = build(config["sampler"], "sampler")
    compiled = should_compile(settings.compile, engine.device, backbone)
    compiled = compiled and (objective.compilable or settings.compile != "auto")
    check_objective(objective, training, engine.world_size, compiled)
    examples = ConditionedData(data, objective.model)
    saved = config | {"resume": None}
    return TrainingJob(
        parent=parent,
        seed=settings.seed,
        engine=engine,
        examples=examples,
        objective=objective,
        training=training,
        sampler=sampler,
        guide=GuidanceBuilder(config["guidance"], settings.trust, data.shape, data.class_names, latents is not None),
        config=saved,
        config_yaml=OmegaConf.to_yaml(OmegaConf.create(saved)),
        compiled=compiled,
        dry_run=settings.dry_run,
        folder=resumed and resumed.folder,
        checkpoint=resumed and resumed.checkpoint,
        note=note,
        remarks=remarks,
        copy_first_stage=latents and latents.copy,
        smaller_objectives=partial(smaller_backbones, objective, config, examples),
    )


def build_objective(config: Mapping[str, Any], seed: int) -> tuple[Any, Objective]:
    """The network, with weights of a seed, and the objective that trains it.

    Raises:
        ConfigError: an invalid value, or a far too large network.
    """
    torch.manual_seed(seed)
    with at_most(MAX_MODULES, f"it would have more than {MAX_MODULES} layers and tensors; make it smaller"):
        backbone = build(config["backbone"], "backbone")
    return backbone, build(config["objective"], "objective", backbone, build(config["schedule"], "schedule"))


def settle_precision(job: TrainingJob) -> None:
    """Chooses the precision of a job with engine.precision=auto, and writes it into the configuration of the run.

    It is float32 for short trainings, which a measurement would lengthen, and for objectives other than `Denoising`: theirs
    were not compared with float32.
    """
    engine = job.config["engine"]
    if engine["precision"] != AUTO:
        return
    precision = FULL
    work = job.training.images * sum(parameter.numel() for parameter in job.objective.parameters())
    if isinstance(job.objective, Denoising) and work >= MIN_WORK:
        rows = job.training.share(job.engine.world_size)
        with torch.random.fork_rng():
            forward = make_probe(job.objective, job.examples.train, job.engine.device, job.seed)
            precision, reason = choose_precision(job.engine.device, job.engine.world_size, forward, rows)
        job.remarks.append(f"engine.precision=auto: {precision}, since {reason}")
    if precision == MIXED:
        set_mixed_precision(job.engine)
    job.config = {**job.config, "engine": {**engine, "precision": precision}}
    job.config_yaml = OmegaConf.to_yaml(OmegaConf.create(job.config))


def check_label_dropout(p_uncond: Any, guidance: Mapping[str, Any], objective: Mapping[str, Any]) -> None:
    """Checks that p_uncond fits the guidance: above 0 exactly where the guidance needs the null condition.

    Raises:
        ConfigError: p_uncond without such guidance, 0 with it, or another objective.p_uncond.
    """
    if not needs_null(guidance):
        if p_uncond or "p_uncond" in changed_keys():
            raise ConfigError(
                f"p_uncond={p_uncond} has no effect with this guidance, which needs no unconditional model; remove it or use "
                "guidance=cfg"
            )
    elif not isinstance(p_uncond, int | float) or isinstance(p_uncond, bool) or not 0 < p_uncond <= 1:
        raise ConfigError(
            f"p_uncond must be in (0, 1] with this guidance, got {p_uncond}; use guidance=none to drop no labels"
        )
    own = objective.get("p_uncond", p_uncond)
    if own != p_uncond:
        raise ConfigError(f"objective.p_uncond={own} follows the root key p_uncond={p_uncond}: set p_uncond")


def check_objective(objective: Objective, training: Training, world_size: int, compiled: bool) -> None:
    """Checks that an objective supports compilation and a divided batch, where they are used.

    Raises:
        ConfigError: it does not.
    """
    name = type(objective).__name__
    if compiled and not objective.compilable:
        raise ConfigError(f"compile must be false with objective {name}, which differentiates its network by its input")
    if not objective.divisible and training.accumulate * world_size > 1:
        raise ConfigError(
            f"training.accumulate and engine.devices must be 1 with objective {name}, whose batch cannot be divided, got "
            f"{training.accumulate} and {world_size}"
        )


def open_training_data(node: dict[str, Any], resumed: Resumed | None) -> tuple[Dataset, dict[str, Any] | None]:
    """The data set of a run, and the line for metrics.jsonl with what changes on resume.

    A resumed run reads its data at their recorded place, or at dataset.path, where they must be the same.

    Arguments:
        node: of the data set.

    Raises:
        ConfigError: missing data, other classes, or other data at dataset.path.
    """
    if resumed is None:
        return build(node, "dataset"), None
    moved = "dataset.path" in changed_keys()
    placed = node if moved else provenance.locate_data(node, resumed.data)
    path = placed.get("path")
    if isinstance(path, str) and "download" not in placed and not Path(path).expanduser().exists():
        recorded = (resumed.data or {}).get("path") or path
        where = f"dataset.path is {path}" if moved else f"its data were in {recorded}"
        raise ConfigError(f"resume: {where}, which does not exist: set dataset.path=<folder>")
    data, note = build(placed, "dataset"), resumed.note
    if resumed.class_names and resumed.class_names != data.class_names:
        raise ConfigError(
            f"resume: the classes of {resumed.folder} are {', '.join(resumed.class_names)}, and those of its data are now "
            f"{', '.join(data.class_names)}: trained classes must keep their names and their order"
        )
    if resumed.checkpoint is None or (changes := provenance.find_changes(resumed.data, data)) is None:
        return data, note
    if moved:
        raise ConfigError(
            f"resume: dataset.path={node['path']} does not hold the data of {resumed.folder}: "
            f"{provenance.describe_changes(changes)}; remove dataset.path if the data have not moved"
        )
    return data, (note or {"images": int(resumed.checkpoint.stem)}) | {"data": changes}
