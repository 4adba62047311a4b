"""Quotes between a shell, Hydra's grammar and names that hold anything: spaces, =, commas, letters beyond ASCII."""

import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

__all__ = ["quote_odd", "quoted"]

PATHS = {"dataset.path", "dataset.root", "checkpoint", "resume", "output_root", "name"}  # values that may hold anything
PLAIN = re.compile(r"[\w./:+-]+", re.ASCII)  # values that need no quotes
FOREIGN = re.compile(r"[^\[\]{},:\s]*[^\x00-\x7f\[\]{},:\s][^\[\]{},:\s]*")  # words that are not all ASCII


def quoted(override: str) -> str:
    """`key=value` as one can type it into a shell, whatever characters the value has."""
    key, _, value = override.partition("=")
    return shlex.quote(override if PLAIN.fullmatch(value) else f"{key}={literal(value)}")


def literal(value: str) -> str:
    """A text in the quotes of Hydra's grammar, in which a backslash counts only before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), value) + "'"


def quote_odd(argv: Sequence[str]) -> list[str]:
    """The arguments, with what Hydra's grammar would trip over in quotes: `dataset.path=my = images, 2`, `labels=[dögs]`.

    In a multirun a comma separates values, as everywhere.
    """
    sweep, parser = not {"-m", "--multirun"}.isdisjoint(argv), OverridesParser.create()
    result = []
    for text in argv:
        key, _, value = text.partition("=")
        if key in PATHS and value and value[0] not in "'\"" and not PLAIN.fullmatch(value):
            try:
                plain = sweep or not parser.parse_override(text).is_sweep_override()
            except HydraException:
                plain = False
            text = text if plain else f"{key}={literal(value)}"
        elif not value.isascii() and not {"'", '"'} & set(value):
            text = f"{key}={FOREIGN.sub(lambda match: literal(match[0]), value)}"
        result.append(text)
    return result
