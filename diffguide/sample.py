"""diffguide-sample: load a checkpoint, guide it, sample it."""

import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from .configuration import ConfigError, build, check_whole, config_dir, one_line_errors, run_command, run_parent

__all__ = ["main", "sample"]


def sample(cfg: DictConfig) -> None:
    """One sampling run: prints the folder it wrote as its last line on stdout."""
    import torch

    from . import checkpoints, sampling
    from .denoisers import EvaluationCounter
    from .progress import Progress
    from .runs import claim_version
    from .samplers import generate

    for key, least in {"n": 1, "batch_size": 1, "seed": 0}.items():
        check_whole(cfg, key, least)
    engine = build(cfg, "engine")
    if engine.world_size > 1:
        raise ConfigError("engine.devices: sampling uses one device, got more")
    if OmegaConf.is_missing(cfg, "checkpoint"):
        raise ConfigError(
            "checkpoint is missing: give checkpoint=outputs/train/<name>/v001, the folder of a training run"
        )
    try:
        file = checkpoints.find(cfg.checkpoint)
        loaded = checkpoints.load(file, cfg.weights, engine.device, cfg.trust)
    except checkpoints.CheckpointError as error:
        raise ConfigError(f"checkpoint: {error}") from error
    class_names, shape = loaded.facts["class_names"], loaded.facts["shape"]
    counter = EvaluationCounter(loaded.model)
    guided, sampler = build(cfg, "guidance", counter), build(cfg, "sampler")
    steps = len(sampler.times(guided)) - 1
    try:
        labels = sampling.resolve_labels(OmegaConf.to_container(cfg, resolve=True)["labels"], cfg.n, class_names)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if labels is None and not guided.has_null:
        raise ConfigError(
            "labels=null needs a model that dropped labels in training (guidance=cfg); this one never did"
        )
    seeds = range(cfg.seed, cfg.seed + cfg.n)
    folder = claim_version(run_parent(cfg, "sample", cfg.name or loaded.config["name"]))
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)

    progress = Progress("sampling", cfg.n * steps, "steps")

    def on_step(index: int, x) -> None:
        progress.advance(len(x))
        progress.show(evaluations=counter.evaluations)

    with engine.autocast():
        samples = generate(guided, sampler, seeds, labels, shape, cfg.batch_size, engine.device, on_step)
        samples = torch.cat([batch.float().cpu() for batch in samples])
    progress.close()
    header = {
        "checkpoint": str(file), "checkpoint_sha256": checkpoints.sha256(file), "weights": cfg.weights,
        "guidance": OmegaConf.to_container(cfg.guidance, resolve=True),
        "sampler": OmegaConf.to_container(cfg.sampler, resolve=True),
        "network_evaluations": counter.evaluations / cfg.n,
    }  # fmt: skip
    sampling.write(folder, samples, labels, seeds, class_names, header, loaded.config)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        sampling.record_job(Path(HydraConfig.get().sweep.dir), HydraConfig.get(), folder, header)
    print(f"samples: {folder / 'grid.png'}", file=sys.stderr)
    print(folder)


class ContactSheet(Callback):
    """After a multirun: one picture with a column per run and one table, in a folder beside the runs."""

    def on_multirun_end(self, config: DictConfig, **kwargs) -> None:
        from . import sampling

        folder = sampling.write_sweep(Path(config.hydra.sweep.dir))
        if folder is not None:
            print(folder)


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="sample")
def command(cfg: DictConfig) -> None:
    with one_line_errors("diffguide-sample"):
        sample(cfg)


def main(argv: Sequence[str] | None = None) -> None:
    """The console script `diffguide-sample`; argv without the program's name."""
    run_command(command, "diffguide-sample", argv)


if __name__ == "__main__":
    main()
