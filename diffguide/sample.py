"""diffguide-sample: load a checkpoint, guide it, sample it."""

import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig, OmegaConf

from .commands import Sweep, one_line_errors, record_job, run_command
from .configuration import ConfigError, build, check_whole, config_dir, run_parent, telling

__all__ = ["main", "sample"]

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # what autocast gives; weights stay float32


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
    if OmegaConf.is_missing(cfg, "checkpoint") or not isinstance(cfg.checkpoint, str):
        raise ConfigError(
            "checkpoint is missing: give checkpoint=outputs/train/<name>/v001, the folder of a training run"
        )
    engine = build(cfg, "engine")
    if engine.world_size > 1:
        raise ConfigError("engine.devices: sampling uses one device, got more")
    if cfg.engine.precision not in PRECISIONS:
        raise ConfigError(f"engine.precision must be one of {', '.join(PRECISIONS)}, got {cfg.engine.precision}")
    try:
        file = checkpoints.find(cfg.checkpoint)
        loaded = checkpoints.load(file, cfg.weights, engine.device, cfg.trust or ())
    except checkpoints.CheckpointError as error:
        raise ConfigError(f"checkpoint: {error}") from error
    class_names, shape = loaded.facts["class_names"], loaded.facts["shape"]
    counter = EvaluationCounter(loaded.model)
    guided, sampler = build(cfg, "guidance", counter), build(cfg, "sampler")
    if not isinstance(guided, sampler.needs):
        model = type(loaded.model).__name__
        raise ConfigError(
            f"sampler={cfg.sampler._target_} needs a {sampler.needs.__name__}; this checkpoint holds a {model}"
        )
    with telling("sampler"):
        steps = len(sampler.times(guided)) - 1
    with telling("labels"):
        labels = sampling.resolve_labels(OmegaConf.to_container(cfg, resolve=True)["labels"], cfg.n, class_names)
    if labels is None and not guided.has_null:
        raise ConfigError(
            "labels=null needs a model that dropped labels in training (guidance=cfg); this one never did"
        )
    seeds = range(cfg.seed, cfg.seed + cfg.n)
    with telling("output_root"):
        parent = run_parent(cfg, "sample", cfg.name or loaded.config["name"])
        folder = claim_version(parent, lambda folder: OmegaConf.save(cfg, folder / "config.yaml", resolve=True))

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
        "precision": cfg.engine.precision, "device": str(engine.device),
        "network_evaluations": counter.evaluations / cfg.n,
    }  # fmt: skip
    sampling.write(folder, samples, labels, seeds, class_names, header, loaded.config)
    record_job(
        {"folder": str(folder), "class_names": class_names, "dataset": loaded.config["dataset"], "header": header}
    )
    print(f"samples: {folder / 'grid.png'}", file=sys.stderr)
    print(folder)


class ContactSheet(Sweep):
    """After a multirun: one picture with a column per run and one table, in a folder beside the runs."""

    def finish(self, jobs: list[dict]) -> None:
        from . import sampling

        if jobs:
            print(sampling.write_sweep(jobs))


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="sample")
def command(cfg: DictConfig) -> None:
    with one_line_errors("diffguide-sample", cfg):
        sample(cfg)


def main(argv: Sequence[str] | None = None) -> None:
    """The console script `diffguide-sample`; argv without the program's name."""
    run_command(command, "diffguide-sample", argv)


if __name__ == "__main__":
    main()
