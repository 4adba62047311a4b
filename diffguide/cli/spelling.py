"""The command line as it was typed, respelled for Hydra: keys by their names of today, and keys of a run's own options.

Hydra composes a command line before any run is looked at, and refuses a key that its own defaults do not have. A key of a
run (`resume=RUN dataset.path=new`), and one of the data of a checkpoint (`checkpoint=RUN dataset.path=new`), is therefore
handed over with force; whether the run has it is seen where its configuration is read.
"""

import re
from collections.abc import Sequence

from ..nodes.old_names import renamed_key

__all__ = ["respelled"]

GROUPS = {"oracle", "dataset", "backbone", "schedule", "objective", "guidance", "sampler", "metric"}
KEY = re.compile(r"([+~]*)([\w.]+)(=.*)?", re.DOTALL)


def respelled(argv: Sequence[str]) -> list[str]:
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
        root = key.split(".")[0]
        force = not sign and value and root in owned and root != key and root not in said
        result.append(f"{'++' if force else sign}{key}{value}")
    return result
