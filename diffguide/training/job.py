"""A training run, built from its configuration and ready to start."""

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import store as checkpoints
from ..conditions.examples import ConditionedData
from ..datasets import Dataset
from ..files.run_folders import (
    WriteError,
    append_text,
    convert_write_errors,
    create_version_dir,
    lock_run_dir,
    remove_leftovers,
    write_atomically,
)
from ..models.protocols import Denoiser, Energy
from ..objectives import Diverged, Objective
from ..runtime.compiling import CPU_BREAK_EVEN, compile_training
from ..runtime.engine import Fabric, kill_launched_processes, launched_by_torchrun
from ..runtime.errors import InputError
from ..runtime.memory import keep_freed_memory
from ..runtime.signals import Stopped
from ..samplers import Sampler, SamplingError
from .dry_run import DryRun
from .loop import Training
from .pictures import TrainingPictures

__all__ = ["TrainingJob"]

OUT_OF_MEMORY = (
    "out of memory: increase training.accumulate, reduce training.batch_size, or set backbone.checkpointing=true"
)


@dataclass
class TrainingJob:
    """A training run; nothing is written before `run`.

    Arguments:
        parent: folder of the run's versions.
        seed: of weights, data order and noise.
        engine: Fabric, launched by torchrun or by `run`.
        examples: training data, with the conditions that the model takes.
        objective: network and loss.
        training: settings of the loop.
        sampler: of the sample grids.
        guide: (denoiser, device) -> guided denoiser, for the sample grids; it returns an energy unchanged.
        config: resolved configuration, for the checkpoints.
        config_yaml: the same as the text of config.yaml.
        compiled: whether to compile the backbone by torch.compile.
        dry_run: whether to describe data, network and cost, without training.
        folder: of the run to resume, None = a new run.
        checkpoint: from which to resume, None = from the start.
        note: line of metrics.jsonl with the changes of a resumed run.
        smaller_objectives: names and objectives of smaller networks, largest first, for the dry run.
        remarks: lines for stderr and log.txt at the start.
        copy_first_stage: writes the first stage of the data into a run folder; None = the data are no latents.
    """

    parent: Path
    seed: int
    engine: Fabric
    examples: ConditionedData
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
    remarks: list[str] = field(default_factory=list)
    copy_first_stage: Callable[[Path], None] | None = None

    @property
    def data(self) -> Dataset:
        return self.examples.data

    @property
    def generates(self) -> bool:
        """Whether the model can be sampled: not a classifier, and not a density at a single noise level."""
        model = self.objective.model
        return isinstance(model, Denoiser | Energy) and (model.levels is None or len(model.levels) > 1)

    def add_guidance(self, model: Denoiser | Energy, device: Any) -> Denoiser | Energy:
        """Adds the guidance of the sample grids to a model."""
        model.class_names = self.data.class_names if model.num_classes else ()
        return self.guide(model, device)

    def run(self) -> Path | None:
        """Trains, and returns the run folder; None on ranks other than 0.

        Raises:
            InputError: the folder cannot be written, the run diverged, or the device is out of memory.
            Stopped: a signal arrived, and everything is saved; only on rank 0, with the run folder.
        """
        if self.engine.device.type == "cpu":
            keep_freed_memory()
        self.compile_backbone()
        if self.dry_run:
            self.write_remarks(None)
            return self.write_dry_run()
        if not launched_by_torchrun():
            self.engine.launch()
        pictures = TrainingPictures(self)
        with ExitStack() as held:
            folder = self.claim_folder(held)
            try:
                self.write_remarks(folder)
                self.training.run(
                    self.objective,
                    self.examples,
                    folder,
                    self.seed,
                    self.engine,
                    self.config,
                    draw=pictures,
                    resume=self.checkpoint,
                    note=self.note,
                )
            except Stopped as stopped:
                if not self.engine.is_global_zero:
                    return None  # with an exit code other than 0 Fabric would kill the first rank
                stopped.folder = folder
                raise
            except Diverged as error:
                kill_launched_processes(self.engine)
                files = checkpoints.list_checkpoints(folder / "checkpoints")
                last = f"the last good checkpoint is {files[-1]}" if files else "there is no checkpoint yet"
                raise InputError(f"training: {error}; {last}; a smaller training.learning_rate may help") from error
            except torch.OutOfMemoryError as error:
                raise InputError(OUT_OF_MEMORY) from error
            except (WriteError, SamplingError, checkpoints.CheckpointError) as error:
                kill_launched_processes(self.engine)
                raise InputError(str(error)) from error
        if not self.engine.is_global_zero:
            return None
        self.report(folder)
        return folder

    def compile_backbone(self) -> None:
        """Compiles the backbone, if `compiled`; on the CPU with a remark about the cost."""
        if not self.compiled:
            return
        backbone = self.objective.model.backbone
        assert isinstance(backbone, torch.nn.Module)
        compile_training(backbone)
        if self.engine.device.type == "cpu":
            self.remarks.append(
                "compile=true takes minutes on the CPU and makes steps a tenth faster: it pays off after about "
                f"{CPU_BREAK_EVEN:,} images, and this run has {self.training.images:,}"
            )

    def write_remarks(self, folder: Path | None) -> None:
        """Prints the remarks on stderr, and writes them into the log of a run folder."""
        for line in self.remarks if self.engine.is_global_zero else ():
            print(line, file=sys.stderr)
            if folder is not None:
                append_text(folder / "log.txt", line)

    def write_dry_run(self) -> Path | None:
        """Runs the dry run: describes data, network and cost."""
        if not self.engine.is_global_zero:
            return None
        try:
            dry_run = DryRun(self.engine, self.objective, self.examples, self.training, self.seed)
            return dry_run.write(self.parent, self.smaller_objectives)
        except torch.OutOfMemoryError as error:
            raise InputError(OUT_OF_MEMORY) from error
        except WriteError as error:
            raise InputError(f"output_root: {error}") from error

    def claim_folder(self, held: ExitStack) -> Path:
        """Creates or opens the run folder on the first rank, and locks it until `held` closes.

        Raises:
            InputError: the folder cannot be written, or another process is writing to it.
        """
        folder: Path | None = None
        problem: str | None = None
        if self.engine.is_global_zero:
            try:
                folder = self.folder or create_version_dir(self.parent, self.write_config)
                held.enter_context(lock_run_dir(folder))
                if self.folder:
                    with convert_write_errors(folder / "config.yaml"):
                        self.write_config(folder)
            except OSError as error:
                problem = f"{'resume' if self.folder else 'output_root'}: {error}"
        shared: Any = self.engine.broadcast((folder, problem))
        folder, problem = shared
        if problem is not None:
            raise InputError(problem) if self.engine.is_global_zero else SystemExit(1)
        return shared[0]

    def write_config(self, folder: Path) -> None:
        """Writes config.yaml and creates the folders beside it."""
        write_atomically(folder / "config.yaml", lambda path: path.write_text(self.config_yaml, encoding="utf-8"))
        for part in ("checkpoints", "samples"):
            (folder / part).mkdir(exist_ok=True)
            remove_leftovers(folder / part)
        if self.copy_first_stage is not None:
            self.copy_first_stage(folder)

    def report(self, folder: Path) -> None:
        """Prints on stderr where the samples are, and a warning if the run ended within its warm-up."""
        pictures = sorted((folder / "samples").glob("*.png"))
        print(f"samples: {pictures[-1] if pictures else 'none'}", file=sys.stderr)
        warmup = self.training.warmup_images
        if self.training.images < warmup:
            start = "those of the ancestor" if self.config.get("ancestry") else "their random start"
            print(
                f"the run ended within its warm-up of {warmup} images, so its weights are close to {start}: "
                f"continue with resume={folder} training.images={20 * warmup}",
                file=sys.stderr,
            )
