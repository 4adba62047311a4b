"""One-line explanations of command lines that Hydra cannot compose, with the nearest valid names.

The exception of Hydra names the override. Its key is compared with the keys, groups and options of what does compose.
"""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..nodes.old_names import OPTIONS
from .files import ConfigFiles, dotted_keys, select_key, to_plain
from .quoting import explain_unreadable, parse_override

__all__ = ["COMMANDS", "Names", "SYNONYMS", "explain", "format_error", "no_key", "parse_words", "wrong_choice"]

COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError)
MAX_OPTIONS = 12  # in a message
MAX_JOBS = 100  # of a sweep, that are composed
THOUSANDS = re.compile(r"[1-9]\d{0,2}(,\d{3})+")  # a large number with commas
SYNONYMS = {  # names in other programs
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
COMMANDS = {  # primary configuration: console script
    "train": "diffguide-train", "sample": "diffguide-sample", "evaluate": "diffguide-eval", "convert": "diffguide-convert",
}  # fmt: skip
PLUGINS = {  # option of a group of Hydra: package that has it
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
    "optuna": "hydra-optuna-sweeper",
    "colorlog": "hydra_colorlog",
}
NOISE = re.compile(r"\s*(full_key:|object_type=|reference_type=|To append to|See https|Available options|Check that).*")
SEVERAL = re.compile(r"(?:Ambiguous value for argument|Sweep parameters) '([^']*)'")
QUOTED_KEY = re.compile(r"'([^']+)'")  # of the override in Hydra's message


def explain(error: BaseException, words: Sequence[str], files: ConfigFiles) -> str | None:
    """The message for an exception raised while a command line was composed; None where the input is not its cause."""
    if isinstance(error, OverrideParseException):
        return explain_unreadable(error.override, error)
    if several := SEVERAL.match(str(error)):
        return explain_several(several[1], files)
    for override in parse_words(words):
        if mistake := wrong_choice(override, files):
            return mistake
        if override.is_add() and override.key_or_group in files.groups and override.package is None:
            return f"write {str(override.input_line)[1:]}, without +"
    if isinstance(error, MissingConfigException):
        return no_option(error, files) if "/" in (error.missing_cfg_file or "") else format_error(error)
    if isinstance(error, ConfigCompositionException) and (named := QUOTED_KEY.search(str(error))):
        inside = re.search(r"full_key: (\S+)", str(error.__cause__))
        key = max(named[1], inside[1] if inside else "", key=len)
        value = next((word.partition("=")[2] for word in words if word.lstrip("~").partition("=")[0] == key), "<value>")
        for job in iterate_jobs(words, files):
            names = Names(job, files)
            if key not in names.keys:
                return names.explain_key(key, value) or format_error(error)
    return format_error(error) if isinstance(error, COMPOSE_ERRORS) else None


def iterate_jobs(words: Sequence[str], files: ConfigFiles) -> Iterator[Sequence[str]]:
    """The command lines of the first jobs of a sweep over options; of a single run, its own."""
    ways = []
    for word in words:
        override = parse_override(word)
        if override and override.key_or_group in files.groups and override.is_discrete_sweep():
            ways.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            ways.append([word])
    yield from itertools.islice(itertools.product(*ways), MAX_JOBS)


def explain_several(word: str, files: ConfigFiles) -> str:
    """The message for an override with several values in a single run."""
    key, _, value = word.partition("=")
    ways = ["run them all with -m"]
    if key not in files.groups:
        ways.append(f"write one list, {key}=[{value}]")
    if THOUSANDS.fullmatch(value):
        ways.append(f"one number, {key}={value.replace(',', '')}")
    return f"{word} has several values: {', or '.join(ways)}"


def parse_words(words: Iterable[str]) -> Iterator[Override]:
    """The overrides of a command line; words that Hydra cannot parse are skipped."""
    return filter(None, map(parse_override, words))


def wrong_choice(override: Override, files: ConfigFiles) -> str | None:
    """What is wrong with the value of a group, which must be the name of one option; None where it is valid."""
    group = override.key_or_group or ""
    value = override.value()
    if group not in files.groups:
        inner = next((name for name in files.groups if name.startswith(f"{group}/")), None)
        if inner is None or isinstance(value, dict):
            return None  # a key, or a node of the primary configuration with groups inside
        return f"{group} must be a node: set its keys, {group}.<key>=<value>, or choose {inner}=<option>"
    if override.is_sweep_override():
        return None
    options = list_options(files.options(group))
    if override.is_delete() and "/" not in group:
        return f"{group} cannot be removed: choose {group}=<option>; options: {options}"
    if isinstance(value, list):
        return f"{group} takes one option, got {override.input_line}; combine several in your own file (--config-dir)"
    if value is None and not override.is_delete():
        return f"{group} takes an option, got null; options: {options}"
    if isinstance(value, int | float):
        return f"there is no option {group}={value}; options: {options}"
    return None


def list_options(options: Sequence[str]) -> str:
    """The first options of a group, for a message."""
    return ", ".join(options[:MAX_OPTIONS]) + (", ..." if len(options) > MAX_OPTIONS else "")


def no_option(error: MissingConfigException, files: ConfigFiles) -> str:
    """The message for an option that does not exist."""
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    options = files.options(group) or list(error.options or ())
    if group == "dataset" and Path(option).is_dir():
        return f"there is no option {group}={option}; for a folder of images use dataset=image_folder dataset.path={option}"
    if (new := OPTIONS.get(group, {}).get(option)) in options:
        return f"there is no option {group}={option}; its new name is {group}={new}"
    if group.startswith("hydra/"):
        if option in PLUGINS:
            return f"there is no option {group}={option}: pip install {PLUGINS[option]}"
        options = [*options, *PLUGINS]
    return f"{no_key(f'{group}={option}', options, 'option', option)}; options: {list_options(options)}"


class Names:
    """The keys, groups and options that a command line may name.

    Arguments:
        words: of the command line; choices that do not compose, or are swept, are ignored.
        files: of the command.
    """

    def __init__(self, words: Sequence[str], files: ConfigFiles):
        self.files = files
        lines = [
            str(override.input_line)
            for override in parse_words(words)
            if override.key_or_group in files.groups
            and override.type is OverrideType.CHANGE
            and not override.is_sweep_override()
        ]
        config = compose_valid(files, sorted(lines, key=lambda line: line.partition("=")[0].count("/")))
        self.all_choices = config.hydra.runtime.choices  # those of Hydra's own groups too
        self.choices = {place: name for place, name in self.all_choices.items() if not place.startswith("hydra/")}
        self.tree = to_plain(config)
        del self.tree["hydra"]
        self.keys = list(dotted_keys(self.tree))
        self.all = [*self.tree, *self.choices, *self.keys]

    def explain_key(self, key: str, value: str) -> str | None:
        """The message for a key or group that Hydra could not set to a value; None for a key of Hydra itself."""
        group = key.partition("@")[0]
        if key.startswith("hydra/"):
            return no_key(key, list(self.all_choices), "group")
        if key.startswith("hydra."):
            return None
        if select_key(self.tree, key.rpartition(".")[0]) == {}:  # of names that the user chooses
            return f"{key.rpartition('.')[0]} is empty: add an entry with + in front, +{key}=<value>"
        if group not in self.files.groups:
            return self.explain_missing_key(key)
        places = [place for place in self.choices if place.partition("@")[0] == group]
        if places:
            nearest = difflib.get_close_matches(key, places, 3, cutoff=0.0)
            return f"there is no choice {key} here; write {' or '.join(f'{place}={value}' for place in nearest)}"
        parent = group.rpartition("/")[0]
        if self.choices.get(parent) is None:
            return f"{group} is no choice of this command; its choices: {', '.join(self.choices)}"
        having = [name for name, keys in self.option_keys(parent).items() if group.replace("/", ".") in keys]
        return f"{group} is no choice with {parent}={self.choices[parent]}{list_having(parent, having)}"

    def explain_missing_key(self, key: str) -> str:
        """The message for a key that does not exist, with the options or commands that have it."""
        sentence = no_key(key, self.keys if "." in key else self.all, "key" if "." in key else "key or group")
        packages = {place.partition("@")[2] or place.replace("/", "."): place for place in self.choices}
        above = sorted((package for package in packages if key.startswith(f"{package}.")), key=len, reverse=True)
        if not above:
            having = [command for file, command in COMMANDS.items() if key in dotted_keys(self.files.read(file).tree)]
            return sentence + (f"; a key of {' and '.join(having)}" if having else "")
        suggestion = ""
        for package in above:
            place = packages[package]
            options, own = self.option_keys_above(place, package, key)
            if having := [name for name, keys in options.items() if own in keys]:
                suggestion = list_having(place, having)
                break
        else:
            place = packages[above[0]]
            options, own = self.option_keys_above(place, above[0], key)
            known = {name for keys in options.values() for name in keys}
            near = [] if "nearest" in sentence else difflib.get_close_matches(own, known, 1, 0.8)
            others = [f"; {place}={name} has {near[0]}" for name, keys in options.items() if near and near[0] in keys]
            suggestion = "".join(others[:3])
        return sentence.replace(key, f"{key} with {place}={self.choices[place] or 'null'}", 1) + suggestion

    def option_keys_above(self, place: str, package: str, key: str) -> tuple[dict[str, set[str]], str]:
        """The options of a choice with their keys, and the name that a key below this choice has in them."""
        group = place.partition("@")[0]
        return self.option_keys(group), f"{group.replace('/', '.')}.{key.removeprefix(f'{package}.')}"

    def option_keys(self, group: str) -> dict[str, set[str]]:
        """The options of a group with all their keys; short names, which are the most common, first."""
        keys = {}
        for option in sorted(self.files.options(group), key=len):
            with suppress(OmegaConfBaseException, YAMLError, TypeError, ValueError):  # an invalid file of the user
                keys[option] = set(self.files.keys(group, option))
        return keys


def compose_valid(files: ConfigFiles, choices: Sequence[str]) -> DictConfig:
    """The configuration with as many of the choices as compose together, in their order."""
    with suppress(*COMPOSE_ERRORS):
        return files.compose(choices)
    config, valid = files.compose([]), list[str]()
    for choice in choices:
        with suppress(*COMPOSE_ERRORS):
            config = files.compose([*valid, choice])
            valid.append(choice)
    return config


def list_having(group: str, options: Sequence[str]) -> str:
    """The first options that have a key, to be appended to a message."""
    return "".join(f"; {group}={option} has it" for option in options[:3]) + ("; ..." if options[3:] else "")


def no_key(key: str, names: Sequence[str], what: str = "key", word: str = "") -> str:
    """The message for a key that does not exist, with the nearest names.

    Arguments:
        word: compared with the names, default the key.
    """
    word = word or key
    names = [name for name in names if not name.endswith("_") and not word.startswith(f"{name}.")]
    same_end = sorted({name for name in names if name.rpartition(".")[2] == word.rpartition(".")[2]})
    synonyms = [name for name in SYNONYMS.get(word.lower(), ()) if name in names]
    close = dict.fromkeys([*synonyms, *difflib.get_close_matches(word, names, 3, 0.65), *same_end])
    return f"there is no {what} {key}" + (f"; nearest: {', '.join([*close][:3])}" if close else "")


def format_error(error: BaseException) -> str:
    """The message of an exception of Hydra, OmegaConf or YAML in one line."""
    text = str(error)
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        text = f"{text}\n{error.__cause__}"
    text = re.split(r"\n(?:Config s|S)earch path:", text)[0]
    lines = [line.strip() for line in text.splitlines() if line.strip() and not NOISE.fullmatch(line)]
    return "; ".join(line.rstrip(".") for line in lines)[:600] or type(error).__name__
