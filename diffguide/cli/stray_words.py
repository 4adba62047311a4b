"""Words of a command line that are neither a flag nor key=value: what was meant, as it is to be typed."""

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from ..config.diagnose import SYNONYMS, Composition, composable, is_choice
from ..config.files import all_groups
from ..config.quoting import PATHS, quoted
from .arguments import flag_parser

__all__ = ["explain"]

NUMBER = re.compile(r"-[\d.]")
OPEN = {"[": "]", "{": "}", "(": ")"}


def explain(words: Sequence[str], loader: ConfigLoader, config_name: str) -> str | None:
    """A sentence about the first such word; None where there is none, or nothing is known about it.

    Arguments:
        words: the command line.
        loader: reads the configuration files.
        config_name: the primary configuration, which is the command.
    """
    odd = next(strays(words), None)
    if odd is None:
        return None
    names = Names(words, loader, config_name)
    if words[odd].startswith("-"):
        return names.dashed(words, odd)
    return names.cut(words, odd) or names.spaced(words, odd) or names.alone(words[odd], words[odd - 1 : odd])


def strays(words: Sequence[str]) -> Iterator[int]:
    """The places of words that are neither flags of Hydra's, with their values, nor overrides."""
    parser, value = flag_parser(), False
    options = {option: action for action in parser._actions for option in action.option_strings}
    for place, word in enumerate(words):
        if value:
            value = False
        elif len(word) > 1 and word[0] == "-" and not NUMBER.match(word):
            flag = word.partition("=")[0]
            known = [options[flag]] if flag in options else []
            if not known and flag.startswith("--"):
                known = [action for option, action in options.items() if option.startswith(flag)]
            if not known:
                yield place
            elif known[0].nargs is None and "=" not in word:
                value = True
            elif known[0].nargs == "?" and words[place + 1 : place + 2] and words[place + 1] in known[0].choices:
                value = True
        elif word.partition("=")[0] == "" or ("=" not in word and not word.startswith("~")) or open_ended(word):
            yield place


def open_ended(word: str) -> bool:
    """Whether a bracket of a value is not closed, as where the shell cut a list at its spaces."""
    value = word.partition("=")[2]
    return not {"'", '"'} & set(value) and any(value.count(left) > value.count(right) for left, right in OPEN.items())


class Names:
    """The keys, groups and options that a command line may name."""

    def __init__(self, words: Sequence[str], loader: ConfigLoader, config_name: str):
        groups, parser, chosen = dict.fromkeys(all_groups(loader)), OverridesParser.create(), []
        for word in words:
            with suppress(HydraException):
                override = parser.parse_override(word)
                if not override.is_sweep_override() and is_choice(override, groups):
                    chosen.append(word)
        self.loader, self.command = loader, config_name
        self.composed: Composition = composable(loader, config_name, chosen)
        self.known = [*self.composed.tree, *self.composed.choices, *self.composed.keys]

    def key(self, word: str) -> str | None:
        """The key or group that a word means: itself, or the last part of a key."""
        for name in (word, word.replace("-", "_")):
            last = sorted((known for known in self.known if known.rpartition(".")[2] == name), key=len)
            for found in ([name] if name in self.known else [], last):
                if found:
                    return found[0]
        return None

    def write(self, key: str, value: str | None = None) -> str:
        """What to type to set a key."""
        node = self.composed.tree
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if value is None:
            return f"write {key}=true" if node is False else f"write {key}=<value>"
        return f"write {typable(f'{key}={value}')}"

    def dashed(self, words: Sequence[str], place: int) -> str | None:
        """--n 10, --n=10, -n 10, --batch-size 3."""
        name, equals, value = words[place].lstrip("-").partition("=")
        after = words[place + 1 : place + 2]
        if not equals:
            value = (
                after[0] if after and "=" not in after[0] and (after[0][:1] != "-" or NUMBER.match(after[0])) else None
            )
        key = self.key(name)
        if key is not None:
            return f"cannot read {words[place]}: keys have no dashes, {self.write(key, value)}"
        other = [key for key in SYNONYMS.get(name.replace("-", "_").lower(), ()) if key in self.known]
        if not words[place].startswith("--") and not other:
            return None
        near = f"; nearest: {other[0]}" if other else "; see --help"
        return f"unrecognized arguments: {words[place]}; keys have no dashes, key=value{near}"

    def cut(self, words: Sequence[str], place: int) -> str | None:
        """labels=[cat, dog] and dataset.path=my images without quotes: the shell has cut them at their spaces."""
        whole = words[place]
        if "=" in whole and open_ended(whole):
            for word in words[place + 1 :]:
                if "=" in word:
                    break
                whole += f" {word}"
            if whole == words[place] or open_ended(whole):
                return None if "=" in whole.partition("=")[2] else f"cannot read {whole!r}: a bracket is not closed"
            key, _, value = whole.partition("=")
            commas = re.sub(r",?\s+", ",", re.sub(r"\s*,\s*", ",", value))
            way = typable(whole) if ", " in whole else typable(f"{key}={commas}")
            return f"the shell cuts {whole!r} at its spaces: write {way}"
        before = words[place - 1] if place else ""
        key, equals, value = before.partition("=")
        if "=" not in whole and equals and value and Path(f"{value} {whole}").exists():
            return f"the shell cuts {key}={value} {whole} at its spaces: write {typable(f'{before} {whole}')}"
        return None

    def spaced(self, words: Sequence[str], place: int) -> str | None:
        """Spaces around =, a colon or a space in its place."""
        word, before, after = words[place], words[place - 1] if place else "", list(words[place + 1 : place + 3])
        if word.startswith("=") and self.key(before):
            return f"no spaces around =: {self.write(self.key(before), word[1:] or (after or ['<value>'])[0])}"
        if "=" not in word and before.endswith("=") and self.key(before[:-1]):
            return f"no spaces around =: {self.write(self.key(before[:-1]), word)}"
        name, colon, value = word.partition(":")
        if (key := self.key(name)) is None:
            return None
        if after and after[0].startswith("="):
            return f"no spaces around =: {self.write(key, after[0][1:] or (after[1:] or ['<value>'])[0])}"
        bare = after[0] if after and "=" not in after[0] and not after[0].startswith("--") else None
        if colon:
            return f"cannot read {word!r}: a key and its value have = between them, {self.write(key, value or bare)}"
        if bare is not None and self.key(bare) is None:
            return f"cannot read {word!r}: a key and its value have = between them, {self.write(key, bare)}"
        return f"cannot read {word!r}: {self.write(key)}" if name in self.known else None

    def alone(self, word: str, before: Sequence[str]) -> str:
        """A path, the name of an option, or anything else."""
        if word in ("help", "version"):
            return f"cannot read {word!r}: write --{word}"
        if Path(word).exists() or "/" in word or "\\" in word or word.endswith((".safetensors", ".yaml")):
            return f"cannot read {word!r}: a path needs its key, {meant_path(word, self.command)}"
        groups = [
            group for group in self.composed.choices if word in self.loader.get_group_options(group.split("@")[0])
        ]
        if groups:
            return f"cannot read {word!r}: write {' or '.join(f'{group}={word}' for group in groups[:3])}"
        if before and before[0].count("=") == 1 and not before[0].endswith("="):
            return f"cannot read {word!r}: if it belongs to the word before, write {shlex.quote(f'{before[0]} {word}')}"
        return f"cannot read {word!r}: every word is key=value, group=option or a flag, see --help"


def typable(override: str) -> str:
    """`key=value` as a shell takes it: a number stays one, and a list; a text that Hydra would trip over is quoted for it."""
    key = override.partition("=")[0]
    with suppress(HydraException):
        if key in PATHS or not OverridesParser.create().parse_override(override).is_sweep_override():
            return shlex.quote(override)
    return quoted(override)


def meant_path(word: str, command: str) -> str:
    """What a path is likely to be for, as it is to be typed."""
    path = Path(word).expanduser()
    run = path.parent.parent if path.suffix == ".safetensors" and path.parent.name == "checkpoints" else path
    if path.suffix in (".yaml", ".yml"):
        folder = shlex.quote(str(path.parent))
        return f"--config-dir {folder} for a folder with files of your own, guidance/mine.yaml, and guidance=mine"
    if command == "train":
        if (run / "checkpoints").is_dir():
            return f"{quoted(f'resume={run}')} to continue a run"
        if not path.is_dir():
            resume, images = quoted(f"resume={word}"), quoted(f"dataset.path={word}")
            return f"{resume} for a run to continue, dataset=image_folder {images} for images"
        classes = sum(part.is_dir() for part in path.iterdir())
        return (
            f"dataset=image_folder {quoted(f'dataset.path={word}')} dataset.num_classes={classes} for a folder of images"
            + (" guidance=none" if not classes else "")
        )
    begun = {"sample": ("shards", "samples.npz"), "evaluate": ("parts", "metrics.json", "begun.json")}.get(command, ())
    if any((path / name).exists() for name in begun):
        return f"{quoted(f'resume={word}')} to continue a run of this command"
    return f"{quoted(f'checkpoint={word}')} for a trained model"
