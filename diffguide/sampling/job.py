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
from ..runtime.errors import InputError, convert_input_errors
from ..runtime.signals import Interrupts, Stopped
from ..runtime.versions import collect_versions
from . import outputs
from .run import SampleWriter, SamplingPlan

__all__ = ["Sampled", "SamplingJob", "preflight_sampling"]


class Sampled(NamedTuple):
    """A finished run: its folder, the header of its manifest, and the figures of an oracle's metrics.json."""

    folder: Path
    header: dict[str, Any]
    figures: dict[str, float]


@dataclass
class SamplingJob:
    """A sampling run; nothing is written before `run`.

    Arguments:
        plan: what to sample.
        replan: (checkpoint file) -> the plan with that file, if the first rank found a newer checkpoint.
        engine: Fabric, not yet launched.
        parent: folder of the run's versions.
        batch_size: samples per batch.
        recorded: nodes of the configuration for the manifest: guidance, sampler, precision.
        config_yaml: text of config.yaml.
        png: whether to write every image also as a PNG file.
        trajectory: whether to write trajectory.gif.
        moved: keys of the checkpoint's data set with the present place of the data, for the trade-off of a sweep.
        notes: lines to print on stderr before sampling.
        folder: of the run to resume, None = a new run.
        header: of the manifest of the run to resume.
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
        """Facts of this run for the table and the plots of a sweep."""
        return {
            "shape": list(self.plan.stored.shape),
            "class_names": self.plan.class_names,
            "background": self.plan.background and self.plan.background.to_json(),
            "moved": dict(self.moved),
        }

    @property
    def n(self) -> int:
        return len(self.plan.seeds)

    def run(self) -> Sampled | None:
        """Samples and writes the run folder; None on ranks other than 0.

        Raises:
            InputError: a folder that cannot be written, or a sampler that failed.
            Stopped: a signal arrived, and everything is saved; only on rank 0, with the run folder.
        """
        self.engine.launch()
        with ExitStack() as held:
            folder, header, newest = self.claim_folder(held)
            if newest is not None and newest != self.plan.source.file:  # written between the starts of the ranks
                self.plan = self.replan(newest)
            plan, main = self.plan, self.engine.is_global_zero
            shards = Shards(folder / "shards", self.n, self.batch_size, plan.stored.spec)
            filmed = None
            if self.trajectory:
                filmed = trajectories.choose_trajectories(plan.classes, plan.class_names, plan.stored.shape)
            interrupts = held.enter_context(Interrupts(silent=not main))
            missing = self.engine.broadcast(shards.missing_batches())
            try:
                singles = folder / "images" if self.png else None
                SampleWriter(self.engine, plan, shards, singles, filmed).run(missing, interrupts)
                if main:
                    return Sampled(folder, *outputs.finalize_run(plan, shards, folder, header, filmed, interrupts))
            except Stopped as stopped:
                if main:  # with an exit code other than 0 of another rank Fabric would kill the first one
                    stopped.folder = folder
                    raise
            except (WriteError, ShardError) as error:
                if main:
                    if self.folder is None and len(shards.missing_batches()) == len(shards.firsts):
                        shutil.rmtree(folder, ignore_errors=True)  # nothing to resume
                    raise InputError(str(error)) from error
        return None

    def claim_folder(self, held: ExitStack) -> tuple[Path, dict[str, Any], Path | None]:
        """Creates or opens the run folder on the first rank, and locks it until `held` closes.

        Returns:
            The folder, the header of the manifest, and the checkpoint file of the first rank.

        Raises:
            InputError: the folder cannot be written, or another process is writing to it.
        """
        folder = self.folder
        header = self.header
        file = self.plan.source.file
        problem = None
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
                problem = f"{'resume' if self.folder else 'output_root'}: {error}"
        shared: Any = self.engine.broadcast((folder, header, file, problem))
        folder, header, file, problem = shared
        if problem is not None:
            raise InputError(problem) if self.engine.is_global_zero else SystemExit(0)
        return shared[:3]

    def identify_guides(self) -> dict[str, Any]:
        """The trained models of the guidance, for the manifest."""
        return {guide.key: guide.identity() for guide in self.plan.guides}

    def new_header(self) -> dict[str, Any]:
        """The manifest's header of a new run; the evaluations are filled in at the end of the run."""
        guides = {"guides": self.identify_guides()} if self.plan.guides else {}
        return {
            **self.plan.source.identity(),
            "guidance": self.recorded["guidance"],
            **guides,
            "sampler": self.recorded["sampler"],
            "precision": self.recorded["precision"],
            "device": str(self.engine.device),
            "network_evaluations": None,
            "potential_evaluations": None,
            "n": self.n,
            "versions": collect_versions(),
        }

    def fill(self, folder: Path, header: Mapping[str, Any]) -> None:
        """Writes the first files of a new run folder."""
        (folder / "config.yaml").write_text(self.config_yaml, encoding="utf-8")
        (folder / "shards").mkdir()
        (folder / "shards" / START_FILE).write_text(strict_json(header) + "\n", encoding="utf-8")


def check_pictures(job: SamplingJob) -> None:
    """Raises InputError for pictures of samples that are no images; a trajectory of vectors is a plot."""
    shape = job.plan.stored.shape
    latents = len(shape) == 3 and not job.plan.stored.is_picture
    for key, wanted in {"png": job.png, "trajectory": job.trajectory and latents}.items():
        if wanted and (len(shape) == 1 or latents):
            model_kind = "this oracle" if job.plan.source.oracle is not None else "this checkpoint"
            what = "latents" if latents else "vectors"
            raise InputError(f"{key}=true needs images; {model_kind} makes {what} of shape {list(shape)}")


def check_parts(parts: Mapping[str, Any], header: Mapping[str, Any], folder: Path) -> None:
    """Raises InputError for text encoders or a first stage that are not those with which a run began."""
    for key, value in parts.items():
        if header.get(key, value) != value:
            raise InputError(f"resume: {folder} began with {key}={header[key]}, and it is {value} now")


def preflight_sampling(job: SamplingJob) -> None:
    """Runs the checks that call the network, and prints the notes of the job.

    Raises:
        InputError: a network that ignores its condition under guidance that needs it, or a resumed run whose models changed.
    """
    plan = job.plan
    check_pictures(job)
    model = plan.source.model
    if plan.source.oracle is None and isinstance(model, Denoiser) and getattr(plan.guided, "uses_condition", False):
        with convert_input_errors("guidance"):
            check_conditioning(model, plan.source.shape, job.engine.device)
    if job.folder is not None:
        now, before = job.identify_guides() or None, (job.header or {}).get("guides")
        if now != before:
            raise InputError(f"resume: {job.folder} was guided by {before}, but this command has {now}")
        check_parts(plan.source.parts(), job.header or {}, job.folder)
    for note in job.notes:
        if job.engine.is_global_zero:
            print(note, file=sys.stderr)
