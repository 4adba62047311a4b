"""prompts: the conditions of samples that are no classes, as a list, a file or the lines of stdin."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..backbones.conditioning import Conditioning
from ..backbones.conditions import RowCondition
from ..config.build import ConfigError
from ..guidance.potentials.clip import NO_TEXT
from ..guidance.potentials.values import find_text_potentials
from ..models.protocols import Denoiser, Energy
from ..runtime.errors import convert_input_errors

__all__ = ["give_prompts", "read_conditions", "read_prompts"]

STDIN = "-"
MAX_PROMPTS = 10**6
MAX_BYTES = 2**30  # of a file of prompts


def read_prompts(value: Any) -> list[Any]:
    """The prompts of a configuration: a list, one prompt, the lines of a file or of stdin.

    Raises:
        ConfigError: no prompt, too many, or a file that cannot be read.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        prompts = ["" if prompt is None else prompt for prompt in value]
    elif value == STDIN:
        prompts = split_lines(sys.stdin.read(MAX_BYTES))
    elif isinstance(value, str) and Path(value).suffix == ".txt":
        prompts = read_lines(Path(value).expanduser())
    else:
        prompts = [value]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        where = {STDIN: " in stdin"}.get(value, f" in {value}") if isinstance(value, str) else ""
        raise ConfigError(f"prompts must be 1 to {MAX_PROMPTS} texts, got {len(prompts) or 'none'}{where}")
    return prompts


def read_lines(path: Path) -> list[str]:
    """The lines of a file."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"prompts: {path} is too large for a list of texts")
        return split_lines(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"prompts: {path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error
    except OSError as error:
        raise ConfigError(f"prompts: {path} cannot be read: {error.strerror}") from error


def split_lines(text: str) -> list[str]:
    """Its lines, without the mark with which some editors begin a file of UTF-8."""
    return text.removeprefix("\ufeff").splitlines()


def read_conditions(
    prompts: Sequence[Any], conditioning: Conditioning | None, for_guidance: bool
) -> tuple[list[str], RowCondition | None]:
    """The prompts as they are shown, and their conditions, a row each; None for texts that the guidance alone reads.

    Arguments:
        for_guidance: whether the guidance reads them, so that the model need not.

    Raises:
        ConfigError: a model with classes or without conditions, or a prompt that it does not take.
    """
    if conditioning is None and for_guidance:
        return [show_prompt(prompt) for prompt in prompts], None
    if conditioning is None:
        raise ConfigError(
            "prompts need a model that was trained with condition=text or another one: choose classes by labels="
        )
    with convert_input_errors("prompts"):
        conditions = conditioning.read(prompts)
    if not isinstance(conditions, RowCondition):
        raise ConfigError("prompts need a condition of rows; choose classes by labels=")
    return [show_prompt(prompt) for prompt in prompts], conditions


def give_prompts(
    guided: Denoiser | Energy, prompts: Sequence[Any] | None, seeds: Sequence[int], labels: Sequence[int] | None
) -> None:
    """Gives each sample the text of its prompt, if the guidance needs texts.

    Arguments:
        labels: the index of the prompt of each sample, -1 = none; None = no sample has one.

    Raises:
        ConfigError: there are no prompts, or they are no texts.
    """
    potentials = find_text_potentials(guided)
    if not potentials:
        return
    if prompts is None or labels is None:
        raise ConfigError(NO_TEXT)
    texts = [*list_texts(prompts, guided.conditioning), ""]
    for potential in potentials:
        potential.give_texts(seeds, [texts[label] for label in labels])


def list_texts(prompts: Sequence[Any], conditioning: Conditioning | None) -> list[str]:
    """The texts of prompts, for a guidance that reads them; "" = a prompt without a text.

    Raises:
        ConfigError: prompts that are no texts.
    """
    parts = getattr(conditioning, "texts", [])  # of condition=several, the names of those that read texts
    texts = [prompt.get(parts[0], "") if isinstance(prompt, Mapping) and parts else prompt for prompt in prompts]
    if conditioning is not None and not conditioning.reads_text or not all(isinstance(text, str) for text in texts):
        raise ConfigError('this guidance needs texts, and these prompts are none: give prompt="..." beside them')
    return texts


def show_prompt(prompt: Any) -> str:
    """A prompt for manifests and pictures."""
    if isinstance(prompt, Mapping):
        given = {name: value for name, value in prompt.items() if value is not None}
        return ", ".join(f"{name}: {show_prompt(value)}" for name, value in given.items())
    if isinstance(prompt, Sequence) and not isinstance(prompt, str):
        return ", ".join(map(str, prompt))
    return str(prompt)
