"""The root keys of a configuration as typed settings, one class for each command."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from ..checkpoints.allowlist import MAX_INTEGER
from ..config.build import ConfigError
from ..nodes.annotations import describe_hint, fits, parameter_hints

__all__ = ["LATER", "EvaluationSettings", "SamplingSettings", "TrainingSettings", "read_settings"]

T = TypeVar("T")
MINIMUM = {"seed": 0, "n": 1, "batch_size": 1}
CHOICES = {"weights": ("ema", "objective"), "split": ("train", "validation", "test")}
LATER = {  # keys that older runs do not have
    "null_class": None, "adapter": None, "adapter_scale": 1.0, "prompts": None, "latents": False,
}  # fmt: skip
MAX_SAMPLES = 10**7  # of one sampling run, whose labels are a list


def read_settings(settings: type[T], config: Mapping[str, Any]) -> T:
    """The settings of a class in a configuration, by the annotations of its arguments.

    Raises:
        ConfigError: a value of another type or out of its range.
    """
    hints = {key: hint for key, hint in (parameter_hints(settings) or {}).items() if key not in LATER or key in config}
    for key, hint in hints.items():
        value = config[key]
        if not fits(value, hint):
            raise ConfigError(f"{key} must be {describe_hint(hint)}, got {value!r}")
        if key in MINIMUM and value is not None and not MINIMUM[key] <= value <= MAX_INTEGER:
            raise ConfigError(f"{key} must be a whole number from {MINIMUM[key]} to 2^62, got {value}")
        if key in CHOICES and value not in CHOICES[key]:
            raise ConfigError(f"{key} must be {' or '.join(CHOICES[key])}, got {value!r}")
    return settings(**{key: config[key] for key in hints})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The root keys of every command.

    Arguments:
        output_root: folder of all runs.
        name: of the run; None = the name of its model.
        seed: from 0 to 2^62.
        trust: dotted names of classes outside diffguide that a checkpoint may build.
    """

    output_root: str
    name: str | None
    seed: int
    trust: Sequence[str]

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Self:
        """The settings in a configuration.

        Raises:
            ConfigError: a value of another type or out of its range.
        """
        return read_settings(cls, config)

    def run_parent(self, command: str, default_name: str = "") -> Path:
        """The folder that holds the versions of a run: <output_root>/<command>/<name>.

        Arguments:
            default_name: of a run whose name is None.

        Raises:
            ConfigError: a name or root that no folder can have.
        """
        name = self.name or default_name
        if not self.output_root:
            raise ConfigError("output_root must be a folder, got ''")
        if name in ("", ".", "..") or "/" in name:
            raise ConfigError(f"name must be the name of a folder, without slashes, got {name!r}")
        return Path(self.output_root).expanduser() / command / name


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """The root keys of diffguide-train, see train.yaml."""

    name: str
    compile: bool | str
    dry_run: bool

    def __post_init__(self) -> None:
        if isinstance(self.compile, str) and self.compile != "auto":
            raise ConfigError(f"compile must be true or false or auto, got {self.compile!r}")


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """The root keys of the commands that load a model.

    Arguments:
        weights: ema or objective.
        batch_size: examples at a time.
        n: number of examples.
        null_class: row of the class table of a network of diffusers for no class; None = the network says it.
        adapter: folder of an adapter for its network.
        adapter_scale: factor of this adapter, or of the run's own.
    """

    weights: str
    batch_size: int
    n: int | None
    null_class: int | None = None
    adapter: str | None = None
    adapter_scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(ModelSettings):
    """The root keys of diffguide-sample, see sample.yaml."""

    n: int
    png: bool
    trajectory: bool
    latents: bool = False

    def __post_init__(self) -> None:
        if self.n > MAX_SAMPLES:
            raise ConfigError(f"n must be at most 10^7 samples a run, got {self.n}: make several runs with other seeds")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(ModelSettings):
    """The root keys of diffguide-eval, see evaluate.yaml."""

    split: str
