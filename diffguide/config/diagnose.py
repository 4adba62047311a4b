"""What is wrong with a command line that Hydra could not compose, in one sentence with the nearest right name.

Hydra's exception says which override failed; its key is compared with the keys, groups and options of what does compose.
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
from .files import ConfigFiles, dotted_keys, to_plain
from .quoting import explain_unreadable, parse_override

__all__ = ["Names", "REPORTED", "SYNONYMS", "explain", "no_key", "parse_words", "wrong_choice"]

REPORTED = (HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError)  # what composing raises
MAX_OPTIONS = 12  # in a message
MAX_JOBS = 100  # of a sweep, that are looked at
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
PLUGINS = {  # options of Hydra's groups that come with a package of their own
    "hydra/launcher": {
        "joblib": "hydra-joblib-launcher", "submitit_local": "hydra-submitit-launcher",
        "submitit_slurm": "hydra-submitit-launcher", "ray": "hydra-ray-launcher", "ray_aws": "hydra-ray-launcher",
        "rq": "hydra-rq-launcher",
    },
    "hydra/sweeper": {
        "optuna": "hydra-optuna-sweeper", "ax": "hydra-ax-sweeper", "nevergrad": "hydra-nevergrad-sweeper",
    },
    "hydra/job_logging": {"colorlog": "hydra_colorlog"},
    "hydra/hydra_logging": {"colorlog": "hydra_colorlog"},
}  # fmt: skip
NOISE = re.compile(r"\s*(full_key:|object_type=|reference_type=|To append to|See https|Available options|Check that).*")
SEVERAL = re.compile(r"(?:Ambiguous value for argument|Sweep parameters) '([^']*)'")
KEY = re.compile(r"'([^']+)'")  # of the override that Hydra's message is about


def explain(error: BaseException, words: Sequence[str], files: ConfigFiles) -> str | None:
    """A sentence about an exception that composing a command line raised; None where it is not the user's mistake."""
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
        return no_option(error, files) if "/" in (error.missing_cfg_file or "") else brief(error)
    if isinstance(error, ConfigCompositionException) and (named := KEY.search(str(error))):
        inside = re.search(r"full_key: (\S+)", str(error.__cause__))
        key = max(named[1], inside[1] if inside else "", key=len)
        word = next((word for word in words if word.lstrip("+~").partition("=")[0] == key), f"{key}=<value>")
        for job in jobs(words, files):
            names = Names(job, files)
            if word.startswith("+") or key not in names.keys:
                return names.explain_key(key, word) or brief(error)
    return brief(error) if isinstance(error, REPORTED) else None


def jobs(words: Sequence[str], files: ConfigFiles) -> Iterator[Sequence[str]]:
    """The command lines of a sweep over options, the first of them; of a single run, its own."""
    ways = []
    for word in words:
        override = next(parse_words([word]))
        if override.key_or_group in files.groups and override.is_discrete_sweep():
            ways.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            ways.append([word])
    yield from itertools.islice(itertools.product(*ways), MAX_JOBS)


def explain_several(word: str, files: ConfigFiles) -> str:
    """A sentence about several values where there is one run."""
    key, _, value = word.partition("=")
    ways = [] if key in files.groups else [f"write one list, {key}=[{value}]"]
    ways += [f"one number, {key}={value.replace(',', '')}"] if THOUSANDS.fullmatch(value) else []
    return f"{word} gives several values: {', or '.join(['run them all with -m', *ways])}"


def parse_words(words: Iterable[str]) -> Iterator[Override]:
    """The overrides of a command line that can be read."""
    return filter(None, map(parse_override, words))


def wrong_choice(override: Override, files: ConfigFiles) -> str | None:
    """What is wrong with the value that is given to a group, if anything: Hydra takes one name of an option."""
    group = override.key_or_group or ""
    if group not in files.groups or override.is_sweep_override():
        return None
    value, options = override.value(), files.options(group)
    if override.is_delete() and "/" not in group:
        return f"{group} cannot be left out: choose {group}=<option>; options: {listed(options)}"
    if isinstance(value, list):
        return (
            f"{group} takes one option, got {override.input_line}; compose several in a file of your own (--config-dir)"
        )
    if value is None and not override.is_delete():
        return f"{group} takes an option, got null: leave it out, or choose one of {listed(options)}"
    if isinstance(value, int | float):
        return f"there is no option {group}={value}; options: {listed(options)}"
    return None


def listed(options: Sequence[str]) -> str:
    """The first options."""
    return ", ".join(options[:MAX_OPTIONS]) + (", ..." if len(options) > MAX_OPTIONS else "")


def no_option(error: MissingConfigException, files: ConfigFiles) -> str:
    """A sentence about an option that is not there."""
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    options, plugins = files.options(group) or list(error.options or ()), PLUGINS.get(group, {})
    if option in plugins:
        return f"{group}={option} comes with a package of its own: pip install {plugins[option]}"
    if (new := OPTIONS.get(group, {}).get(option)) in options:
        return f"{str(error).splitlines()[0]}: {group}/{option} is now {group}/{new}"
    if group == "dataset" and Path(option).is_dir():
        return f"there is no option {group}={option}: for a folder of images say dataset=image_folder dataset.path={option}"
    more = "".join(f"; {name} with pip install {package}" for name, package in plugins.items())
    known = [*options, *plugins]
    return f"{no_key(f'{group}={option}', known, 'option', option)}; options: {listed(options)}{more}"


class Names:
    """The keys, groups and options that a command line may name: those of what composes of its choices.

    Arguments:
        words: of the command line; choices that do not compose, or are swept, are left out.
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
        self.choices = {
            place: name for place, name in config.hydra.runtime.choices.items() if not place.startswith("hydra/")
        }
        self.tree = to_plain(config)
        del self.tree["hydra"]
        self.keys = list(dotted_keys(self.tree))
        self.all = [*self.tree, *self.choices, *self.keys]

    def explain_key(self, key: str, word: str) -> str | None:
        """A sentence about a key or group that Hydra could not set; None where it is one of Hydra's own.

        Arguments:
            word: the override as it was typed.
        """
        group, value = key.partition("@")[0], word.partition("=")[2]
        if key.startswith("hydra/"):
            return no_key(key, list(PLUGINS), "group")
        if key.startswith("hydra."):
            return None
        if word.startswith("+") and key in self.all:
            return f"{key} is there already: write {word.lstrip('+')}, without +"
        if group not in self.files.groups:
            return self.no_key(key)
        places = [place for place in self.choices if place.partition("@")[0] == group]
        if places:
            ways = " or ".join(f"{place}={value}" for place in difflib.get_close_matches(key, places, 3, cutoff=0.0))
            return f"there is no choice {key} here; write {ways}"
        parent = group.rpartition("/")[0]
        if self.choices.get(parent) is None:
            return f"{group} is no choice of this command; its choices: {', '.join(self.choices)}"
        having = [name for name, keys in self.options(parent).items() if group.replace("/", ".") in keys]
        return f"{group} is no choice with {parent}={self.choices[parent]}{so_have(parent, having)}"

    def no_key(self, key: str) -> str:
        """A sentence about a key that is not there, and about the options and commands that have it."""
        sentence = no_key(key, self.keys if "." in key else self.all, "key" if "." in key else "key or group")
        packages = {place.partition("@")[2] or place.replace("/", "."): place for place in self.choices}
        inside = sorted((package for package in packages if key.startswith(f"{package}.")), key=len, reverse=True)
        for package in inside:
            options, own = self.options_above(packages[package], package, key)
            if having := [name for name, keys in options.items() if own in keys]:
                return self.with_place(sentence, key, packages[package]) + so_have(packages[package], having)
        if inside:
            options, own = self.options_above(packages[inside[0]], inside[0], key)
            known = {name for keys in options.values() for name in keys}
            near = [] if "nearest" in sentence else difflib.get_close_matches(own, known, 1, 0.8)
            others = [
                f"; {packages[inside[0]]}={name} has {near[0]}" for name in options if near and near[0] in options[name]
            ]
            return self.with_place(sentence, key, packages[inside[0]]) + "".join(others[:3])
        commands = {"train": "diffguide-train", "sample": "diffguide-sample", "evaluate": "diffguide-eval"}
        having = [command for file, command in commands.items() if key in dotted_keys(self.files.read(file).tree)]
        return sentence + (f"; {' and '.join(having)} {'have' if len(having) > 1 else 'has'} it" if having else "")

    def with_place(self, sentence: str, key: str, place: str) -> str:
        """A sentence about a key that also names the choice above it."""
        return sentence.replace(key, f"{key} with {place}={self.choices[place] or 'null'}", 1)

    def options_above(self, place: str, package: str, key: str) -> tuple[dict[str, set[str]], str]:
        """The options of a choice above a key with their keys, and the key as it is named there."""
        group = place.partition("@")[0]
        return self.options(group), f"{group.replace('/', '.')}.{key.removeprefix(f'{package}.')}"

    def options(self, group: str) -> dict[str, set[str]]:
        """The options of a group, short names first, which are the commonest, each with all keys that it leads to."""
        keys = {}
        for option in sorted(self.files.options(group), key=len):
            with suppress(OmegaConfBaseException, YAMLError, TypeError, ValueError):  # a file of the user's
                keys[option] = set(self.files.keys(group, option))
        return keys


def compose_valid(files: ConfigFiles, choices: Sequence[str]) -> DictConfig:
    """The configuration with as many of the choices as go together, in their order."""
    with suppress(*REPORTED):
        return files.compose(choices)
    config, kept = files.compose([]), list[str]()
    for choice in choices:
        with suppress(*REPORTED):
            config = files.compose([*kept, choice])
            kept.append(choice)
    return config


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
    text = re.split(r"\n(?:Config s|S)earch path:", text)[0]
    lines = [line.strip() for line in text.splitlines() if line.strip() and not NOISE.fullmatch(line)]
    return "; ".join(line.rstrip(".") for line in lines)[:600] or type(error).__name__
