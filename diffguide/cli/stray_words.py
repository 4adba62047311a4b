"""Corrections of words of a command line that are neither a flag nor key=value."""

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..config.diagnose import SYNONYMS, Names
from ..config.files import ConfigFiles, select_key
from ..config.quoting import PATHS, parse_override, quote
from .arguments import FLAGS

__all__ = ["explain_stray_word", "name_plain_words"]

NUMBER = re.compile(r"-[\d.]")
OPEN = {"[": "]", "{": "}", "(": ")"}
SETTING = re.compile(r"(-*)([\w./-]+?)(\s*[=:]\s*|\s+|$)(\S*).*", re.DOTALL)  # dashes, name, separator, value


def explain_stray_word(words: Sequence[str], files: ConfigFiles) -> str | None:
    """The message for the first such word; None where there is none, or no correction."""
    place = next(stray_places(words), None)
    if place is None:
        return None
    names = Names(words, files)
    if words[place].startswith("-"):
        return explain_setting(words, place, names) or explain_flag(words[place], names)
    return explain_split(words, place) or explain_setting(words, place, names) or explain_single(words, place, names)


def name_plain_words(words: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The words, the first plain ones as key=word; with --help they stay, since the help explains single words."""
    named = list(words)
    if keys and {"--help", "-h"}.isdisjoint(words):
        plain = (
            place for place in stray_places(words) if words[place][:1] not in ("-", "=") and "=" not in words[place]
        )
        for key, place in zip(keys, plain):
            named[place] = f"{key}={words[place]}"
    return named


def stray_places(words: Sequence[str]) -> Iterator[int]:
    """The positions of words that are neither flags, their values, nor overrides."""
    is_value = False
    for place, word in enumerate(words):
        if is_value:
            is_value = False
        elif len(word) > 1 and word[0] == "-" and not NUMBER.match(word):
            options = find_flag(word.partition("=")[0])
            if options is None:
                yield place
            elif "action" not in options and "=" not in word:
                is_value = "nargs" not in options or words[place + 1 : place + 2] in [
                    [name] for name in options["choices"]
                ]
        elif word[:1] == "=" or ("=" not in word and not word.startswith("~")) or has_open_bracket(word):
            yield place


def find_flag(word: str) -> dict[str, Any] | None:
    """The options of argparse for a flag, which may be abbreviated; None for an unknown flag."""
    known = (
        options for names, options in FLAGS.items() if word in names or (word[:2] == "--" and names[0].startswith(word))
    )
    return next(known, None)


def has_open_bracket(word: str) -> bool:
    """Whether a bracket of a value is not closed, as where the shell splits a list at its spaces."""
    value = word.partition("=")[2]
    return not {"'", '"'} & set(value) and any(value.count(left) > value.count(right) for left, right in OPEN.items())


def find_key(word: str, names: Names) -> str | None:
    """The key or group of a word: itself, or a key that ends with it."""
    for name in (word, word.replace("-", "_")):
        last = sorted((known for known in names.all if known.rpartition(".")[2] == name), key=len)
        for keys in ([name] if name in names.all else [], last):
            if keys:
                return keys[0]
    return None


def explain_setting(words: Sequence[str], place: int, names: Names) -> str | None:
    """The message for a key and a value in another form: --n 10, --n=10, n: 10, n 10, n = 10, n= 10."""
    start = place - 1 if place and words[place - 1].endswith("=") and "=" not in words[place] else place
    after = takewhile(may_be_value, words[start + 1 : start + 3])
    setting = SETTING.fullmatch(" ".join([words[start], *after]))
    key = setting and find_key(setting[2], names)
    if not setting or not key:
        return None
    dashes, name, between, value = setting.groups()
    if not dashes and not between.strip() and find_key(value, names):
        value = ""  # the next word is a key itself
    if not dashes and not value and name not in names.all:
        return None
    if not value:
        value = "true" if select_key(names.tree, key) is False else "<value>"
    reason = "keys have no dashes, " if dashes else ""
    way = f"{key}={value}"
    return f"cannot read {words[place]!r}: {reason}write {way if value == '<value>' else quote_typed(way)}"


def may_be_value(word: str) -> bool:
    """Whether a word is neither a flag nor key=value; `=` and `=10` may follow a key."""
    return "=" not in word[1:] and (word[:1] != "-" or NUMBER.match(word) is not None)


def explain_flag(word: str, names: Names) -> str | None:
    """The message for a word with dashes that is no key; suggests the key for the name of another program."""
    name = word.lstrip("-").partition("=")[0].replace("-", "_").lower()
    others = [key for key in SYNONYMS.get(name, ()) if key in names.all]
    if not word.startswith("--") and not others:
        return None
    near = f"; nearest: {others[0]}" if others else "; see --help"
    return f"unrecognized arguments: {word}; keys have no dashes, key=value{near}"


def explain_split(words: Sequence[str], place: int) -> str | None:
    """The message for values that the shell splits at spaces: labels=[cat, dog], dataset.path=my images."""
    whole = words[place]
    if "=" in whole and has_open_bracket(whole):
        for word in words[place + 1 :]:
            if "=" in word:
                break
            whole += f" {word}"
        if whole == words[place] or has_open_bracket(whole):
            return None if "=" in whole.partition("=")[2] else f"cannot read {whole!r}: a bracket is not closed"
        commas = re.sub(r",?\s+", ",", re.sub(r"\s*,\s*", ",", whole))
        return f"the shell splits {whole!r} at its spaces: write {quote_typed(whole if re.search('[,:] ', whole) else commas)}"
    before = words[place - 1] if place else ""
    value = before.partition("=")[2]
    if "=" not in whole and value and Path(f"{value} {whole}").exists():
        return f"the shell splits {before} {whole} at its spaces: write {quote_typed(f'{before} {whole}')}"
    return None


def explain_single(words: Sequence[str], place: int, names: Names) -> str:
    """The message for a single word: a path, the name of an option, or any other."""
    word = words[place]
    before = words[place - 1] if place else ""
    if word in ("help", "version"):
        return f"cannot read {word!r}: write --{word}"
    if Path(word).exists() or "/" in word or "\\" in word or word.endswith((".safetensors", ".yaml")):
        return f"cannot read {word!r}: a path needs its key, {explain_path(word, names.files.name)}"
    groups = [place for place in names.choices if word in names.files.options(place.partition("@")[0])]
    if groups:
        return f"cannot read {word!r}: write {' or '.join(f'{group}={word}' for group in groups[:3])}"
    if before.count("=") == 1 and not before.endswith("="):
        return f"cannot read {word!r}: if it belongs to the word before, write {shlex.quote(f'{before} {word}')}"
    return f"cannot read {word!r}: every word is key=value, group=option or a flag, see --help"


def quote_typed(override: str) -> str:
    """`key=value` quoted for a shell; a text that Hydra cannot parse is quoted for Hydra too."""
    parsed = parse_override(override)
    plain = parsed and (override.partition("=")[0] in PATHS or not parsed.is_sweep_override())
    return shlex.quote(override) if plain else quote(override)


def explain_path(word: str, command: str) -> str:
    """The key that a path is probably for, with the path, as key=value."""
    path = Path(word).expanduser()
    run = path.parent.parent if path.suffix == ".safetensors" and path.parent.name == "checkpoints" else path
    if path.suffix in (".yaml", ".yml"):
        folder = shlex.quote(str(path.parent))
        return f"--config-dir {folder} for a folder with your own files, guidance/mine.yaml, and guidance=mine"
    images = f"dataset=image_folder {quote(f'dataset.path={word}')}"
    if command == "train" and (run / "checkpoints").is_dir():
        return f"{quote(f'resume={run}')} to continue a run"
    if command == "train" and path.is_dir():
        classes = sum(part.is_dir() for part in path.iterdir())
        unconditional = "" if classes else " guidance=none"
        return f"{images} dataset.num_classes={classes}{unconditional} for a folder of images"
    if command == "train":
        return f"{quote(f'resume={word}')} for a run to continue, {images} for images"
    if command == "convert":
        return "source= or target=, which are the first two words without a key"
    begun = {"sample": ("shards", "samples.npz"), "evaluate": ("parts", "metrics.json", "begun.json")}.get(command, ())
    if any((path / name).exists() for name in begun):
        return f"{quote(f'resume={word}')} to continue a run of this command"
    return f"{quote(f'checkpoint={word}')} for a trained model"
