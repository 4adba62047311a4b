"""Quotes for a shell and for Hydra's grammar, around values with spaces, =, commas or letters beyond ASCII."""

import re
import shlex
from collections.abc import Sequence
from contextlib import suppress

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

__all__ = ["PATHS", "explain_unreadable", "literal", "parse_override", "quote", "quote_odd"]

PATHS = {
    "dataset.path",
    "dataset.root",
    "checkpoint",
    "resume",
    "output_root",
    "name",
    "source",
    "target",
}  # values are paths or names
PLAIN = re.compile(r"[\w./:+-]+", re.ASCII)  # a value that needs no quotes
QUOTES = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
LIST, MAPPING = (  # a quoted text, or an element that is not all ASCII
    re.compile(rf"{QUOTES}|[^{ends}]*[^\x00-\x7f{ends}][^{ends}]*") for ends in (r"\[\]{},'\"", r"\[\]{},:'\"")
)
ELEMENT = re.compile(rf"(?:{QUOTES}|[^\[\],'\"])+")  # of a flat list
CLASS_ARGUMENTS = ("labels", "condition", "conditions")  # arguments with class names, or indices: labels.index=[10]
INDEX = re.compile(rf"(.*\b(?:{'|'.join(CLASS_ARGUMENTS)}))\.index=")


def parse_override(text: str) -> Override | None:
    """Parses `key=value`; None where it does not follow Hydra's grammar."""
    with suppress(HydraException):
        return OverridesParser.create().parse_override(text)
    return None


def quote(override: str) -> str:
    """`key=value` quoted for a shell and for Hydra."""
    key, _, value = override.partition("=")
    plain = PLAIN.fullmatch(value) and reads_as_text(override, sweep=False)
    return shlex.quote(override if plain else f"{key}={literal(value)}")


def literal(value: str) -> str:
    """A text in quotes for Hydra's grammar, where a backslash escapes only a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), value) + "'"


def quote_odd(argv: Sequence[str]) -> list[str]:
    """The arguments, with quotes around values that Hydra cannot parse: `dataset.path=my = images, 2`, `labels=[dögs]`.

    In a multirun a comma separates values.
    """
    sweep = not {"-m", "--multirun"}.isdisjoint(argv)
    result = []
    for text in argv:
        text = with_index(text)
        key, _, value = text.partition("=")
        if key in PATHS and value and value[0] not in "'\"":
            text = text if reads_as_text(text, sweep) else f"{key}={literal(value)}"
        elif not value.isascii():
            elements = MAPPING if "{" in value else LIST
            quoted = f"{key}={elements.sub(lambda match: quote_element(match[0]), value)}"
            text = quoted if parse_override(quoted) else text  # an invalid text is reported as typed
        result.append(text)
    return result


def quote_element(element: str) -> str:
    """An element of a list in quotes; it may have them already."""
    return element if element[0] in "'\"" else literal(element.strip())


def with_index(override: str) -> str:
    """`labels.index=[10]` as `labels={index:[10]}`, a class by its index; any other override unchanged."""
    index, parsed = INDEX.match(override), parse_override(override)
    if index is None or parsed is None:
        return override
    values = parsed.sweep_string_iterator() if parsed.is_discrete_sweep() else [override[index.end() :]]
    return f"{index[1]}=" + ",".join(f"{{index:{value}}}" for value in values)


def explain_unreadable(override: str, error: Exception) -> str:
    """The message for an override that does not follow Hydra's grammar.

    Arguments:
        error: of Hydra.
    """
    key, equals, value = override.partition("=")
    if not equals and not override.startswith("~"):
        return f"cannot read {override!r}: write {override}=<value>"
    if key != key.strip():
        return f"cannot read {override!r}: no spaces around =, write {key.strip()}={value.strip()}"
    flat = value[:1] + value[-1:] == "[]" and not ELEMENT.sub("", value[1:-1]).strip(" ,")
    elements = [match[0].strip() for match in ELEMENT.finditer(value)] if flat else []
    odd = [element for element in elements if parse_override(f"{key}=[{element}]") is None]
    whole = f"{key}=[{','.join(literal(element) if element in odd else element for element in elements)}]"
    if odd and parse_override(whole):
        return f"{key}: cannot read {odd[0]!r} in {value}: put it in quotes, {quote_for_shell(whole)}"
    reason = [line for line in str(error).splitlines() if line.strip(" ^") and "https" not in line][-1]
    reason = reason.split(" expecting")[0].replace("'<EOF>'", "at its end")
    if key.strip("+~") and parse_override(f"{key}=1") is None:
        reason = f"{key} has a character that a key cannot have"
    elif "Exception" in reason:  # Hydra has no name for the character
        reason = "a character that needs quotes"
    return (
        f"cannot read {override!r}: {reason}; a list is key=[a,b], and a value with spaces or commas is key=\"'a, b'\""
    )


def quote_for_shell(text: str) -> str:
    """A text in quotes for a shell, double ones where possible."""
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'


def reads_as_text(override: str, sweep: bool) -> bool:
    """Whether Hydra reads a path as typed: as this text, null, a list of checkpoints, or several values of a sweep."""
    parsed = parse_override(override)
    if parsed is None:
        return False
    if parsed.is_sweep_override():
        return sweep
    value, typed = parsed.value(), override.partition("=")[2]
    return value is None or value == typed or (override.startswith("checkpoint=[") and isinstance(value, list))
