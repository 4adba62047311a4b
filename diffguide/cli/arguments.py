"""The flags and overrides of a command line."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from os.path import abspath
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from ..config.errors import ConfigError
from ..config.files import ConfigFiles, config_dir
from ..config.quoting import parse_override
from ..version import __version__

__all__ = ["FLAGS", "changed_keys", "files_of", "read_flags", "task_overrides"]

FLAGS: dict[tuple[str, ...], dict[str, Any]] = {  # of Hydra
    ("--help", "-h"): {"action": "store_true"},
    ("--hydra-help",): {"action": "store_true"},
    ("--version",): {"action": "version", "version": f"diffguide {__version__}"},
    ("--cfg", "-c"): {"choices": ["job", "hydra", "all"]},
    ("--resolve",): {"action": "store_true"},
    ("--package", "-p"): {},
    ("--run", "-r"): {"action": "store_true"},
    ("--multirun", "-m"): {"action": "store_true"},
    ("--shell-completion", "-sc"): {"action": "store_true"},
    ("--config-path", "-cp"): {},
    ("--config-name", "-cn"): {},
    ("--config-dir", "-cd"): {},
    ("--experimental-rerun",): {},
    ("--info", "-i"): {
        "nargs": "?",
        "const": "all",
        "choices": ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"],
    },
}


class FlagParser(ArgumentParser):
    """A parser of FLAGS and overrides that raises ConfigError instead of printing its usage."""

    def __init__(self) -> None:
        super().__init__(add_help=False)
        for names, options in FLAGS.items():
            self.add_argument(*names, **options)
        self.add_argument("overrides", nargs="*")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def task_overrides() -> list[str]:
    """The overrides of this job, with `${...}` as written."""
    return [str(word) for word in OmegaConf.to_container(HydraConfig.get().overrides.task) or ()]


def changed_keys() -> dict[str, Override]:
    """The overrides of this job by their dotted keys or groups."""
    overrides = filter(None, map(parse_override, task_overrides()))
    return {str(override.key_or_group).replace("/", "."): override for override in overrides}


def read_flags(words: Sequence[str]) -> tuple[Namespace, list[str]]:
    """The flags of a command line, and its words with the flags first, which Hydra requires.

    Raises:
        ConfigError: an unknown flag, or a flag without its value.
        SystemExit: after --version.
    """
    flags = FlagParser().parse_intermixed_args(words)
    return flags, [*format_flags(flags), *flags.overrides]


def format_flags(flags: Namespace) -> Iterator[str]:
    """The words that set these flags."""
    for names in FLAGS:
        value = getattr(flags, names[0].strip("-").replace("-", "_"), None)
        if value not in (None, False):
            yield names[0]
            yield from [] if value is True else [value]


def files_of(flags: Namespace, config_name: str) -> ConfigFiles:
    """The configuration files of a command line.

    Arguments:
        config_name: default of --config-name.
    """
    folders = [flags.config_path or config_dir(), *([flags.config_dir] if flags.config_dir else [])]
    return ConfigFiles(flags.config_name or config_name, [abspath(folder) for folder in folders])
