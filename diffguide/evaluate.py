"""diffguide-eval: load checkpoints, measure them, write figures with standard errors."""

from functools import partial

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from .cli.multirun import Sweep, record_job
from .cli.runner import resolved_config, run_command
from .config.files import config_dir

__all__ = ["main"]


class Comparison(Sweep):
    """After a multirun: writes a table and its plots, in a folder beside the runs."""

    def finish(self, jobs: list[dict]) -> None:
        from .figures.tables import write_comparison

        if jobs:
            runs = [{"folder": folder, "overrides": job["overrides"]} for job in jobs for folder in job["folders"]]
            print(write_comparison(runs))


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="evaluate")
def command(cfg: DictConfig) -> None:
    """One metric of one or several checkpoints; prints the folder of each on stdout, that of their table last."""
    with resolved_config("diffguide-eval", cfg) as config:
        from .cli.evaluation_job import build_evaluation_jobs

        folders = []
        for job in build_evaluation_jobs(config):
            folders.append(str(job.run()))
            print(folders[-1])
        if folders:
            record_job({"folders": folders})
        if len(folders) > 1 and HydraConfig.get().mode != RunMode.MULTIRUN:
            from .figures.tables import write_comparison

            print(write_comparison([{"folder": folder, "overrides": {}} for folder in folders]))


main = partial(run_command, command, "diffguide-eval", config_name="evaluate")  # main(argv): the console script

if __name__ == "__main__":
    main()
