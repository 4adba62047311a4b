"""diffguide-sample: load a checkpoint or build an oracle, wrap it in guidance, sample it."""

import sys
from functools import partial

import hydra
from omegaconf import DictConfig

from .cli.multirun import Sweep, record_job
from .cli.runner import resolved_config, run_command
from .config.files import config_dir

__all__ = ["main"]


class ContactSheet(Sweep):
    """After a multirun: writes a picture with a column per run and a table, in a folder beside the runs."""

    def finish(self, jobs: list[dict]) -> None:
        from .sampling.sweep import write_sweep

        if jobs:
            print(write_sweep(jobs))


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="sample")
def command(cfg: DictConfig) -> None:
    """One sampling run; the last line on stdout is its folder."""
    with resolved_config("diffguide-sample", cfg) as config:
        from .cli.sampling_job import build_sampling_job
        from .sampling.job import preflight_sampling

        job = build_sampling_job(config)
        if job is None:
            return
        preflight_sampling(job)
        sampled = job.run()
        if sampled is None:
            return
        folder, header, figures = sampled
        record_job({"folder": str(folder), **job.facts, "figures": figures, "header": header})
        if figures:
            print(", ".join(f"{name} {value:.4g}" for name, value in figures.items()), file=sys.stderr)
        print(f"samples: {folder / 'grid.png'}", file=sys.stderr)
        print(folder)


main = partial(run_command, command, "diffguide-sample")  # main(argv): the console script

if __name__ == "__main__":
    main()
