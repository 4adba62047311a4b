"""diffguide-train: compose the configuration, build the components, train."""

import copy
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from .cli.runner import leave, one_line_errors, run_command, typed
from .config.build import ConfigError, build, check_whole, config_dir, needs_null, run_parent, telling
from .files.run_folders import (
    WriteError,
    convert_write_errors,
    create_version_dir,
    lock_run_dir,
    remove_leftovers,
    write_atomically,
)
from .runtime.signals import Stopped

__all__ = ["main", "train"]

MOST = 2**16  # layers and tensors of a network; the largest published ones have a few thousand


def train(cfg: DictConfig) -> None:
    """One training run: prints the folder it wrote as its last line on stdout."""
    import torch

    from .checkpoints import store as checkpoints
    from .checkpoints.references import check_guides, check_steered, with_guides
    from .checkpoints.validation import at_most
    from .cli.resume import trusted
    from .cli.training_data import open_data, tell
    from .models.protocols import Denoiser, Energy
    from .runtime.engine import kill_launched_processes, launched_by_torchrun
    from .samplers import SamplingError
    from .training.loop import Diverged

    resumed = None
    if cfg.resume is not None:
        from .cli.resume import find

        cfg, resumed = find(cfg)
    check_whole(cfg, "seed", 0)
    for key in ("compile", "dry_run"):
        if not isinstance(cfg[key], bool):
            raise ConfigError(f"{key} must be true or false, got {cfg[key]!r}")
    check_label_dropout(cfg)
    parent = run_parent(cfg, "dry_run" if cfg.dry_run else "train", cfg.name)
    training, engine = build(cfg, "training"), build(cfg, "engine")
    if launched_by_torchrun():
        engine.launch()
    with engine.rank_zero_first():  # who downloads what is missing
        data, note = open_data(cfg, resumed)
    torch.manual_seed(cfg.seed)
    with at_most(MOST, f"it would have more than {MOST} layers and tensors; make it smaller"):
        backbone = build(cfg, "backbone")
    objective, sampler = build(cfg, "objective", backbone, build(cfg, "schedule")), build(cfg, "sampler")
    if cfg.compile and not objective.compilable:
        raise ConfigError(
            f"compile must be false with objective {type(objective).__name__}, which differentiates its network by its input"
        )
    if not objective.divisible and training.accumulate * engine.world_size > 1:
        raise ConfigError(
            f"training.accumulate and engine.devices must be 1 with objective {type(objective).__name__}, whose batch cannot "
            f"be divided, got {training.accumulate} and {engine.world_size}"
        )
    classifier = not isinstance(objective.model, Denoiser | Energy)
    sampled = not classifier and (objective.model.levels is None or len(objective.model.levels) > 1)  # one is a density

    def guide(denoiser, device):
        """The guided denoiser, its own models loaded, if it names any."""
        denoiser.class_names = data.class_names if denoiser.num_classes else ()
        try:
            node, guides = with_guides(guidance, "guidance", device, trusted(cfg))
            check_guides(guides, data.shape, data.class_names)
            if check_steered(denoiser, node):
                return denoiser
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return build({"guidance": node}, "guidance", denoiser)

    guidance = OmegaConf.to_container(cfg.guidance, resolve=True)
    if sampled:
        with telling("sampler"):  # everything that cannot be is told before anything is written
            guided = guide(objective.model, "cpu")
            times = sampler.times(guided)
    with telling("training"):
        share = training.share(engine.world_size)
        training.make_optimizer(objective)
    probe(objective, data)
    if sampled and isinstance(objective.model, Denoiser):
        try:
            try_out(objective, guided, times, data)
        except SamplingError as error:
            raise ConfigError(str(error)) from error
    if engine.is_global_zero:
        tell(data, note)
    if cfg.compile:
        backbone.compile()
    full = "the device's memory is full: raise training.accumulate, lower training.batch_size, or backbone.checkpointing=true"
    if cfg.dry_run:
        from .cli.alternatives import smaller_backbones
        from .training.dry_run import rehearse

        if not engine.is_global_zero:
            return
        smaller = partial(smaller_backbones, "train", objective, data)
        try:
            print(rehearse(engine, objective, data, training, cfg.seed, parent, smaller))
        except torch.OutOfMemoryError as error:
            raise ConfigError(full) from error
        except WriteError as error:
            raise ConfigError(f"output_root: {error}") from error
        return

    def draw(averaged, path: Path) -> None:
        """Samples of each class (`images.training_labels`), the same seeds every time.

        Of a classifier, which makes none, its held-out accuracy against the noise level.
        """
        from .evaluation.classification.metric import write_accuracy

        if classifier:
            return write_accuracy(path, averaged.model, data, cfg.seed, engine.device)
        if not sampled:
            return None
        try:
            picture(averaged, path)
        except SamplingError as error:  # the training is worth more than its pictures
            print(f"no samples: {error}", file=sys.stderr)

    def picture(averaged, path: Path) -> None:
        from .figures.image_grids import choose_training_labels, write_samples
        from .samplers import generate

        guided = guide(averaged.model, engine.device)
        labels = choose_training_labels(guided.num_classes, vectors=len(data.shape) == 1)
        batches = generate(
            guided, sampler, range(len(labels)), labels, data.shape, min(250, max(share, 8)), engine.device
        )
        background = data.train.x if len(data.shape) == 1 else None
        x = torch.cat([x.float().cpu() for x in batches])
        write_samples(path, x, labels, data.class_names, background, whole=True)

    config = OmegaConf.to_container(cfg, resolve=True) | {"resume": None}
    facts = {"images": 0, "class_names": list(data.class_names), "shape": list(data.shape)}
    try:
        checkpoints.check_facts(copy.deepcopy({"config": config, **facts}))
    except checkpoints.CheckpointError as error:
        raise ConfigError(f"what this trains could not be loaded again: {error}") from error
    if not launched_by_torchrun():
        engine.launch()
    with ExitStack() as held:
        folder = claim(engine, parent, config, resumed, held)
        try:
            training.run(engine, objective, data, folder, cfg.seed, config, draw, resumed and resumed.checkpoint, note)
        except Stopped as stopped:
            if not engine.is_global_zero:
                return  # a code other than 0 would make Fabric's launcher kill the first rank
            leave("diffguide-train", folder, stopped)
        except Diverged as error:
            kill_launched_processes(engine)
            files = checkpoints.kept(folder / "checkpoints")
            left = f"the last good checkpoint is {files[-1]}" if files else "there is no checkpoint yet"
            raise ConfigError(f"training: {error}; {left}; a smaller training.learning_rate may help") from error
        except torch.OutOfMemoryError as error:
            raise ConfigError(full) from error
        except (WriteError, SamplingError, checkpoints.CheckpointError) as error:
            kill_launched_processes(engine)
            raise ConfigError(str(error)) from error
    if engine.is_global_zero:
        pictures = sorted((folder / "samples").glob("*.png"))
        print(f"samples: {pictures[-1] if pictures else 'none'}", file=sys.stderr)
        if training.images < training.warmup_images:
            print(
                f"the run ended within its warm-up of {training.warmup_images} images, and its weights have hardly left their "
                f"random start: go on with resume={folder} training.images={20 * training.warmup_images} or so",
                file=sys.stderr,
            )
        print(folder)


def claim(engine, parent: Path, config: dict, resumed, held: ExitStack) -> Path:
    """The run folder, the same on every rank, locked by the first until `held` closes.

    Raises:
        ConfigError: a folder that cannot be written, or that another process is writing.
    """

    def write_config(folder: Path) -> None:
        text = OmegaConf.to_yaml(OmegaConf.create(config))
        write_atomically(folder / "config.yaml", lambda path: path.write_text(text, encoding="utf-8"))
        for part in ("checkpoints", "samples"):
            (folder / part).mkdir(exist_ok=True)
            remove_leftovers(folder / part)

    folder, refusal = None, None
    if engine.is_global_zero:
        try:
            folder = resumed.folder if resumed else create_version_dir(parent, write_config)
            held.enter_context(lock_run_dir(folder))
            if resumed:
                with convert_write_errors(folder / "config.yaml"):
                    write_config(folder)
        except OSError as error:
            refusal = f"{'resume' if resumed else 'output_root'}: {error}"
    folder, refusal = engine.broadcast((folder, refusal))
    if refusal is not None:
        raise ConfigError(refusal) if engine.is_global_zero else SystemExit(1)
    return folder


def probe(objective, data) -> None:
    """One forward pass of two examples: does the network fit the data? And does the objective, judged by the first 256?

    Raises:
        ConfigError: it does not; says what the network said.
    """
    import torch

    from .datasets.base import fetch_examples

    model = objective.model
    classes = model.num_classes
    if classes not in (0, len(data.class_names)):
        key = "num_classes" if model.backbone.num_classes else "out_features"  # classes in, or classes out
        raise ConfigError(f"backbone.{key} is {classes}, but the data have {len(data.class_names)} (0 = unconditional)")
    with telling("objective"):
        objective.check(data.preprocess(fetch_examples(data.train, torch.arange(min(256, len(data.train.y))))[0]))
    x, y = fetch_examples(data.train, torch.tensor([0, 0]))
    try:
        with torch.no_grad():
            objective(data.preprocess(x), y, torch.Generator().manual_seed(0))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"backbone: it does not fit the data, whose examples are {list(data.shape)}: {reason}"
        ) from error


def try_out(objective, guided, times, data) -> None:
    """One evaluation of an objective's model under guidance, at the first level of the sampler, without dropout.

    Raises:
        SamplingError: what the guidance, or a potential of the user's, says to it.
    """
    import torch

    from .randomness import Noise

    noise = Noise(range(2), data.shape, guided.schedule)
    y = torch.zeros(2, dtype=torch.long) if guided.num_classes else None
    objective.eval()
    with torch.no_grad():
        guided.start(noise, times)(noise.normal(times[0], 0), times[0], y)
    objective.train()


def check_label_dropout(cfg: DictConfig) -> None:
    """p_uncond belongs to guidance that needs the null condition.

    Raises:
        ConfigError: p_uncond without such guidance, 0 with it, or an objective that was given another one.
    """
    p_uncond = cfg.get("p_uncond", 0.0)
    given = any(override.split("=")[0].lstrip("+") == "p_uncond" for override in typed())
    if not needs_null(OmegaConf.to_container(cfg.guidance, resolve=True)):
        if given or p_uncond:
            raise ConfigError(
                f"p_uncond={p_uncond} means nothing with this guidance, which drops no label: leave it, or take guidance=cfg"
            )
    elif not isinstance(p_uncond, int | float) or isinstance(p_uncond, bool) or not 0 < p_uncond <= 1:
        raise ConfigError(
            f"p_uncond must be in (0, 1] with this guidance, got {p_uncond}; take guidance=none to drop none"
        )
    if cfg.objective.get("p_uncond", p_uncond) != p_uncond:
        raise ConfigError(
            f"objective.p_uncond={cfg.objective.p_uncond} follows the root's p_uncond={p_uncond}: set that one"
        )


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="train")
def command(cfg: DictConfig) -> None:
    with one_line_errors("diffguide-train", cfg):
        train(cfg)


def main(argv: Sequence[str] | None = None) -> None:
    """The console script `diffguide-train`; argv without the program's name."""
    run_command(command, "diffguide-train", argv)


if __name__ == "__main__":
    main()
