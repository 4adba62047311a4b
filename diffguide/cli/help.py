"""What --help prints: groups with their options, and keys with their defaults and the comments of the YAML files."""

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from omegaconf import MISSING, OmegaConf
from yaml import YAMLError

from ..config.build import ConfigError
from ..config.diagnose import no_key
from ..config.files import ConfigFiles, to_plain
from ..config.key_comments import Described, describe_file

__all__ = ["format_value", "help_text"]

RECIPES = "experiment"
ABSENT = object()
MIN_WIDTH, MAX_WIDTH = 80, 120  # columns of a page
MEANING = 38  # column in which the meaning of what is typed begins
MAX_LISTED = 12  # options, of a group that stands elsewhere with all of them
USAGE = {
    "group=option key=value ...": "everything has a default: those below, <x> = what x is",
    "--help dataset=gmm2d": "the keys of an option",
    "--help dataset": "the options of a group, in words",
    "-m seed=0,1": "a run for each value",
    "--cfg job": "what a command line composes to",
    "--config-dir mine": "adds options of your own: mine/guidance/steep.yaml is guidance=steep",
}
REFERENCE = re.compile(r"\$\{(?:[\w.]+:)?(?:\$\{)?(?:runtime\.choices\.)?([\w.]+).*\}")  # its first name


def help_text(files: ConfigFiles, words: Sequence[str], resolve: bool = False) -> str:
    """The help of a command, or of what is asked for.

    Arguments:
        words: behind --help: options, group=option, whose keys are shown; keys; groups, whose options are shown.
        resolve: whether values that follow others are shown as what they are.

    Raises:
        ConfigError: a word that is neither.
    """
    page = Page(files, [word for word in words if "=" in word], resolve)
    lines = [line for word in words for line in page.format_word(word)] if words else page.format_all()
    return "\n".join(lines).strip("\n") + "\n"


class Page:
    """The help of one composed configuration."""

    def __init__(self, files: ConfigFiles, overrides: Sequence[str], resolve: bool):
        self.files = files
        config = files.compose(overrides)
        self.app = config.hydra.help.app_name
        choices = {place: option for place, option in config.hydra.runtime.choices.items() if "hydra/" not in place}
        keys = [str(key) for key in config if key != "hydra"]
        self.tree = to_plain(OmegaConf.masked_copy(config, keys))
        if resolve:
            self.tree = OmegaConf.to_container(OmegaConf.create({key: config[key] for key in keys}), resolve=True)
        self.main = describe_file(files.path(files.name))
        places = [RECIPES, *self.main.defaults]  # in the order of the file, options of options behind
        self.choices = dict(sorted(choices.items(), key=lambda pair: (places + [pair[0]]).index(pair[0])))
        self.comments = dict(self.main.keys)
        self.reasons: dict[str, str] = {}  # package of a choice -> what is chosen there
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
        """Takes over what a file says about the choices that it makes."""
        for choice, (_, comment) in file.defaults.items():
            self.reasons.setdefault(join(package, package_of(choice.strip("/"))), comment)

    def format_all(self) -> Iterator[str]:
        """Everything: how it is typed, the command's own keys, and every group with the keys of its default."""
        yield from self.wrap(self.main.says, "")
        yield ""
        for typed, meaning in USAGE.items():
            yield from self.line(f"{self.app} {typed}", meaning, "  ", 50)
        nodes = {package_of(place).split(".")[0] for place in self.choices}
        yield from ["", "Keys"]
        for key, value in self.tree.items():
            if key not in nodes:
                yield from self.format_key(key, value)
        yield from ["", "Groups, and the keys of what is chosen"]
        for place in self.choices:
            if "." not in package_of(place):
                yield from ["", *self.format_group(place)]

    def format_word(self, word: str) -> Iterator[str]:
        """What one word behind --help asks for: an option, a group or a key.

        Raises:
            ConfigError: none of them.
        """
        key, equals, _ = word.lstrip("+~").partition("=")
        place = next((place for place in self.choices if key in (place, place.replace("/", "."))), None)
        if place is None:
            value = self.value_at(key)
            if value is ABSENT:
                raise ConfigError(no_key(key, [*self.choices, *self.comments], "key or group"))
            yield from self.format_key(key, value)
        elif not equals:
            yield from self.format_options(place)
        else:
            yield from self.line(f"{place}={format_value(self.choices[place])}", self.describe(place).says, "")
            package = package_of(place)
            yield from self.format_recipe() if place == RECIPES else self.format_parts(package, self.value_at(package))
        yield ""

    def format_options(self, place: str) -> Iterator[str]:
        """The options of a group, each with what its file says."""
        yield from self.line(place, self.reasons.get(package_of(place), ""), "")
        for option in self.files.options(group_of(place)):
            with suppress(YAMLError):
                mark = "* " if option == self.choices[place] else "  "
                yield from self.line(f"{place}={option}", self.describe(place, option).says, mark)

    def format_group(self, place: str, indent: str = "") -> Iterator[str]:
        """A group: what it decides, its options, and the keys of the one that is chosen."""
        group, option, package = group_of(place), self.choices[place], package_of(place)
        yield from self.line(f"{place}={format_value(option)}", self.reasons.get(package, ""), indent)
        others = [name for name in self.files.options(group) if name != option]
        if others:
            many = "@" in place and len(others) > MAX_LISTED
            yield from self.wrap(f"or any other {group}" if many else f"or {', '.join(others)}", f"{indent}    ")
        if option is not None and place != RECIPES:
            yield from self.format_parts(package, self.value_at(package), f"{indent}  ")

    def format_recipe(self) -> Iterator[str]:
        """What an experiment chooses and sets."""
        file = self.describe(RECIPES)
        for choice, (option, comment) in file.defaults.items():
            place = choice.strip("/")
            yield from self.line(f"{place}={option}", comment or self.reasons.get(place, ""), "  ")
        for key in file.keys:
            if not isinstance(value := self.value_at(key), dict):
                yield from self.format_key(key, value)

    def value_at(self, key: str) -> Any:
        """The composed value of a key; ABSENT where there is none."""
        value: Any = self.tree
        for name in key.split("."):
            value = value.get(name, ABSENT) if isinstance(value, dict) else ABSENT
        return value

    def format_key(self, key: str, value: Any, indent: str = "  ") -> Iterator[str]:
        """A key with its default and its comment, a choice as its group, a node with its parts."""
        place = next((name for name in self.choices if package_of(name) == key and name != RECIPES), None)
        comment = self.comments.get(key, "")
        if place is not None:
            yield from self.format_group(place, indent)
        elif isinstance(value, dict):
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
        """What is typed, and from `column` on (below it, where both do not fit) what it means."""
        first = f"{indent}{typed}"
        too_long = len(first) + 2 > column
        if not meaning or (too_long and len(first) + 2 + len(meaning) <= self.width):
            yield f"{first}  {meaning}".rstrip()
            return
        lines = textwrap.wrap(meaning, self.width - column, break_long_words=False, break_on_hyphens=False)
        yield first if too_long else f"{first:<{column}}{lines.pop(0)}"
        yield from (" " * column + line for line in lines)

    def wrap(self, text: str, indent: str) -> list[str]:
        """A text within the page's width."""
        return textwrap.wrap(text, self.width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def join(package: str, key: str) -> str:
    """A key of a package, "" is the root."""
    return f"{package}.{key}" if package else key


def group_of(place: str) -> str:
    """sampler of sampler@sampler.inner."""
    return place.partition("@")[0]


def package_of(place: str) -> str:
    """Where in the tree a choice is: sampler.grid of sampler/grid, sampler.inner of sampler@sampler.inner."""
    group, at, package = place.partition("@")
    return "" if package == "_global_" else package if at else group.replace("/", ".")


def format_value(value: Any) -> str:
    """A value as it is typed; what follows another key as <that key>."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(format_value, value))}]"
    if isinstance(value, dict):
        return f"{{{str(value.get('_target_', '...')).rpartition('.')[2]}}}"
    if isinstance(value, str):
        return "..." if value == MISSING else REFERENCE.sub(r"<\1>", value) if value.startswith("${") else value
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)
