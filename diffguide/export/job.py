"""An export of a trained model, ready to run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.store import load
from ..files.run_folders import create_dir
from ..runtime.errors import convert_input_errors
from .formats import Format

__all__ = ["ExportJob"]


@dataclass(frozen=True)
class ExportJob:
    """An export; nothing is written before `run`.

    Arguments:
        format: what to write.
        source: run folder, checkpoint file or folder of diffusers.
        target: folder to write.
        trust: dotted names of classes outside diffguide that the checkpoint may build.
        null_class: of a folder of diffusers whose network does not say it: the row of its class table for no class.
        adapter: as for `checkpoints.store.load`.
        adapter_scale: as for `checkpoints.store.load`; must be 1 for a format that takes an adapter alone.
    """

    format: Format
    source: Path
    target: Path
    trust: Sequence[str] = ()
    null_class: int | None = None
    adapter: str | None = None
    adapter_scale: float = 1.0

    def run(self) -> Path:
        """Writes the folder, at once or not at all; returns it.

        Raises:
            InputError: a checkpoint that cannot be read, a model that the format does not take, a folder that exists or
                cannot be written.
        """
        with convert_input_errors("source"):
            loaded = load(
                self.source,
                self.format.weights,
                trust=self.trust,
                null_class=self.null_class,
                adapter=self.adapter,
                adapter_scale=self.adapter_scale if self.format.merges_adapter else None,
            )

        def fill(folder: Path) -> None:
            with convert_input_errors("to"):
                self.format.write(loaded, folder)

        with convert_input_errors("target"):
            create_dir(self.target, fill)
        return self.target
