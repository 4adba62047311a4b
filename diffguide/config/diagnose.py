"""A mistake on the command line, told in one sentence: what, where, and the nearest thing that would be right.

Hydra tells of most mistakes in five to sixty lines, and of some not at all. `find` looks for the mistake itself: it holds
every override against the groups, their options and the keys of the configuration that the chosen options compose.
"""

import difflib
import itertools
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..nodes.old_names import OPTIONS
from .files import all_groups, dotted, keys_of
from .plugins import wrong_plugin
from .quoting import CLASSES, unreadable

__all__ = ["Composition", "SYNONYMS", "brief", "composable", "find", "is_choice", "no_key"]

JOBS, SHOWN = 1000, 12  # of a sweep, that are looked at; options in a message
THOUSANDS = re.compile(r"[1-9]\d{0,2}(,\d{3})+")  # how people write large numbers
SYNONYMS = {  # what other programs call it
    "lr": ["training.learning_rate"], "epochs": ["training.images"], "num_epochs": ["training.images"],
    "max_steps": ["training.images"], "optim": ["training.optimizer"], "data": ["dataset"], "data_dir": ["dataset.path"],
    "data_path": ["dataset.path"], "image_size": ["dataset.size"], "resolution": ["dataset.size"],
    "model": ["checkpoint", "backbone"], "network": ["backbone"], "ckpt": ["checkpoint"], "loss": ["objective"],
    "num_samples": ["n"], "samples": ["n"], "classes": ["labels"], "label": ["labels"],
    "cfg_scale": ["guidance.scale"], "guidance_scale": ["guidance.scale"], "num_inference_steps": ["sampler.steps"],
    "num_steps": ["sampler.steps"], "output": ["output_root"], "output_dir": ["output_root"], "out": ["output_root"],
    "device": ["engine.accelerator"], "gpu": ["engine.accelerator"], "gpus": ["engine.devices"], "fp16": ["engine.precision"],
    "fid": ["quality"], "nll": ["likelihood"], "bpd": ["likelihood"], "accuracy": ["classification"],
}  # fmt: skip
NOISE = re.compile(r"\s*(full_key:|object_type=|reference_type=|To append to|See https|Available options|Check that).*")


def find(overrides: Sequence[str], loader: ConfigLoader, config_name: str, sweep: bool) -> str | None:
    """The first mistake in a command line's overrides, in a sentence; None where there is none to be found.

    Arguments:
        overrides: as typed.
        config_name: the primary configuration.
        sweep: whether several values of a key are several jobs.
    """
    parser, parsed, groups = OverridesParser.create(loader), [], dict.fromkeys(all_groups(loader))
    for text in overrides:
        try:
            parsed += parser.parse_overrides([text])
        except OverrideParseException as error:
            return unreadable(text, error)
        if parsed[-1].is_sweep_override() and not sweep:
            return several(parsed[-1], groups)
        if mistake := wrong_plugin(parsed[-1], loader):
            return mistake
    compositions: dict[tuple[str, ...], Composition] = {}
    for job in itertools.islice(itertools.product(*(values(override, parser) for override in parsed)), JOBS):
        choices = [override for override in job if is_choice(override, groups)]
        for override in choices:
            if mistake := wrong_option(override, loader):
                return mistake
        chosen = tuple(override.input_line for override in choices)
        if chosen not in compositions:
            try:
                compositions[chosen] = Composition(loader, config_name, chosen)
            except (HydraException, OmegaConfBaseException, ValueError):
                compositions[chosen] = composable(loader, config_name, chosen)
        if mistake := compositions[chosen].wrong(job, groups):
            return mistake
    return None


def several(override: Override, groups: dict) -> str:
    """A sentence about several values where there is one run."""
    key, value = override.get_key_element(), override.input_line.partition("=")[2]
    ways = [] if override.key_or_group in groups else [f"write one list, {key}=[{value}]"]
    ways += [f"one number, {key}={value.replace(',', '')}"] if THOUSANDS.fullmatch(value) else []
    return f"{override.input_line} gives several values: {', or '.join(['run them all with -m', *ways])}"


def values(override: Override, parser: OverridesParser) -> list[Override]:
    """The overrides of the jobs that a swept one stands for; itself alone where it is not swept."""
    if not override.is_sweep_override():
        return [override]
    if not override.is_discrete_sweep():
        return []
    return [parser.parse_override(f"{override.get_key_element()}={text}") for text in override.sweep_string_iterator()]


def is_choice(override: Override, groups: dict) -> bool:
    """Whether an override chooses an option of a group."""
    return override.key_or_group in groups and not isinstance(override.value(), dict)


def wrong_option(override: Override, loader: ConfigLoader) -> str | None:
    """What is wrong with the choice of an option, whatever the command."""
    group, value, options = override.key_or_group, override.value(), loader.get_group_options(override.key_or_group)
    shown = ", ".join(options[:SHOWN]) + (", ..." if len(options) > SHOWN else "")
    if override.is_delete():
        return f"{group} cannot be left out: choose {group}=<option>; options: {shown}"
    if isinstance(value, list):
        return (
            f"{group} takes one option, got {override.input_line}; compose several in a file of your own (--config-dir)"
        )
    if value is None:
        return f"{group} takes an option, got null: leave it out, or choose one of {shown}"
    if group == "dataset" and str(value) not in options and Path(str(value)).is_dir():
        return (
            f"there is no option {group}={value}: for a folder of images say dataset=image_folder dataset.path={value}"
        )
    if str(value) not in options:
        return no_key(f"{group}={value}", options, "option", str(value)) + f"; options: {shown}"
    return None


def composable(loader: ConfigLoader, config_name: str, chosen: Sequence[str]) -> "Composition":
    """What composes of the chosen options: each that goes with those before it, nested groups after their parents."""
    kept, found = (), Composition(loader, config_name, ())
    for text in sorted(chosen, key=lambda text: text.split("=")[0].count("/")):
        with suppress(HydraException, OmegaConfBaseException, ValueError):
            found = Composition(loader, config_name, (*kept, text))
            kept = (*kept, text)
    return found


class Composition:
    """The keys and choices that a primary configuration has with some options chosen."""

    def __init__(self, loader: ConfigLoader, config_name: str, chosen: Sequence[str]):
        plain = [text.lstrip("+") for text in chosen if not text.startswith("+")]
        config = loader.load_configuration(config_name, plain, RunMode.RUN)
        self.loader = loader
        choices = config.hydra.runtime.choices
        self.choices = {group: name for group, name in choices.items() if not group.startswith("hydra/")}
        self.tree = OmegaConf.to_container(config, resolve=False)
        del self.tree["hydra"]
        self.keys = list(dotted(self.tree))

    def wrong(self, job: Sequence[Override], groups: dict) -> str | None:
        """What is wrong with the overrides of one job."""
        gone, added = set(), set()
        for override in job:
            key, text = override.key_or_group, override.input_line
            if key.split("/")[0].split(".")[0] == "hydra":
                continue
            if is_choice(override, groups):
                mistake = self.wrong_choice(override)
            elif override.is_delete():
                mistake = self.no_key(key) if key not in self.keys else None
                if not mistake and "." not in key:
                    mistake = f"{key} cannot be left out: give it a value, {key}=<value>"
                gone.add(key)
            elif override.is_add() or override.is_force_add():
                mistake = self.wrong_addition(override, job, gone)
                added.add(key)
            else:
                value = override.value()
                mapping = isinstance(value, dict) and key.rpartition(".")[2] not in CLASSES
                wanted = [f"{key}.{name}" for name in dotted(value)] if mapping else []
                unknown = [name for name in [key, *wanted] if name not in self.keys]
                known = key in groups or any(key == name or key.startswith(f"{name}.") for name in added)
                mistake = self.no_key(unknown[0]) if unknown and not known else None
            if mistake:
                return mistake if text.split("=")[0].lstrip("+~") in mistake else f"{text}: {mistake}"
        return None

    def wrong_choice(self, override: Override) -> str | None:
        """What is wrong with the choice of an option that exists."""
        group, value = override.key_or_group, override.value()
        if override.is_add():
            return f"write {group}={value}, without +" if group in self.choices else None
        places = [choice for choice in self.choices if choice.startswith(f"{group}@")]
        known = [*places, *({group} & {*self.choices})]
        if override.package is not None and known:
            own, ways = override.get_key_element(), " or ".join(f"{place}={value}" for place in known)
            return None if own in places else f"there is no {own}; write {ways}"
        if group not in self.choices and places:
            return f"{group} is not chosen by itself here: write {' or '.join(f'{place}={value}' for place in places)}"
        return None if group in self.choices else self.no_choice(group)

    def no_choice(self, group: str) -> str:
        """A sentence about a group that nothing chooses from here, because another option does or none at all."""
        parent = group.rpartition("/")[0]
        if self.choices.get(parent) is None:
            return f"{group} is no choice of this command; its choices: {', '.join(self.choices)}"
        having = [name for name, keys in self.options(parent).items() if group.replace("/", ".") in keys]
        return f"{group} is no choice with {parent}={self.choices[parent]}{so_have(parent, having)}"

    def wrong_addition(self, override: Override, job: Sequence[Override], gone: set[str]) -> str | None:
        """What is wrong with a key that is added: it is there already, or nothing reads it."""
        key, root = override.key_or_group, override.key_or_group.split(".")[0]
        if key in self.keys and key not in gone and override.is_add() and not isinstance(override.value(), dict | list):
            return f"{key} is there already: write {override.input_line.lstrip('+')}, without +"
        read = re.compile(rf"\$\{{[^}}]*\b{re.escape(root)}\b")
        texts = [str(self.tree), *(other.input_line for other in job)]
        return None if root in {*self.tree, *self.choices} or any(map(read.search, texts)) else self.no_key(key)

    def no_key(self, key: str) -> str:
        """A sentence about a key that is not there, and about the options and commands that have it."""
        names = self.keys if "." in key else [*self.tree, *self.choices, *self.keys]
        sentence = no_key(key, names, "key" if "." in key else "key or group")
        places = {name.partition("@")[2] or name.replace("/", "."): name for name in self.choices}
        inside = sorted((place for place in places if key.startswith(f"{place}.")), key=len, reverse=True)
        if not inside:
            return sentence + self.elsewhere(key)
        for package in inside:
            place, group, others, own = self.choice_at(places[package], package, key)
            if having := [name for name in others if own in others[name]]:
                return sentence.replace(key, f"{key} with {place}", 1) + so_have(places[package], having)
        place, group, others, own = self.choice_at(places[inside[0]], inside[0], key)
        said, near = sentence.replace(key, f"{key} with {place}", 1), []
        if "@" not in place and "nearest" not in sentence:
            near = difflib.get_close_matches(own, {name for keys in others.values() for name in keys}, 1, 0.8)
        having = [f"{name} has {found}" for found in near for name, keys in others.items() if found in keys]
        return said + "".join(f"; {group}={text}" for text in having[:3])

    def choice_at(self, place: str, package: str, key: str) -> tuple[str, str, dict[str, list[str]], str]:
        """Of a choice above a key: place=option, the group, the keys of its options, and the key as it is named there."""
        group, option = place.partition("@")[0], self.choices[place]
        own = f"{group.replace('/', '.')}.{key.removeprefix(f'{package}.')}"
        return f"{place}={'null' if option is None else option}", group, self.options(group), own

    def elsewhere(self, key: str) -> str:
        """The other commands that have a key, if any."""
        files = {"train": "diffguide-train", "sample": "diffguide-sample", "evaluate": "diffguide-eval"}
        having = []
        for file, command in files.items():
            with suppress(HydraException):
                if key in dotted(
                    OmegaConf.to_container(self.loader.repository.load_config(file).config, resolve=False)
                ):
                    having.append(command)
        return f"; {' and '.join(having)} {'have' if len(having) > 1 else 'has'} it" if having else ""

    def options(self, group: str) -> dict[str, list[str]]:
        """The options of a group, short names first, which are the commonest, each with all keys that it leads to."""
        found = {}
        for option in sorted(self.loader.get_group_options(group), key=len):
            with suppress(HydraException, OmegaConfBaseException, YAMLError):
                found[option] = list(keys_of(self.loader, f"{group}/{option}", group.replace("/", ".")))
        return found


def so_have(group: str, options: Sequence[str]) -> str:
    """ "This option has it", for the first options of a group."""
    return "".join(f"; {group}={option} has it" for option in options[:3]) + ("; so have others" if options[3:] else "")


def no_key(key: str, names: Sequence[str], what: str = "key", word: str = "") -> str:
    """ "There is no such key", with the nearest names.

    Arguments:
        word: what is compared with the names, if not the key.
    """
    word = word or key
    names = [name for name in names if not name.endswith("_") and not word.startswith(f"{name}.")]
    last = {name for name in names if name.rpartition(".")[2] == word.rpartition(".")[2]}
    known = [name for name in SYNONYMS.get(word.lower(), ()) if name in names]
    close = [*known, *difflib.get_close_matches(word, names, 3, 0.65), *sorted(last)]
    nearest = ", ".join(list(dict.fromkeys(close))[:3])
    return f"there is no {what} {key}" + (f"; nearest: {nearest}" if nearest else "")


def brief(error: BaseException) -> str:
    """What an exception of Hydra, OmegaConf or YAML says, in one line."""
    text = str(error)
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        text = f"{text}\n{error.__cause__}"
    if isinstance(error, MissingConfigException):
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        if new := OPTIONS.get(group, {}).get(option):
            text = f"{text.splitlines()[0]}\n{group}/{option} is now {group}/{new}"
    text = re.split(r"\n(?:Config s|S)earch path:", text)[0]
    lines = [line.strip() for line in text.splitlines() if line.strip() and not NOISE.fullmatch(line)]
    return "; ".join(line.rstrip(".") for line in lines)[:600] or type(error).__name__
