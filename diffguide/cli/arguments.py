"""The words of a command line, before and after Hydra has read them."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ..config.build import ConfigError
from ..version import __version__

__all__ = ["flag_parser", "read_flags", "typed"]


def typed() -> list[str]:
    """The overrides of this job as they were typed; iterating over Hydra's list would resolve `${...}`."""
    return OmegaConf.to_container(HydraConfig.get().overrides.task)


def flag_parser() -> ArgumentParser:
    """Hydra's parser of flags, which raises ConfigError in place of printing its usage, and knows our version."""
    parser = get_args_parser()
    for action in parser._actions:
        if action.dest == "version":
            action.version = f"diffguide {__version__}"
    parser.error = refuse
    return parser


def refuse(message: str) -> None:
    """What the parser of flags calls."""
    raise ConfigError(message)


def read_flags(words: Sequence[str]) -> tuple[Namespace, list[str]]:
    """The flags of a command line, wherever they stand, and its words with the flags first, as Hydra wants them.

    Raises:
        ConfigError: a flag that there is not, or without its value.
        SystemExit: after the version was printed.
    """
    parser = flag_parser()
    flags = parser.parse_intermixed_args(words)
    return flags, [*written(parser, flags), *flags.overrides]


def written(parser: ArgumentParser, flags: Namespace) -> Iterator[str]:
    """The words that set these flags."""
    for action in parser._actions:
        value = getattr(flags, action.dest, None)
        if action.option_strings and value not in (None, False):
            yield action.option_strings[0]
            yield from [] if value is True else [value]
