"""Checks of a training job that need its network and its data, before anything is written."""

import copy
import sys
from typing import Any

import torch

from ..checkpoints.data_record import describe_changes
from ..checkpoints.validation import CheckpointError, check_facts
from ..datasets.base import fetch_examples
from ..first_stages.latent_data import LatentData
from ..models.protocols import Denoiser, Energy
from ..randomness import Noise
from ..runtime.errors import InputError, convert_input_errors
from ..samplers import SamplingError
from .job import TrainingJob

__all__ = ["preflight"]

CHECKED_EXAMPLES = 256  # on which the objective checks the data


def preflight(job: TrainingJob) -> None:
    """Runs every check that calls the network, and prints warnings about the data on stderr.

    Raises:
        InputError: parts that do not fit each other; includes the message of the network.
    """
    model = job.objective.model
    guided = None
    times = None
    if job.generates and isinstance(model, Denoiser | Energy):
        with convert_input_errors("sampler"):
            guided = job.add_guidance(model, "cpu")
            times = job.sampler.times(guided)
    with convert_input_errors("training"):
        job.training.share(job.engine.world_size)
        job.training.make_optimizer(job.objective)
    read_conditions(job)
    check_network(job)
    if isinstance(guided, Denoiser) and times is not None:
        check_guidance(job, guided, times)
    if job.engine.is_global_zero:
        report_data(job)
    if not job.dry_run:
        check_loadable(job)


def read_conditions(job: TrainingJob) -> None:
    """Makes the conditions of the data before the training, on its device: an encoder of texts may have to encode them."""
    conditioning = getattr(job.objective.model, "conditioning", None)
    if conditioning is None:
        return
    conditioning.to(job.engine.device)
    with convert_input_errors("condition"):
        assert job.examples.train and job.examples.held_out  # made here, and kept
    conditioning.to("cpu")


def check_network(job: TrainingJob) -> None:
    """Checks by one forward pass of two examples that the network fits the data, and the objective the first examples."""
    model: Any = job.objective.model
    data, classes = job.data, model.num_classes
    if classes not in (0, len(data.class_names)):
        has_class_input = getattr(model.backbone, "num_classes", 0)
        key = "num_classes" if has_class_input else "out_features"
        raise InputError(
            f"backbone.{key} is {classes}, but the data have {len(data.class_names)} classes (0 = unconditional)"
        )
    rows = torch.arange(min(CHECKED_EXAMPLES, len(data.train.y)))
    with convert_input_errors("objective"):
        job.objective.check(data.preprocess(fetch_examples(data.train, rows)[0]))
    try:
        with torch.no_grad():
            job.objective(*job.examples.train.fetch(torch.tensor([0, 0])), torch.Generator().manual_seed(0))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"backbone does not fit the data, whose examples are {list(data.shape)}: {reason}") from error


def check_guidance(job: TrainingJob, guided: Denoiser, times: torch.Tensor) -> None:
    """Evaluates the guided model once, at the first noise level of the sampler, without dropout."""
    noise = Noise(range(2), job.data.shape, guided.schedule)
    y = torch.zeros(2, dtype=torch.long) if guided.num_classes else None
    job.objective.eval()
    try:
        with torch.no_grad():
            guided.start(noise, times)(noise.normal(times[0], 0), times[0], y)
    except SamplingError as error:
        raise InputError(str(error)) from error
    job.objective.train()


def report_data(job: TrainingJob) -> None:
    """Prints on stderr what training does not use or train, and how the data of a resumed run have changed."""
    lines = list(job.data.warnings())
    if job.note and "data" in job.note:
        lines.append(f"the data have changed since: {describe_changes(job.note['data'])}")
    if getattr(job.objective.model, "learned_variance", False):
        lines.append(
            "this network predicts a variance, which training leaves as it is: sample it with sampler.variance=0 to 1, since "
            "learned would no longer fit"
        )
    for line in lines:
        print(line, file=sys.stderr)


def check_loadable(job: TrainingJob) -> None:
    """Checks that the checkpoints of this job can be loaded."""
    facts: dict[str, Any] = {"images": 0, "class_names": list(job.data.class_names), "shape": list(job.data.shape)}
    if isinstance(job.data, LatentData):
        facts["first_stage"] = job.data.space.facts()
    try:
        check_facts(copy.deepcopy({"config": dict(job.config), **facts}))
    except CheckpointError as error:
        raise InputError(f"the checkpoints of this training could not be loaded: {error}") from error
