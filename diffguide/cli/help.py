"""What --help prints: groups with their options, and keys with their defaults and the comments of the YAML files."""

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from ..config.build import ConfigError
from ..config.diagnose import no_key
from ..config.files import ConfigFiles, plain
from ..config.key_comments import Described, describe_file

__all__ = ["format_value", "help_text"]

RECIPES = "experiment"
NARROW, WIDE = 80, 120  # columns of a page
MANY = 12  # options, of a group that stands elsewhere with all of them
TYPED = 38  # columns of what is typed, before what it means
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
    lines = [line for word in words for line in page.about(word)] if words else page.whole()
    return "\n".join(lines).strip("\n") + "\n"


class Page:
    """The help of one composed configuration."""

    def __init__(self, files: ConfigFiles, overrides: Sequence[str], resolve: bool):
        self.files = files
        config = files.compose(overrides)
        self.app = config.hydra.help.app_name
        choices = {name: option for name, option in config.hydra.runtime.choices.items() if "hydra/" not in name}
        tree = plain(config)
        if resolve:
            tree = {key: OmegaConf.select(config, key) for key in tree if key != "hydra"}
            tree = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
        self.tree = {key: value for key, value in tree.items() if key != "hydra"}
        self.main = describe_file(files.path(files.name))
        places = [RECIPES, *self.main.defaults]  # in the order of the file, options of options behind
        rank = {name: places.index(name) if name in places else len(places) for name in choices}
        self.choices = {name: choices[name] for name in sorted(choices, key=rank.__getitem__)}
        self.comments = dict(self.main.keys)
        self.reasons: dict[str, str] = {}  # package of a choice -> what is chosen there
        self.describe_defaults(self.main, "", "")
        for place, option in self.choices.items():
            if option is not None:
                self.describe_choice(place, option)
        width = shutil.get_terminal_size((WIDE, 24)).columns
        self.width = min(max(width, NARROW), WIDE)

    def describe_choice(self, place: str, option: str) -> None:
        """Takes over the comments of the file that a choice names."""
        group, package = place.partition("@")[0], package_of(place)
        file = describe_file(self.files.path(f"{group}/{option}"))
        own = {f"{package}.{key}" if package else key: said for key, said in file.keys.items() if said}
        self.comments |= own
        self.describe_defaults(file, group, package)

    def describe_defaults(self, file: Described, group: str, package: str) -> None:
        """Takes over what a file says about the choices that it makes."""
        for name, (_, said) in file.defaults.items():
            chosen, _, under = name.partition("@")
            under = under or chosen.strip("/").replace("/", ".")
            self.reasons.setdefault(f"{package}.{under}" if package else under, said)

    def whole(self) -> Iterator[str]:
        """Everything: how it is typed, the command's own keys, and every group with the keys of its default."""
        yield from self.wrapped(self.main.says, "")
        yield ""
        for typed, said in {
            "group=option key=value ...": "everything has a default: those below, <x> = what x is",
            "--help dataset=gmm2d": "the keys of an option",
            "--help dataset": "the options of a group, in words",
            "-m seed=0,1": "a run for each value",
            "--cfg job": "what a command line composes to",
            "--config-dir mine": "adds options of your own: mine/guidance/steep.yaml is guidance=steep",
        }.items():
            yield from self.line(f"{self.app} {typed}", said, "  ", 50)
        nodes = {package_of(place).split(".")[0] for place in self.choices}
        yield from ["", "Keys"]
        for key, value in self.tree.items():
            if key not in nodes:
                yield from self.keys(key, value)
        yield from ["", "Groups, and the keys of what is chosen"]
        for place in self.choices:
            if "." not in package_of(place):
                yield from ["", *self.group(place)]

    def about(self, word: str) -> Iterator[str]:
        """What one word behind --help asks for."""
        key = word.partition("=")[0].lstrip("+~")
        place = next((name for name in self.choices if key in (name, name.replace("/", "."))), None)
        if place is not None and "=" in word and place == RECIPES:
            yield from self.recipe()
        elif place is not None and "=" in word:
            yield from self.chosen(place)
        elif place is not None:
            yield from self.options(place)
        else:
            found, names = self.tree, key.split(".")
            for name in names:
                if not isinstance(found, dict) or name not in found:
                    raise ConfigError(no_key(key, [*self.choices, *self.comments], "key or group"))
                found = found[name]
            yield from self.keys(key, found)
        yield ""

    def options(self, place: str) -> Iterator[str]:
        """The options of a group, each with what its file says."""
        yield from self.line(place, self.reasons.get(package_of(place), ""), "")
        group = place.partition("@")[0]
        for option in self.files.options(group):
            with suppress(YAMLError):
                chosen = "*" if option == self.choices[place] else " "
                yield from self.line(
                    f"{place}={option}", describe_file(self.files.path(f"{group}/{option}")).says, f"{chosen} "
                )

    def chosen(self, place: str) -> Iterator[str]:
        """An option that is asked for: what its file says, and its keys."""
        group, option = place.partition("@")[0], self.choices[place]
        yield from self.line(
            f"{place}={format_value(option)}", describe_file(self.files.path(f"{group}/{option}")).says, ""
        )
        yield from self.keys(package_of(place), self.tree_at(package_of(place)), "  ", top=True)

    def group(self, place: str, indent: str = "") -> Iterator[str]:
        """A group: what it decides, its options, and the keys of the one that is chosen."""
        group, option, package = place.partition("@")[0], self.choices[place], package_of(place)
        yield from self.line(f"{place}={format_value(option)}", self.reasons.get(package, ""), indent)
        others = [name for name in self.files.options(group) if name != option]
        listed = f"any other {group}" if "@" in place and len(others) > MANY else ", ".join(others)
        if others:
            yield from self.wrapped(f"or {listed}", f"{indent}    ")
        if option is not None and place != RECIPES:
            yield from self.keys(package, self.tree_at(package), f"{indent}  ", top=True)

    def recipe(self) -> Iterator[str]:
        """What an experiment says, chooses and sets."""
        file = describe_file(self.files.path(f"{RECIPES}/{self.choices[RECIPES]}"))
        yield from self.line(f"{RECIPES}={self.choices[RECIPES]}", file.says, "")
        for name, (option, said) in file.defaults.items():
            yield from self.line(f"{name.strip('/')}={option}", said or self.reasons.get(name.strip("/"), ""), "  ")
        for key in file.keys:
            if not isinstance(value := self.tree_at(key), dict):
                yield from self.line(f"{key}={format_value(value)}", self.comments.get(key, ""), "  ")

    def tree_at(self, key: str) -> Any:
        """The composed value of a key."""
        value: Any = self.tree
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def keys(self, key: str, value: Any, indent: str = "  ", top: bool = False) -> Iterator[str]:
        """A key with its default and its comment, those of a node below it, nested choices in their places."""
        place = next((name for name in self.choices if package_of(name) == key and name != RECIPES), None)
        if place is not None and not top:
            yield from self.group(place, indent)
            return
        said = self.comments.get(key, "")
        if not isinstance(value, dict):
            yield from self.line(
                f"{key}={format_value(value)}", ("must be given: " if value == "???" else "") + said, indent
            )
            return
        if said and not top:
            target = str(value.get("_target_", "")).rpartition(".")[2]
            yield from self.line(f"{key}={{{target}}}", said, indent)
        for name, part in value.items():
            if not name.startswith("_"):
                yield from self.keys(f"{key}.{name}", part, indent)

    def line(self, typed: str, said: str, indent: str, column: int = TYPED) -> Iterator[str]:
        """What is typed, and from `column` on (below it, where both do not fit) what it means."""
        first = f"{indent}{typed}"
        if not said or (len(first) + 2 > column and len(first) + 2 + len(said) <= self.width):
            yield f"{first}  {said}".rstrip()
            return
        if len(first) + 2 > column:
            yield first
            first = ""
        for text in textwrap.wrap(said, self.width - column, break_long_words=False, break_on_hyphens=False):
            yield f"{first:<{column}}{text}"
            first = ""

    def wrapped(self, said: str, indent: str) -> list[str]:
        """A text within the page's width."""
        return textwrap.wrap(said, self.width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


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
        return "..." if value == "???" else REFERENCE.sub(r"<\1>", value) if value.startswith("${") else value
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)
