"""Quotes between a shell, Hydra's grammar and names that hold anything: spaces, =, commas, letters beyond ASCII."""

import re
import shlex
from collections.abc import Sequence
from contextlib import suppress

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

__all__ = ["literal", "quote_odd", "quoted"]

PATHS = {"dataset.path", "dataset.root", "checkpoint", "resume", "output_root", "name"}  # values that may hold anything
PLAIN = re.compile(r"[\w./:+-]+", re.ASCII)  # values that need no quotes
LIST, MAPPING = (  # elements that are not all ASCII, and what separates them
    re.compile(rf"[^{ends}]*[^\x00-\x7f{ends}][^{ends}]*") for ends in (r"\[\]{},", r"\[\]{},:")
)


def quoted(override: str) -> str:
    """`key=value` as one can type it into a shell, whatever characters the value has."""
    key, _, value = override.partition("=")
    plain = PLAIN.fullmatch(value) and reads_as_text(override, sweep=False)
    return shlex.quote(override if plain else f"{key}={literal(value)}")


def literal(value: str) -> str:
    """A text in the quotes of Hydra's grammar, in which a backslash counts only before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), value) + "'"


def quote_odd(argv: Sequence[str]) -> list[str]:
    """The arguments, with what Hydra's grammar would trip over in quotes: `dataset.path=my = images, 2`, `labels=[dögs]`.

    In a multirun a comma separates values, as everywhere.
    """
    sweep, result = not {"-m", "--multirun"}.isdisjoint(argv), []
    for text in argv:
        key, _, value = text.partition("=")
        if key in PATHS and value and value[0] not in "'\"":
            text = text if reads_as_text(text, sweep) or is_list(text) else f"{key}={literal(value)}"
        elif not value.isascii() and not {"'", '"'} & set(value):
            elements = MAPPING if "{" in value else LIST
            ours = f"{key}={elements.sub(lambda match: literal(match[0].strip()), value)}"
            with suppress(HydraException):  # what stays wrong is told as it was typed
                OverridesParser.create().parse_override(ours)
                text = ours
        result.append(text)
    return result


def reads_as_text(override: str, sweep: bool) -> bool:
    """Whether Hydra takes a value as the text that was typed (or as null), and not as a number, a list, several values."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    if parsed.is_sweep_override():
        return sweep
    return parsed.value() is None or parsed.value() == override.partition("=")[2]


def is_list(override: str) -> bool:
    """Whether Hydra reads several checkpoints."""
    with suppress(HydraException):
        parsed = OverridesParser.create().parse_override(override)
        return override.startswith("checkpoint=[") and isinstance(parsed.value(), list)
    return False
