"""The data set of a training run; for a resumed run, also what has changed in it since."""

import copy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from ..checkpoints import data_record as provenance
from ..config.build import ConfigError, build
from ..datasets import Dataset
from .resume import Resumed
from .retyped import overridden

__all__ = ["open_training_data"]


def open_training_data(cfg: DictConfig, resumed: Resumed | None) -> tuple[Dataset, dict[str, Any] | None]:
    """The data set, and the line for metrics.jsonl that says what the resumed run changes, its data included.

    The data of a resumed run are read where they lay, wherever it is resumed from, or where dataset.path says; then they
    must be the same.

    Raises:
        ConfigError: no such data, other classes, or other data at another path.
    """
    if resumed is None:
        return build(cfg, "dataset"), None
    moved = "dataset.path" in overridden()
    placed = copy.deepcopy(cfg)
    with open_dict(placed):
        placed.dataset = cfg.dataset if moved else provenance.locate_data(cfg.dataset, resumed.data)
    path = placed.dataset.get("path")
    if isinstance(path, str) and "download" not in placed.dataset and not Path(path).expanduser().exists():
        lay = (resumed.data or {}).get("path") or path
        raise ConfigError(f"resume: {'dataset.path is' if moved else 'its data lay in'} {path if moved else lay}, which does "
                          "not exist: say where they lie now, dataset.path=<folder>")  # fmt: skip
    data, note = build(placed, "dataset"), resumed.note
    if resumed.class_names and resumed.class_names != data.class_names:
        raise ConfigError(
            f"resume: the classes of {resumed.folder} are {', '.join(resumed.class_names)}, and those of its data are now "
            f"{', '.join(data.class_names)}: the classes that were learned must keep their names and their order"
        )
    if resumed.checkpoint is None or (changed := provenance.find_changes(resumed.data, data)) is None:
        return data, note
    if moved:
        raise ConfigError(
            f"resume: dataset.path={cfg.dataset.path} does not hold the data of {resumed.folder}: "
            f"{provenance.describe_changes(changed)}; leave it out if the data have not moved"
        )
    return data, (note or {"images": int(resumed.checkpoint.stem)}) | {"data": changed}
