"""Options of Hydra's own groups, hydra/launcher and the like: some come with a package of their own."""

import difflib

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override

__all__ = ["wrong_plugin"]

PACKAGES = {
    "hydra/launcher": {
        "joblib": "hydra-joblib-launcher", "submitit_local": "hydra-submitit-launcher",
        "submitit_slurm": "hydra-submitit-launcher", "ray": "hydra-ray-launcher", "ray_aws": "hydra-ray-launcher",
        "rq": "hydra-rq-launcher",
    },
    "hydra/sweeper": {
        "optuna": "hydra-optuna-sweeper", "ax": "hydra-ax-sweeper", "nevergrad": "hydra-nevergrad-sweeper",
    },
    "hydra/job_logging": {"colorlog": "hydra_colorlog"},
    "hydra/hydra_logging": {"colorlog": "hydra_colorlog"},
}  # fmt: skip


def wrong_plugin(override: Override, loader: ConfigLoader) -> str | None:
    """What is wrong with the choice of an option of Hydra's, in a sentence; None for any other override."""
    group, value = override.key_or_group, str(override.value())
    if not group.startswith("hydra/"):
        return None
    options = loader.get_group_options(group)
    if not options:
        groups = [f"hydra/{name}" for name in loader.list_groups("hydra")]
        near = difflib.get_close_matches(group, groups, 1)
        return f"there is no group {group}" + (
            f"; nearest: {near[0]}" if near else f"; Hydra's are {', '.join(groups)}"
        )
    if value in options:
        return None
    packages = PACKAGES.get(group, {})
    if value in packages:
        return f"{group}={value} comes with a package of its own: pip install {packages[value]}"
    near = difflib.get_close_matches(value, [*options, *packages], 1)
    more = "".join(f"; {name} with pip install {package}" for name, package in packages.items())
    return f"there is no option {group}={value}{f'; nearest: {near[0]}' if near else ''}; options: {', '.join(options)}{more}"
