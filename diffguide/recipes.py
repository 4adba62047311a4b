"""A recipe (experiment=<name>) beside an option that was typed: what it sets for its own option, the other may not take."""

from collections.abc import Mapping, Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import GroupDefault
from omegaconf import OmegaConf

from .mistakes import dotted, keys_of

__all__ = ["unfit"]

GROUP = "experiment"


def unfit(
    loader: ConfigLoader, choices: Mapping[str, str | None], said: Sequence[str], keys: Sequence[str]
) -> str | None:
    """Keys that a recipe sets of a node whose option was chosen otherwise, and that this option has not; in a sentence.

    Arguments:
        loader: reads the configuration files.
        choices: option of every group.
        said: keys and groups that were typed.
        keys: of the composed configuration.
    """
    if choices.get(GROUP) is None:
        return None
    file = loader.repository.load_config(f"{GROUP}/{choices[GROUP]}")
    sets = [*dotted(OmegaConf.to_container(file.config, resolve=False))]
    own = {part.group.lstrip("/"): part.value for part in file.defaults_list if isinstance(part, GroupDefault)}
    for group in said:
        if group not in choices or choices[group] is None or choices[group] == own.get(group):
            continue
        parts = {place: name for place, name in choices.items() if name and f"{place}/".startswith(f"{group}/")}
        known = {
            key for place, name in parts.items() for key in keys_of(loader, f"{place}/{name}", place.replace("/", "."))
        }
        odd = [key for key in sets if key.startswith(f"{group}.") and key in keys and key not in known]
        odd = [key for key in odd if key.rpartition(".")[0] not in odd]  # a list, and not its elements too
        if odd:
            of = f", for {group}={own[group]}" if group in own else ""
            return (
                f"{GROUP}={choices[GROUP]} sets {' and '.join(odd)}{of}, and {group}={choices[group]} has no such key: leave "
                f"{group} as the experiment has it, or take out what it sets, {' '.join(f'~{key}' for key in odd)}"
            )
    return None
