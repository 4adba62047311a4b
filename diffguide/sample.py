"""diffguide-sample: load a checkpoint or build an oracle, guide it, sample it."""

import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from .class_names import explain_shadowed_class, resolve_labels
from .cli.model_choice import build_oracle, check_model, model_of
from .cli.multirun import Sweep, record_job
from .cli.runner import leave, one_line_errors, run_command, tidy
from .config.build import ConfigError, build, check_whole, config_dir, run_parent, telling
from .files.run_folders import BusyError, WriteError, create_version_dir, lock_run_dir, remove_leftovers, strict_json
from .runtime.signals import Interrupts, Stopped

__all__ = ["main", "sample"]

MOST = 10**7  # samples of a run, whose labels are a list


def sample(cfg: DictConfig) -> None:
    """One sampling run: prints the folder it wrote as its last line on stdout."""
    from .figures import trajectories
    from .files.shards import ShardError, Shards
    from .sampling import outputs as results
    from .sampling import run as sampling

    begun = None
    if cfg.resume is not None:
        from .cli.resume import find_samples

        cfg, begun = find_samples(cfg)
    check(cfg)
    moved = {} if "oracle" in cfg else OmegaConf.to_container(cfg.get("dataset", OmegaConf.create()))
    unused = () if "oracle" in cfg else ("schedule", "dataset")
    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key not in unused])
    engine = build(cfg, "engine")
    if begun is not None and begun.header is None:
        if engine.is_global_zero:
            shards = Shards(begun.folder / "shards", cfg.n, cfg.batch_size)
            tidy(begun.folder, "all its samples", shards.remove)
        return
    plan = prepare(cfg, engine, begun and begun.file)
    if cfg.png and len(plan.shape) == 1:
        raise ConfigError(f"png=true needs images; {model_of(cfg)} makes vectors of shape {list(plan.shape)}")
    engine.launch()
    with ExitStack() as held:
        folder, header, newest = claim(engine, cfg, plan.source, begun, held, plan.guides)
        if newest != plan.source.file:  # another checkpoint came between the starts of two processes
            plan = prepare(cfg, engine, newest)
        shards = Shards(folder / "shards", cfg.n, cfg.batch_size, sampling.kind(plan.shape))
        filmed = (
            trajectories.choose_trajectories(plan.classes, plan.class_names, plan.shape) if cfg.trajectory else None
        )
        interrupts = held.enter_context(Interrupts(silent=not engine.is_global_zero))
        missing = engine.broadcast(shards.missing_batches())
        try:
            stream = sampling.Stream(engine, plan, shards, folder / "images" if cfg.png else None, filmed)
            stream.run(missing, interrupts)
            if not engine.is_global_zero:
                return
            header, figures = results.merge(plan, shards, folder, header, filmed, interrupts)
        except Stopped as stopped:
            if not engine.is_global_zero:  # a code other than 0 would make Fabric's observer kill the first rank
                return
            leave("diffguide-sample", folder, stopped)
        except (WriteError, ShardError) as error:
            if not engine.is_global_zero:
                return
            if begun is None and len(shards.missing_batches()) == len(shards.firsts):
                shutil.rmtree(folder, ignore_errors=True)  # nothing to resume
            raise ConfigError(str(error)) from error
    background = plan.background and plan.background.to_json()
    facts = {
        "shape": list(plan.shape),
        "class_names": plan.class_names,
        "background": background,
        "figures": figures,
        "moved": moved,
    }
    record_job({"folder": str(folder), **facts, "header": header})
    if figures:
        print(", ".join(f"{name} {value:.4g}" for name, value in figures.items()), file=sys.stderr)
    print(f"samples: {folder / 'grid.png'}", file=sys.stderr)
    print(folder)


def check(cfg: DictConfig) -> None:
    """What can be said before anything is built.

    Raises:
        ConfigError: a value of the wrong type, neither a checkpoint nor an oracle, or keys of the one beside the other.
    """
    for key, least in {"n": 1, "batch_size": 1, "seed": 0}.items():
        check_whole(cfg, key, least)
    if cfg.n > MOST:
        raise ConfigError(f"n must be at most 10^7 samples a run, got {cfg.n}: make several runs with other seeds")
    for key in ("png", "trajectory"):
        if not isinstance(cfg[key], bool):
            raise ConfigError(f"{key} must be true or false, got {cfg[key]!r}")
    if OmegaConf.is_list(cfg.checkpoint):
        raise ConfigError("checkpoint must be one run, got a list: sample several with -m checkpoint=a,b")
    if "oracle" not in cfg and not isinstance(cfg.checkpoint, str):
        raise ConfigError(
            "checkpoint is missing: give checkpoint=outputs/train/<name>/v001, the folder of a training run, or "
            "oracle=<name> to sample a law that is known exactly, see --help"
        )
    if "oracle" not in cfg and "," in cfg.checkpoint and not Path(cfg.checkpoint).exists():
        raise ConfigError(
            f"checkpoint: there is no {cfg.checkpoint}; sample several with -m checkpoint={cfg.checkpoint}"
        )
    check_model(cfg)
    if "oracle" not in cfg and "dataset" in cfg:
        if HydraConfig.get().mode != RunMode.MULTIRUN or list(cfg.dataset) != ["path"]:
            raise ConfigError(
                "dataset is of oracle=empirical, a checkpoint needs none to be sampled: leave it out; dataset.path says where "
                "the data of a checkpoint lie now, for the trade-off of a sweep (-m)"
            )


def prepare(cfg: DictConfig, engine, file: Path | None):
    """What to sample; file None = the checkpoint's one that `checkpoint` means.

    Raises:
        ConfigError: a model, guidance, sampler and labels that do not go together.
    """
    from .checkpoints import store as checkpoints
    from .checkpoints.references import check_guides, check_steered, with_guides
    from .cli.resume import trusted
    from .evaluation.probe import check_conditioning
    from .models.evaluation_counters import count_evaluations
    from .sampling import run as sampling
    from .sampling import sources

    if "oracle" in cfg:
        source = build_oracle(cfg, engine.device)
    else:
        try:
            file = checkpoints.find(file or cfg.checkpoint)
            source = sources.Checkpoint(file, cfg.weights, engine.device, trusted(cfg))
        except checkpoints.CheckpointError as error:
            raise ConfigError(f"checkpoint: {error}") from error
    counter = count_evaluations(source.model)
    try:
        node = OmegaConf.to_container(cfg.guidance, resolve=True)
        node, guides = with_guides(node, "guidance", engine.device, trusted(cfg))
        check_guides(guides, source.shape, source.class_names)
        alone = check_steered(source.model, node)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    guided = counter if alone else build({"guidance": node}, "guidance", counter)
    sampler = build(cfg, "sampler")
    if not source.class_names and guided.num_classes:  # a generator without classes, steered by what has them
        named = [guide.class_names for guide in guides if len(guide.class_names) == guided.num_classes]
        source.class_names = named[0] if named else [str(index) for index in range(guided.num_classes)]
    with telling("sampler"):
        sampler.times(guided)
    if source.oracle is None and getattr(guided, "uses_condition", False):
        with telling("guidance"):
            check_conditioning(source.model, source.shape, engine.device)
    with telling("labels"):
        asked = OmegaConf.to_container(cfg, resolve=True)["labels"]
        labels = resolve_labels(asked, cfg.n, source.class_names)
    if labels is None and not guided.has_null:
        which = "this one" if not source.model.has_null else "the guide"
        raise ConfigError(
            f"labels=null needs a model that dropped labels in training (guidance=cfg); {which} never did"
        )
    notes = (
        source.note,
        sampling.idle(guided, sampler, labels is not None),
        explain_shadowed_class(asked, source.class_names),
    )
    for note in notes:
        if note and engine.is_global_zero:
            print(note, file=sys.stderr)
    background = source.background(labels or [-1]) if len(source.shape) == 1 else None
    seeds = range(cfg.seed, cfg.seed + cfg.n)
    return sampling.Plan(source, guided, counter, sampler, seeds, labels, background, guides)


def claim(
    engine, cfg: DictConfig, source, begun, held: ExitStack, guides
) -> tuple[Path, dict, Path | None]:  # fmt: skip
    """The run folder, the manifest's header and the checkpoint file, if any: the first rank's, locked until `held` closes.

    Raises:
        ConfigError: a folder that cannot be written, or that another process is writing.
    """
    from .files.shards import START_FILE
    from .sampling import run as sampling

    def fill(folder: Path) -> None:
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        (folder / "shards").mkdir()
        (folder / "shards" / START_FILE).write_text(strict_json(header) + "\n", encoding="utf-8")

    stored = {"guides": {guide.key: guide.identity() for guide in guides}} if guides else {}
    folder, header, file, refusal = None, begun and begun.header, source.file, None
    if begun is not None and (now := stored.get("guides")) != (then := header.get("guides")):
        raise ConfigError(f"resume: {begun.folder} was steered by {then}, and it would now be by {now}")
    if engine.is_global_zero:
        try:
            if begun is None:
                header = {
                    **source.identity(),
                    "guidance": OmegaConf.to_container(cfg.guidance, resolve=True), **stored,
                    "sampler": OmegaConf.to_container(cfg.sampler, resolve=True),
                    "precision": cfg.engine.precision if source.oracle is None else str(source.dtype)[6:],
                    "device": str(engine.device),
                    "network_evaluations": None, "potential_evaluations": None, "n": cfg.n, "versions": sampling.versions(),
                }  # fmt: skip
                default = HydraConfig.get().runtime.choices["oracle"] if source.file is None else source.config["name"]
                folder = create_version_dir(run_parent(cfg, "sample", cfg.name or default), fill)
            else:
                folder = begun.folder
            held.enter_context(lock_run_dir(folder))
            if (folder / "samples.npz").exists():
                raise BusyError(f"{folder} was finished by another process")
            (folder / "shards").mkdir(exist_ok=True)
            if cfg.png:
                (folder / "images").mkdir(exist_ok=True)
            for part in filter(Path.is_dir, (folder, folder / "shards", folder / "images")):
                remove_leftovers(part)
        except (OSError, ConfigError) as error:
            refusal = (
                str(error) if isinstance(error, ConfigError) else f"{'resume' if begun else 'output_root'}: {error}"
            )
    folder, header, file, refusal = engine.broadcast((folder, header, file, refusal))
    if refusal is not None:
        raise ConfigError(refusal) if engine.is_global_zero else SystemExit(0)
    return folder, header, file


class ContactSheet(Sweep):
    """After a multirun: one picture with a column per run and one table, in a folder beside the runs."""

    def finish(self, jobs: list[dict]) -> None:
        from .sampling.sweep import write_sweep

        if jobs:
            print(write_sweep(jobs))


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="sample")
def command(cfg: DictConfig) -> None:
    with one_line_errors("diffguide-sample", cfg):
        sample(cfg)


def main(argv: Sequence[str] | None = None) -> None:
    """The console script `diffguide-sample`; argv without the program's name."""
    run_command(command, "diffguide-sample", argv)


if __name__ == "__main__":
    main()
