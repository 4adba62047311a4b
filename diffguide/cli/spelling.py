"""Changes of the command line before Hydra reads it: new names for old keys and options, and ++ for keys of a run.

Hydra composes a command line before a run is read, and raises an error for a key that the default options do not have. A
key of a run (`resume=RUN dataset.path=new`), or of the data of a checkpoint (`checkpoint=RUN dataset.path=new`), therefore
gets ++. `inheritance` checks that the run has it.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ..nodes.old_names import OPTIONS, current_key

__all__ = ["rename_options", "respell"]

GROUPS = {"oracle", "dataset", "backbone", "schedule", "objective", "guidance", "sampler", "metric"}
KEY = re.compile(r"([+~]*)([\w.]+)(=.*)?", re.DOTALL)


def respell(argv: Sequence[str]) -> list[str]:
    """The arguments with renamed keys, and ++ before the keys of a run."""
    parts = [KEY.fullmatch(text) for text in argv]
    values = {part[2]: (part[3] or "=")[1:] for part in parts if part}
    runs = {key for key in ("resume", "checkpoint") if values.get(key, "null") not in ("null", "")}
    groups_of_run = set[str]()
    if "resume" in runs:
        groups_of_run = GROUPS
    elif "checkpoint" in runs:
        groups_of_run = {"dataset"}
    result = []
    for text, part in zip(argv, parts):
        if part is None:
            result.append(text)
            continue
        sign, old_key, value = part.groups(default="")
        key = current_key(old_key)
        if key != old_key:
            print(f"{old_key} is now {key}; the next version removes the old name", file=sys.stderr)
        root = key.split(".")[0]
        force = not sign and value and root in groups_of_run and root != key and root not in values
        result.append(f"{'++' if force else sign}{key}{value}")
    return result


def rename_options(argv: Sequence[str], folders: Sequence[str | Path]) -> list[str]:
    """The arguments with new names for old options; prints one line on stderr for each.

    An old name is kept where a folder has an option of that name (of the user), or none has the new one.

    Arguments:
        folders: of configuration files.
    """

    def has_option(group: str, option: str) -> bool:
        return any(Path(folder, group, f"{option}.yaml").is_file() for folder in folders)

    result = []
    notices: dict[str, None] = {}  # an ordered set
    for text in argv:
        choice, equals, value = text.partition("=")
        group = choice.lstrip("+~").partition("@")[0]
        for old, new in OPTIONS.get(group, {}).items() if equals else ():
            renamed = re.sub(rf"(?<![\w./-]){old}(?![\w./-])", new, value)
            if renamed != value and has_option(group, new) and not has_option(group, old):
                value = renamed
                notices[f"{choice}={old} is now {choice}={new}"] = None
        result.append(f"{choice}{equals}{value}")
    for notice in notices:
        print(f"{notice}; the next version removes the old name", file=sys.stderr)
    return result
