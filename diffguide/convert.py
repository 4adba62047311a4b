"""diffguide-convert: turn published weights into a run folder, or a run into what another library reads."""

from functools import partial

import hydra
from omegaconf import DictConfig

from .cli.runner import resolved_config, run_command
from .config.files import config_dir

__all__ = ["main"]


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="convert")
def command(cfg: DictConfig) -> None:
    """One conversion; the last line on stdout is the folder that it wrote."""
    with resolved_config("diffguide-convert", cfg) as config:
        from .cli.conversion_job import build_conversion_job

        print(build_conversion_job(config).run())


# main(argv): the console script
main = partial(run_command, command, "diffguide-convert", plain_words=("source", "target"))

if __name__ == "__main__":
    main()
