"""The text of --help: groups with their options, keys with their defaults, and the comments of the YAML files."""

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from omegaconf import MISSING, OmegaConf
from yaml import YAMLError

from ..config.composed import resolve_config
from ..config.diagnose import no_key
from ..config.errors import ConfigError
from ..config.files import ABSENT, ConfigFiles, select_key, to_plain
from ..config.key_comments import Described, describe_file

__all__ = ["format_value", "help_text"]

EXPERIMENT = "experiment"
MIN_WIDTH, MAX_WIDTH = 80, 120  # columns of a page
MEANING = 38  # column of the comments
MAX_LISTED = 12  # options of a nested group; all are listed at the group itself
USAGE = {
    "group=option key=value ...": "overrides; the defaults are below, <x> = the value of x",
    "--help dataset=gmm2d": "the keys of an option",
    "--help dataset": "the options of a group",
    "-m seed=0,1": "one run for each value",
    "--cfg job": "the composed configuration",
    "--config-dir mine": "adds your own options: mine/guidance/steep.yaml is guidance=steep",
}
REFERENCE = re.compile(r"\$\{(?:[\w.]+:)?(?:\$\{)?(?:runtime\.choices\.)?([\w.]+).*\}")  # group 1: the first name


def help_text(files: ConfigFiles, words: Sequence[str], resolved: bool = False) -> str:
    """The help of a command, or of some of its words.

    Arguments:
        words: group=option shows the keys of an option, a group its options, a key its comment; none = everything.
        resolved: whether to resolve `${...}`.

    Raises:
        ConfigError: a word that is neither a key nor a group.
    """
    page = Page(files, [word for word in words if "=" in word], resolved)
    lines = [line for word in words for line in page.format_word(word)] if words else page.format_all()
    return "\n".join(lines).strip("\n") + "\n"


class Page:
    """The help of one composed configuration."""

    def __init__(self, files: ConfigFiles, overrides: Sequence[str], resolved: bool):
        self.files = files
        config = files.compose(overrides)
        self.app = config.hydra.help.app_name
        choices = {place: option for place, option in config.hydra.runtime.choices.items() if "hydra/" not in place}
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        self.tree = resolve_config(own) if resolved else to_plain(own)
        self.main = describe_file(files.path(files.name))
        places = [EXPERIMENT, *self.main.defaults]  # the order of the file; nested groups last
        self.choices = dict(sorted(choices.items(), key=lambda pair: (places + [pair[0]]).index(pair[0])))
        self.comments = dict(self.main.keys)
        self.reasons: dict[str, str] = {}  # package of a choice -> comment of the choice
        self.add_reasons(self.main, "")
        for place in self.choices:
            file, package = self.describe(place), package_of(place)
            self.comments |= {join(package, key): comment for key, comment in file.keys.items() if comment}
            self.add_reasons(file, package)
        self.width = min(max(shutil.get_terminal_size((MAX_WIDTH, 24)).columns, MIN_WIDTH), MAX_WIDTH)

    def describe(self, place: str, option: str | None = None) -> Described:
        """The comments of an option of a group, None = the chosen one."""
        return describe_file(self.files.path(f"{group_of(place)}/{option or self.choices[place]}"))

    def add_reasons(self, file: Described, package: str) -> None:
        """Adds the comments of a defaults list."""
        for choice, (_, comment) in file.defaults.items():
            self.reasons.setdefault(join(package, package_of(choice.strip("/"))), comment)

    def format_all(self) -> Iterator[str]:
        """All of the help: usage, the keys of the command, and every group with the keys of its default."""
        yield from self.wrap(self.main.summary, "")
        yield ""
        for typed, meaning in USAGE.items():
            yield from self.line(f"{self.app} {typed}", meaning, "  ", 50)
        nodes = {package_of(place) for place in self.choices}
        yield from ["", "Keys"]
        for key, value in self.tree.items():
            if key not in nodes:
                yield from self.format_key(key, value)
        yield from ["", "Groups, and the keys of the default options"]
        for place in self.choices:
            if package_of(place).split(".")[0] not in nodes - {
                package_of(place)
            }:  # others are at the group they are in
                yield from ["", *self.format_group(place)]

    def format_word(self, word: str) -> Iterator[str]:
        """The help of one word: an option, a group or a key.

        Raises:
            ConfigError: an unknown key or group.
        """
        key, equals, _ = word.lstrip("+~").partition("=")
        place = next((place for place in self.choices if key in (place, place.replace("/", "."))), None)
        if place is None:
            value = select_key(self.tree, key)
            if value is ABSENT:
                raise ConfigError(no_key(key, [*self.choices, *self.comments], "key or group"))
            yield from self.format_key(key, value)
        elif not equals:
            yield from self.format_options(place)
        else:
            yield from self.line(f"{place}={format_value(self.choices[place])}", self.describe(place).summary, "")
            package = package_of(place)
            yield from (
                self.format_experiment()
                if place == EXPERIMENT
                else self.format_parts(package, select_key(self.tree, package))
            )
        yield ""

    def format_options(self, place: str) -> Iterator[str]:
        """The options of a group, each with the comment at the top of its file."""
        yield from self.line(place, self.reasons.get(package_of(place), ""), "")
        for option in self.files.options(group_of(place)):
            with suppress(YAMLError):
                mark = "* " if option == self.choices[place] else "  "
                yield from self.line(f"{place}={option}", self.describe(place, option).summary, mark)

    def format_group(self, place: str, indent: str = "") -> Iterator[str]:
        """A group: its comment, its options, and the keys of the chosen one."""
        group, option, package = group_of(place), self.choices[place], package_of(place)
        yield from self.line(f"{place}={format_value(option)}", self.reasons.get(package, ""), indent)
        others = [name for name in self.files.options(group) if name != option]
        if others:
            many = "@" in place and len(others) > MAX_LISTED
            yield from self.wrap(f"or any other {group}" if many else f"or {', '.join(others)}", f"{indent}    ")
        if option is not None and place != EXPERIMENT:
            yield from self.format_parts(package, select_key(self.tree, package), f"{indent}  ")

    def format_experiment(self) -> Iterator[str]:
        """The options and keys that an experiment sets."""
        file = self.describe(EXPERIMENT)
        for choice, (option, comment) in file.defaults.items():
            place = choice.strip("/")
            yield from self.line(f"{place}={option}", comment or self.reasons.get(place, ""), "  ")
        for key in file.keys:
            if not isinstance(value := select_key(self.tree, key), dict):
                yield from self.format_key(key, value)

    def format_key(self, key: str, value: Any, indent: str = "  ") -> Iterator[str]:
        """A key with its default and its comment; a choice as its group; a node with its keys."""
        place = next((name for name in self.choices if package_of(name) == key and name != EXPERIMENT), None)
        comment = self.comments.get(key, "")
        if place is not None:
            yield from self.format_group(place, indent)
            if self.choices[place] is not None or not isinstance(value, dict):  # else the node stands in another file
                return
        if isinstance(value, dict):
            if comment:
                yield from self.line(f"{key}={format_value(value)}", comment, indent)
            yield from self.format_parts(key, value, indent)
        else:
            required = "must be given: " if value == MISSING else ""
            yield from self.line(f"{key}={format_value(value)}", required + comment, indent)

    def format_parts(self, key: str, node: dict[str, Any], indent: str = "  ") -> Iterator[str]:
        """The keys of a node."""
        for name, part in node.items():
            if not name.startswith("_"):
                yield from self.format_key(f"{key}.{name}", part, indent)

    def line(self, typed: str, meaning: str, indent: str, column: int = MEANING) -> Iterator[str]:
        """What to type, and its meaning from `column` on, or in the next line where both do not fit."""
        first = f"{indent}{typed}"
        too_long = len(first) + 2 > column
        if not meaning or (too_long and len(first) + 2 + len(meaning) <= self.width):
            yield f"{first}  {meaning}".rstrip()
            return
        lines = textwrap.wrap(meaning, self.width - column, break_long_words=False, break_on_hyphens=False)
        yield first if too_long else f"{first:<{column}}{lines.pop(0)}"
        yield from (" " * column + line for line in lines)

    def wrap(self, text: str, indent: str) -> list[str]:
        """A text in lines of the width of the page."""
        return textwrap.wrap(text, self.width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def join(package: str, key: str) -> str:
    """The dotted key of a package; "" is the root."""
    return f"{package}.{key}" if package else key


def group_of(place: str) -> str:
    """The group of a choice: sampler of sampler@sampler.inner."""
    return place.partition("@")[0]


def package_of(place: str) -> str:
    """The dotted key of a choice: sampler.grid of sampler/grid, sampler.inner of sampler@sampler.inner."""
    group, at, package = place.partition("@")
    if package == "_global_":
        return ""
    return package if at else group.replace("/", ".")


def format_value(value: Any) -> str:
    """A value as typed; a reference to another key as <key>."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(format_value, value))}]"
    if isinstance(value, dict):
        return f"{{{str(value.get('_target_', '...')).rpartition('.')[2]}}}"
    if value == MISSING:
        return "..."
    if isinstance(value, str):
        return REFERENCE.sub(r"<\1>", value) if value.startswith("${") else value
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)
