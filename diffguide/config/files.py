"""What the configuration files hold: their groups, the options of each and the keys of these, read without composing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import GroupDefault
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf

__all__ = ["all_groups", "config_dir", "dotted", "keys_of", "loader_of", "quick_listing"]


def config_dir() -> str:
    """The folder of the YAML files: inside the package from a wheel, beside it in a checkout or editable install."""
    here = Path(__file__).resolve().parent
    for candidate in (here.parent / "configs", here.parent.parent / "configs"):
        if (candidate / "train.yaml").is_file():
            return str(candidate)
    raise RuntimeError(f"diffguide: no configs/train.yaml in or beside {here}")


def loader_of(main: str, own: str | None) -> ConfigLoader:
    """What reads the configuration files: the folder `main`, behind the user's own one, if any."""
    path = create_config_search_path(main)
    if own is not None:
        path.prepend(provider="command-line", path=f"file://{own}", anchor=SearchPathQuery(provider="schema"))
    return ConfigLoaderImpl(path)


@contextmanager
def quick_listing() -> Iterator[None]:
    """Lists options without copying Hydra's whole repository for each of a hundred groups: half of what --help takes."""
    whole = ConfigLoaderImpl.get_group_options

    def listed(loader, group_name, results_filter=ObjectType.CONFIG, config_name=None, overrides=None):
        if any("searchpath" in override for override in overrides or ()):  # options may lie elsewhere
            return whole(loader, group_name, results_filter, config_name, overrides)
        return loader.repository.get_group_options(group_name, results_filter)

    ConfigLoaderImpl.get_group_options = listed
    try:
        yield
    finally:
        ConfigLoaderImpl.get_group_options = whole


def all_groups(loader: ConfigLoader, parent: str = "") -> Iterator[str]:
    """The names of all groups, sampler/grid and the like too; Hydra's own left out."""
    for name in loader.list_groups(parent):
        if name != "hydra":
            group = f"{parent}/{name}" if parent else name
            yield group
            yield from all_groups(loader, group)


def keys_of(loader: ConfigLoader, path: str, package: str) -> Iterator[str]:
    """The keys of a file and of the options that it chooses; composing it whole would take thirty times as long."""
    file = loader.repository.load_config(path)
    yield from dotted(OmegaConf.to_container(file.config, resolve=False), package)
    for default in file.defaults_list:
        if isinstance(default, GroupDefault) and isinstance(default.value, str) and not default.override:
            group = default.group.lstrip("/")
            place = default.package or group.replace("/", ".")
            whole = group if default.group.startswith("/") else f"{path.rpartition('/')[0]}/{group}"
            under = "" if place == "_global_" else f"{package}.{place}"
            yield from [under] if under else []
            yield from keys_of(loader, f"{whole}/{default.value}", under)


def dotted(tree: Any, parent: str = "") -> Iterator[str]:
    """The names of all nodes and values of nested mappings and lists, a.b.c and a.b.0."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, part in pairs:
        key = f"{parent}.{name}" if parent else str(name)
        yield key
        yield from dotted(part, key)
