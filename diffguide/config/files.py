"""The YAML files of a command: groups, their options and the keys of these, read without composing."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ..nodes.walk import named_parts
from .quoting import literal

__all__ = ["ABSENT", "ConfigFile", "ConfigFiles", "config_dir", "dotted_keys", "select_key", "to_plain"]

ABSENT = object()  # in place of a value that does not exist


def config_dir() -> str:
    """The folder of the YAML files: inside the package from a wheel, beside it in a checkout or editable install."""
    here = Path(__file__).resolve().parent
    for candidate in (here.parent / "configs", here.parent.parent / "configs"):
        if (candidate / "train.yaml").is_file():
            return str(candidate)
    raise RuntimeError(f"diffguide: no configs/train.yaml in or beside {here}")


class ConfigFile(NamedTuple):
    """The content of a file.

    Arguments:
        tree: keys and values, without the defaults list.
        choices: (group, place, option) of the entries of that list; without those that override another file.
    """

    tree: dict[str, Any]
    choices: list[tuple[str, str, str]]


class ConfigFiles:
    """The files of a command.

    Arguments:
        name: of the primary configuration.
        folders: absolute; that of diffguide first, then those of the user.
    """

    def __init__(self, name: str, folders: Sequence[str]):
        self.name = name
        self.folders = list(folders)

    @classmethod
    def of_this_run(cls) -> "ConfigFiles":
        """The files of the running command."""
        hydra = HydraConfig.get()
        return cls(
            str(hydra.job.config_name), [part.path for part in hydra.runtime.config_sources if part.schema == "file"]
        )

    def path(self, name: str) -> Path | None:
        """The path of a file such as guidance/cfg; None where it does not exist."""
        paths = (Path(folder, f"{name.removesuffix('.yaml')}.yaml") for folder in self.folders)
        return next((path for path in paths if path.is_file()), None)

    @cached_property
    def groups(self) -> list[str]:
        """The names of all groups, nested ones such as sampler/grid included."""
        return sorted(
            {
                path.relative_to(folder).as_posix()
                for folder in self.folders
                for path in Path(folder).rglob("*")
                if path.is_dir() and any(path.glob("*.yaml"))
            }
        )

    def options(self, group: str) -> list[str]:
        """The options of a group, sorted."""
        return sorted({path.stem for folder in self.folders for path in Path(folder, group).glob("*.yaml")})

    def read(self, name: str) -> ConfigFile:
        """The content of a file such as guidance/cfg; empty where it does not exist.

        Raises:
            YAMLError, OmegaConfBaseException: a file that is no mapping.
        """
        path = self.path(name)
        tree = dict(to_plain(OmegaConf.load(path))) if path else {}
        choices = []
        for entry in tree.pop("defaults", []):
            for text, option in entry.items() if isinstance(entry, dict) else ():
                group, _, place = text.removeprefix("optional ").partition("@")
                place = place or group.strip("/").replace("/", ".")
                group = group[1:] if group.startswith("/") else "/".join([*name.split("/")[:-1], group])
                if isinstance(option, str) and not text.startswith("override "):
                    choices.append((group, place, option))
        return ConfigFile(tree, choices)

    def keys(self, group: str, option: str, package: str | None = None) -> Iterator[str]:
        """The keys of an option and of the options that it chooses; 30 times faster than composing them."""
        package = group.replace("/", ".") if package is None else package
        file = self.read(f"{group}/{option}")
        yield from dotted_keys(file.tree, package)
        for inner, place, chosen in file.choices:
            under = "" if place == "_global_" else f"{package}.{place}"
            if under:
                yield under
            yield from self.keys(inner, chosen, under)

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration with these overrides, with the node `hydra`."""
        own = ",".join(literal(f"file://{folder}") for folder in self.folders[1:])
        searched = [f"hydra.searchpath=[{own}]"] if own else []
        with initialize_config_dir(self.folders[0], version_base="1.3"):
            config = compose(self.name, [*searched, *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config)  # resolves ${hydra:runtime.choices.dataset}
        return config


def to_plain(config: Any) -> Any:
    """A configuration node as plain containers, with `${...}` as written."""
    return OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config


def dotted_keys(tree: Any, parent: str = "") -> Iterator[str]:
    """The dotted keys of all nodes and values of nested mappings and lists: a.b.c and a.b.0."""
    for name, part in named_parts(tree):
        key = f"{parent}.{name}" if parent else str(name)
        yield key
        yield from dotted_keys(part, key)


def select_key(tree: Any, key: str) -> Any:
    """The value of a dotted key in plain containers, "" = all of them; ABSENT where there is none."""
    for name in key.split(".") if key else ():
        tree = {str(part): value for part, value in named_parts(tree)}.get(name, ABSENT)
    return tree
