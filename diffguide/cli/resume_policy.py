"""What a resumed run may change: one table of keys for each kind of run, and one comparison."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.store import CheckpointError
from ..config.build import ConfigError
from .arguments import changed_keys

__all__ = ["GENERATION", "TRAINING", "check_unchanged", "resume_error", "training_changes", "today_keys"]

FIXED, FREE, TODAY = "fixed", "free", "today"
"""fixed: cannot change; free: may change; today: always that of the command line."""
RATES_AND_LENGTHS = (
    "images",
    "learning_rate",
    "warmup_images",
    "max_grad_norm",
    "ema_images",
    "accumulate",
    "log_images",
    "validation_images",
    "checkpoint_images",
    "sample_images",
    "keep_checkpoints",
    "extend",
    "extend_rate",
)
TRAINING = {  # a key without an entry follows its parent, "" is the root
    "": FREE,
    **dict.fromkeys(("name", "output_root", "seed", "p_uncond", "init_from"), FIXED),
    **dict.fromkeys(("dataset", "backbone", "schedule", "objective", "training"), FIXED),
    **{f"training.{name}": FREE for name in RATES_AND_LENGTHS},
    "dataset.path": FREE,  # the data may have moved: their contents are compared
    "first_stage": FIXED,
    **{f"first_stage.{name}": FREE for name in ("path", "cache", "batch_size", "memory")},  # its hash is compared
    **dict.fromkeys(("resume", "trust", "dry_run"), TODAY),
}
GENERATION = {  # of sampling and evaluation
    "": FIXED,
    **dict.fromkeys(("checkpoint", "engine"), FREE),  # the checkpoint may have moved: its hash is compared
    "engine.precision": FIXED,
    **dict.fromkeys(("resume", "trust"), TODAY),
}


def today_keys(policy: Mapping[str, str]) -> list[str]:
    """The keys whose values are always those of the command line."""
    return [key for key, rule in policy.items() if rule == TODAY]


def rule_of(key: str, policy: Mapping[str, str]) -> str:
    """The rule of a dotted key: its own, or that of the nearest parent that has one."""
    while key not in policy:
        key = key.rpartition(".")[0]
    return policy[key]


def differences(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value before, value after) of every value that differs, lists as a whole; None where there is none."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in {**before, **after}:
            place = f"{key}.{name}" if key else str(name)
            if name in before and name in after:
                yield from differences(before[name], after[name], place)
            else:
                yield place, before.get(name), after.get(name)
    elif before != after:
        yield key, before, after


def training_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The free keys of the node `training` that differ, {key: [before, after]}, sorted."""
    changed = {key: [old, new] for key, old, new in differences(before, after, "training")}
    return {key: changed[key] for key in sorted(changed) if rule_of(key, TRAINING) == FREE}


def check_unchanged(
    folder: Path, before: Mapping[str, Any], after: Mapping[str, Any], policy: Mapping[str, str]
) -> None:
    """Raises ConfigError for the first fixed key with another value than in the run in `folder`."""
    for key, old, new in differences(before, after):
        if rule_of(key, policy) == FIXED:
            causes = [
                str(override.input_line).lstrip("+~")
                for name, override in changed_keys().items()
                if name == "experiment" or f"{key}.".startswith(f"{name}.")
            ]
            hint = f"drop {causes[-1]}" if causes else f"{folder / 'config.yaml'} was edited"
            if key.startswith("training.optimizer"):
                hint = f"give {key}={old}: the optimiser is never read from a file"
            change = f"{key.removesuffix('._target_')} ({shorten_value(old)} -> {shorten_value(new)})"
            raise resume_error(f"cannot change {change} of {folder}: {hint}")


def shorten_value(value: Any) -> str:
    """A value for a message: a node by its class, a class of diffguide without its module."""
    if isinstance(value, dict):
        return shorten_value(value.get("_target_", "..."))
    return value.rpartition(".")[2] if isinstance(value, str) and value.startswith("diffguide.") else str(value)


def resume_error(message: str) -> ConfigError:
    """An error of `resume`, in one printable line of limited length: parts may come from a foreign file."""
    return ConfigError(str(CheckpointError(f"resume: {message}")))
