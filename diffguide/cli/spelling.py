"""The command line as it was typed, respelled for Hydra: old keys and options renamed, and keys of a run's own options.

Hydra composes a command line before any run is looked at, and refuses a key that its own defaults do not have. A key of a
run (`resume=RUN dataset.path=new`), and one of the data of a checkpoint (`checkpoint=RUN dataset.path=new`), is therefore
handed over with force; whether the run has it is seen where its configuration is read.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ..nodes.old_names import OPTIONS, renamed_key

__all__ = ["rename_options", "respell"]

GROUPS = {"oracle", "dataset", "backbone", "schedule", "objective", "guidance", "sampler", "metric"}
KEY = re.compile(r"([+~]*)([\w.]+)(=.*)?", re.DOTALL)


def respell(argv: Sequence[str]) -> list[str]:
    """The arguments with keys renamed, and those of a run forced."""
    parts = [KEY.fullmatch(text) for text in argv]
    said = {part[2]: (part[3] or "=")[1:] for part in parts if part}
    named = {key for key in ("resume", "checkpoint") if said.get(key, "null") not in ("null", "")}
    owned = GROUPS if "resume" in named else {"dataset"} if "checkpoint" in named else set()
    result = []
    for text, part in zip(argv, parts):
        if part is None:
            result.append(text)
            continue
        sign, key, value = part[1], renamed_key(part[2]), part[3] or ""
        if key != part[2]:
            print(f"{part[2]} is now {key}; the old name goes with the next version", file=sys.stderr)
        root = key.split(".")[0]
        force = not sign and value and root in owned and root != key and root not in said
        result.append(f"{'++' if force else sign}{key}{value}")
    return result


def rename_options(argv: Sequence[str], folders: Sequence[str | Path]) -> list[str]:
    """The arguments with old names of options replaced by the new ones, and one line on stderr for each.

    An old name stays where one of the folders has an option of that name (the user's own), or none has the new one.

    Arguments:
        folders: of configuration files.
    """

    def has_option(group: str, option: str) -> bool:
        return any(Path(folder, group, f"{option}.yaml").is_file() for folder in folders)

    result = []
    notices: dict[str, None] = {}  # in order, each once
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
        print(f"{notice}; the old name goes with the next version", file=sys.stderr)
    return result
