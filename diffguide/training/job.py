"""A training run, built from its configuration and ready to start."""

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import store as checkpoints
from ..datasets import Dataset
from ..files.run_folders import (
    WriteError,
    convert_write_errors,
    create_version_dir,
    lock_run_dir,
    remove_leftovers,
    write_atomically,
)
from ..models.protocols import Denoiser, Energy
from ..objectives import Diverged, Objective
from ..runtime.engine import Fabric, kill_launched_processes, launched_by_torchrun
from ..runtime.errors import InputError
from ..runtime.signals import Stopped
from ..samplers import Sampler, SamplingError
from .dry_run import write_dry_run
from .loop import Training
from .pictures import TrainingPictures

__all__ = ["TrainingJob"]

OUT_OF_MEMORY = (
    "the device's memory is full: raise training.accumulate, lower training.batch_size, or backbone.checkpointing=true"
)


@dataclass
class TrainingJob:
    """Everything that a training run needs, built; nothing is written before `run`.

    Arguments:
        parent: folder of the run's versions.
        seed: of weights, data order and noise.
        engine: Fabric, launched by torchrun or by `run`.
        data: what to train on.
        objective: what is trained.
        training: how.
        sampler: of the sample grids.
        guide: (denoiser, device) -> guided denoiser, for the sample grids; an energy is returned as it is.
        config: resolved configuration, for the checkpoints.
        config_yaml: the same as the text of config.yaml.
        compiled: whether the backbone goes through torch.compile.
        dry_run: whether to look at data, network and cost only.
        folder: of the run to resume, None = a new run.
        checkpoint: to resume from, None = from the start.
        note: line for metrics.jsonl that says what a resumed run changes.
        smaller_objectives: names and objectives of smaller networks, largest first, for the dry run.
    """

    parent: Path
    seed: int
    engine: Fabric
    data: Dataset
    objective: Objective
    training: Training
    sampler: Sampler
    guide: Callable[[Denoiser | Energy, Any], Denoiser | Energy]
    config: Mapping[str, Any]
    config_yaml: str
    compiled: bool = False
    dry_run: bool = False
    folder: Path | None = None
    checkpoint: Path | None = None
    note: dict[str, Any] | None = None
    smaller_objectives: Callable[[], Iterable[tuple[str, Objective]]] = tuple

    @property
    def generates(self) -> bool:
        """Whether the model makes samples: a classifier does not, nor does a density at a single noise level."""
        model = self.objective.model
        return isinstance(model, Denoiser | Energy) and (model.levels is None or len(model.levels) > 1)

    def guided(self, model: Denoiser | Energy, device: Any) -> Denoiser | Energy:
        """A model under the guidance of the sample grids."""
        model.class_names = self.data.class_names if model.num_classes else ()
        return self.guide(model, device)

    def run(self) -> Path | None:
        """Trains; returns the folder that was written, None on ranks other than 0.

        Raises:
            InputError: a folder that cannot be written, a run that diverged, a full device.
            Stopped: a signal came, and everything is saved; on rank 0 alone, with the run folder.
        """
        if self.compiled:
            backbone = self.objective.model.backbone
            assert isinstance(backbone, torch.nn.Module)
            backbone.compile()
        if self.dry_run:
            return self.write_dry_run()
        if not launched_by_torchrun():
            self.engine.launch()
        pictures = TrainingPictures(self)
        with ExitStack() as held:
            folder = self.claim_folder(held)
            try:
                self.training.run(
                    self.objective, self.data, folder, self.seed, self.engine, self.config, pictures, self.checkpoint,
                    self.note,
                )  # fmt: skip
            except Stopped as stopped:
                if not self.engine.is_global_zero:
                    return None  # a code other than 0 would make Fabric's launcher kill the first rank
                stopped.folder = folder
                raise
            except Diverged as error:
                kill_launched_processes(self.engine)
                files = checkpoints.list_checkpoints(folder / "checkpoints")
                left = f"the last good checkpoint is {files[-1]}" if files else "there is no checkpoint yet"
                raise InputError(f"training: {error}; {left}; a smaller training.learning_rate may help") from error
            except torch.OutOfMemoryError as error:
                raise InputError(OUT_OF_MEMORY) from error
            except (WriteError, SamplingError, checkpoints.CheckpointError) as error:
                kill_launched_processes(self.engine)
                raise InputError(str(error)) from error
        if not self.engine.is_global_zero:
            return None
        self.report(folder)
        return folder

    def write_dry_run(self) -> Path | None:
        """The dry run: what is in the data, what the network sees, what the training would cost."""
        if not self.engine.is_global_zero:
            return None
        try:
            return write_dry_run(
                self.engine, self.objective, self.data, self.training, self.seed, self.parent, self.smaller_objectives
            )
        except torch.OutOfMemoryError as error:
            raise InputError(OUT_OF_MEMORY) from error
        except WriteError as error:
            raise InputError(f"output_root: {error}") from error

    def claim_folder(self, held: ExitStack) -> Path:
        """The run folder, the same on every rank, locked by the first until `held` closes.

        Raises:
            InputError: a folder that cannot be written, or that another process is writing.
        """
        folder: Path | None = None
        refusal: str | None = None
        if self.engine.is_global_zero:
            try:
                folder = self.folder or create_version_dir(self.parent, self.write_config)
                held.enter_context(lock_run_dir(folder))
                if self.folder:
                    with convert_write_errors(folder / "config.yaml"):
                        self.write_config(folder)
            except OSError as error:
                refusal = f"{'resume' if self.folder else 'output_root'}: {error}"
        shared: Any = self.engine.broadcast((folder, refusal))
        folder, refusal = shared
        if refusal is not None:
            raise InputError(refusal) if self.engine.is_global_zero else SystemExit(1)
        return shared[0]

    def write_config(self, folder: Path) -> None:
        """Writes config.yaml and makes the folders beside it."""
        write_atomically(folder / "config.yaml", self.fill_config)
        for part in ("checkpoints", "samples"):
            (folder / part).mkdir(exist_ok=True)
            remove_leftovers(folder / part)

    def fill_config(self, path: Path) -> None:
        path.write_text(self.config_yaml, encoding="utf-8")

    def report(self, folder: Path) -> None:
        """Says on stderr where the samples are, and that a run within its warm-up has learned nothing yet."""
        pictures = sorted((folder / "samples").glob("*.png"))
        print(f"samples: {pictures[-1] if pictures else 'none'}", file=sys.stderr)
        warmup = self.training.warmup_images
        if self.training.images < warmup:
            print(
                f"the run ended within its warm-up of {warmup} images, so its weights are close to their random start: "
                f"continue with resume={folder} training.images={20 * warmup} or so",
                file=sys.stderr,
            )
