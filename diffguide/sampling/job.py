"""A sampling run, built from its configuration and ready to start."""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..evaluation.probe import check_conditioning
from ..figures import trajectories
from ..files.run_folders import BusyError, WriteError, create_version_dir, lock_run_dir, remove_leftovers, strict_json
from ..files.shards import START_FILE, ShardError, Shards
from ..models.protocols import Denoiser
from ..runtime.engine import Fabric
from ..runtime.errors import InputError, input_errors
from ..runtime.signals import Interrupts, Stopped
from ..runtime.versions import versions
from . import outputs
from .run import SampleWriter, SamplingPlan, storage_spec

__all__ = ["Sampled", "SamplingJob", "preflight_sampling"]


class Sampled(NamedTuple):
    """A finished run: its folder, the header of its manifest, and the figures of an oracle's metrics.json."""

    folder: Path
    header: dict[str, Any]
    figures: dict[str, float]


@dataclass
class SamplingJob:
    """Everything that a sampling run needs, built; nothing is written before `run`.

    Arguments:
        plan: what to sample.
        replan: (checkpoint file) -> the plan with that file, for a checkpoint that another rank saw first.
        engine: Fabric, not yet launched.
        parent: folder of the run's versions.
        batch_size: samples per batch.
        recorded: what the manifest states of the configuration: guidance, sampler, precision.
        config_yaml: text of config.yaml.
        png: whether every image is also a PNG file.
        trajectory: whether to write trajectory.gif.
        moved: keys of the checkpoint's data set that say where the data lie now, for the trade-off of a sweep.
        notes: what to say on stderr before sampling.
        folder: of the run to resume, None = a new run.
        header: of the run to resume.
    """

    plan: SamplingPlan
    replan: Callable[[Path], SamplingPlan]
    engine: Fabric
    parent: Path
    batch_size: int
    recorded: Mapping[str, Any]
    config_yaml: str
    png: bool = False
    trajectory: bool = False
    moved: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    folder: Path | None = None
    header: dict[str, Any] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What the end of a sweep needs to know of this run."""
        background = self.plan.background and self.plan.background.to_json()
        names = self.plan.class_names
        return {
            "shape": list(self.plan.shape),
            "class_names": names,
            "background": background,
            "moved": dict(self.moved),
        }

    @property
    def n(self) -> int:
        return len(self.plan.seeds)

    def run(self) -> Sampled | None:
        """Samples and writes the run folder; None on ranks other than 0.

        Raises:
            InputError: a folder that cannot be written, or a sampler that cannot go on.
            Stopped: a signal came, and everything is saved; on rank 0 alone, with the run folder.
        """
        self.engine.launch()
        with ExitStack() as held:
            folder, header, newest = self.claim_folder(held)
            if newest is not None and newest != self.plan.source.file:  # it came between the starts
                self.plan = self.replan(newest)
            plan, main = self.plan, self.engine.is_global_zero
            shards = Shards(folder / "shards", self.n, self.batch_size, storage_spec(plan.shape))
            filmed = None
            if self.trajectory:
                filmed = trajectories.choose_trajectories(plan.classes, plan.class_names, plan.shape)
            interrupts = held.enter_context(Interrupts(silent=not main))
            missing = self.engine.broadcast(shards.missing_batches())
            try:
                singles = folder / "images" if self.png else None
                SampleWriter(self.engine, plan, shards, singles, filmed).run(missing, interrupts)
                if main:
                    return Sampled(folder, *outputs.finalize_run(plan, shards, folder, header, filmed, interrupts))
            except Stopped as stopped:
                if main:  # a code other than 0 would make Fabric's observer kill the first rank
                    stopped.folder = folder
                    raise
            except (WriteError, ShardError) as error:
                if main:
                    if self.folder is None and len(shards.missing_batches()) == len(shards.firsts):
                        shutil.rmtree(folder, ignore_errors=True)  # nothing to resume
                    raise InputError(str(error)) from error
        return None

    def claim_folder(self, held: ExitStack) -> tuple[Path, dict[str, Any], Path | None]:
        """The run folder, the manifest's header and the checkpoint file: the first rank's, locked until `held` closes.

        Raises:
            InputError: a folder that cannot be written, or that another process is writing.
        """
        folder, header, file, refusal = self.folder, self.header, self.plan.source.file, None
        if self.engine.is_global_zero:
            try:
                if folder is None:
                    header = new = self.new_header()
                    folder = create_version_dir(self.parent, lambda path: self.fill(path, new))
                held.enter_context(lock_run_dir(folder))
                if (folder / "samples.npz").exists():
                    raise BusyError(f"{folder} was finished by another process")
                (folder / "shards").mkdir(exist_ok=True)
                if self.png:
                    (folder / "images").mkdir(exist_ok=True)
                for part in filter(Path.is_dir, (folder, folder / "shards", folder / "images")):
                    remove_leftovers(part)
            except OSError as error:
                refusal = f"{'resume' if self.folder else 'output_root'}: {error}"
        shared: Any = self.engine.broadcast((folder, header, file, refusal))
        folder, header, file, refusal = shared
        if refusal is not None:
            raise InputError(refusal) if self.engine.is_global_zero else SystemExit(0)
        return shared[:3]

    def references(self) -> dict[str, Any]:
        """The trained models beside the source, for the manifest."""
        return {guide.key: guide.identity() for guide in self.plan.guides}

    def new_header(self) -> dict[str, Any]:
        """The manifest's header of a new run; the evaluations are filled in at its end."""
        stored = {"guides": self.references()} if self.plan.guides else {}
        return {
            **self.plan.source.identity(),
            "guidance": self.recorded["guidance"],
            **stored,
            "sampler": self.recorded["sampler"],
            "precision": self.recorded["precision"],
            "device": str(self.engine.device),
            "network_evaluations": None,
            "potential_evaluations": None,
            "n": self.n,
            "versions": versions(),
        }

    def fill(self, folder: Path, header: Mapping[str, Any]) -> None:
        """Writes what a new run folder begins with."""
        (folder / "config.yaml").write_text(self.config_yaml, encoding="utf-8")
        (folder / "shards").mkdir()
        (folder / "shards" / START_FILE).write_text(strict_json(header) + "\n", encoding="utf-8")


def preflight_sampling(job: SamplingJob) -> None:
    """Runs the checks that call the network, and says on stderr what makes samples meaningless.

    Raises:
        InputError: a network that ignores its condition under guidance that needs it, or a resumed run whose models changed.
    """
    plan = job.plan
    if job.png and len(plan.shape) == 1:
        maker = "this oracle" if plan.source.oracle is not None else "this checkpoint"
        raise InputError(f"png=true needs images; {maker} makes vectors of shape {list(plan.shape)}")
    model = plan.source.model
    if plan.source.oracle is None and isinstance(model, Denoiser) and getattr(plan.guided, "uses_condition", False):
        with input_errors("guidance"):
            check_conditioning(model, plan.source.shape, job.engine.device)
    if job.folder is not None:
        now, then = job.references() or None, (job.header or {}).get("guides")
        if now != then:
            raise InputError(f"resume: {job.folder} was guided by {then}, and it would now be by {now}")
    for note in job.notes:
        if job.engine.is_global_zero:
            print(note, file=sys.stderr)
