"""diffguide-train: compose the configuration, build the components, train."""

from functools import partial

import hydra
from omegaconf import DictConfig

from .cli.runner import resolved_config, run_command
from .config.files import config_dir

__all__ = ["main"]


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="train")
def command(cfg: DictConfig) -> None:
    """One training run; the last line on stdout is its folder."""
    with resolved_config("diffguide-train", cfg) as config:
        from .cli.training_run import run_training

        folder = run_training(config)
        if folder is not None:
            print(folder)


main = partial(run_command, command, "diffguide-train")  # main(argv): the console script

if __name__ == "__main__":
    main()
