"""Validation of a checkpoint: its facts, its tensors, and the network of its configuration."""

import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from ..files.safetensors import CheckpointError
from ..files.text import escape_unprintable, shorten
from ..first_stages import FirstStage
from ..first_stages.space import LatentFacts
from ..models.protocols import Classifier, Denoiser, Energy
from .allowlist import MAX_INTEGER, validate_values
from .data_record import check_record
from .extension import Extension

__all__ = ["at_most", "check_facts", "check_finite", "check_finite_tensor", "check_model", "compare"]

PARTS = ("dataset", "backbone", "schedule", "objective")  # of a saved configuration
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_EXAMPLE_NUMBERS = 2**24  # numbers in one example, 3 x 2364 x 2364


def check_facts(metadata: dict[str, Any]) -> None:
    """Validates the metadata of a checkpoint; makes its name and class names printable, in place.

    Raises:
        CheckpointError: facts that are missing, of another type, too large, or inconsistent.
    """
    config, names, shape = metadata["config"], metadata.get("class_names"), metadata.get("shape")
    validate_values(config, "config")
    for part in PARTS:
        if not isinstance(config, dict) or not isinstance(config.get(part), dict):
            raise CheckpointError(f"its configuration lacks the node {part}")
    if not isinstance(config.get("name"), str) or not re.fullmatch(r"[^/\0]{1,200}", config["name"]):
        raise CheckpointError(f"its configuration has no valid folder name: {config.get('name')!r}")
    config["name"] = escape_unprintable(config["name"])
    if not is_whole(metadata.get("images"), 0, MAX_INTEGER):
        raise CheckpointError(f"images must be a whole number of at least 0, got {metadata.get('images')!r}")
    if not is_whole(metadata.get("restores", 0), 0, MAX_INTEGER):
        raise CheckpointError(f"restores must be a whole number of at least 0, got {metadata['restores']!r}")
    if not isinstance(metadata.get("origin"), dict | None):
        raise CheckpointError(f"origin must be a mapping, got {metadata['origin']!r}")
    try:
        Extension.read(metadata)
        if metadata.get("data") is not None:
            check_record(metadata["data"])
        latents = None if metadata.get("first_stage") is None else LatentFacts.read(metadata["first_stage"])
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"class_names must be a list of texts, got {names!r}")
    metadata["class_names"] = [shorten(escape_unprintable(name), 200) for name in names]
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= 4
        or not all(is_whole(side, 1, MAX_EXAMPLE_NUMBERS) for side in shape)
    ):
        raise CheckpointError(f"shape must be a list of one to four sizes, got {shape!r}")
    if math.prod(shape) > MAX_EXAMPLE_NUMBERS:
        raise CheckpointError(f"shape {shape} has more than 2^24 numbers")
    channels, size = config["dataset"].get("channels"), config["dataset"].get("size")
    if latents is not None and len(latents.mean) != shape[0]:
        raise CheckpointError(f"first_stage has {len(latents.mean)} channels, and the examples have the shape {shape}")
    pictures = shape if latents is None else list(latents.image_shape)
    stated = [channels, *([size, size] if is_whole(size, 1, MAX_EXAMPLE_NUMBERS) else pictures[1:])]
    if is_whole(channels, 1, MAX_EXAMPLE_NUMBERS) and pictures != stated:
        raise CheckpointError(f"shape {pictures} differs from {stated} of dataset.channels and dataset.size")


def is_whole(value: Any, least: int, largest: int) -> bool:
    """Whether a value is a whole number in a range; booleans are not."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= largest


@contextmanager
def at_most(count: int, message: str) -> Iterator[None]:
    """Raises CheckpointError, with the message, when more than `count` modules and tensors are registered inside it.

    A few numbers in a configuration may describe a billion layers.
    """
    thread, registered = threading.get_ident(), 0

    def register(module: nn.Module, name: str, part: Any) -> None:
        nonlocal registered
        if threading.get_ident() == thread:
            registered += 1
            if registered > count:
                raise CheckpointError(message)

    hooks = [
        registration.register_module_module_registration_hook(register),
        registration.register_module_parameter_registration_hook(register),
        registration.register_module_buffer_registration_hook(register),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def compare(held: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Compares the tensors of a file with those of a module.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape or type.
    """
    if missing := wanted.keys() - held.keys():
        raise CheckpointError(f"it lacks {len(missing)} tensors of its network, such as {min(missing)}")
    if unknown := held.keys() - wanted.keys():
        raise CheckpointError(f"it has {len(unknown)} tensors that its network does not have, such as {min(unknown)}")
    for name, value in held.items():
        like = wanted[name]
        if value.shape != like.shape:
            raise CheckpointError(f"{name} has the shape {list(value.shape)}, its network needs {list(like.shape)}")
        if value.dtype != like.dtype and not (value.dtype in FLOATS and like.dtype in FLOATS):
            raise CheckpointError(f"{name} is of type {value.dtype}, its network needs {like.dtype}")


def check_finite(held: dict[str, Tensor]) -> None:
    """Raises CheckpointError for tensors with NaN or infinity."""
    for name, value in held.items():
        check_finite_tensor(value, name)


def check_finite_tensor(value: Tensor, name: str) -> None:
    """Raises CheckpointError for a floating tensor with NaN or infinity."""
    if value.dtype in FLOATS and not value.isfinite().all():
        raise CheckpointError(f"{name} has NaN or infinity: the training diverged")


def check_model(model: nn.Module, facts: dict[str, Any]) -> None:
    """Compares the classes and the shape in the facts of a checkpoint with its network, by one call on the device `meta`.

    Raises:
        CheckpointError: another number of classes, or a shape that the network does not accept.
    """
    classes, names, shape = model.num_classes, facts["class_names"], facts["shape"]
    if len(names) != classes:
        raise CheckpointError(f"it names {len(names)} classes, its network has {classes}")
    if not isinstance(model, Denoiser | Classifier | Energy | FirstStage) or not any(
        value.is_meta for value in model.parameters()
    ):
        return  # a trusted network is not on `meta`
    x, t = torch.empty(1, *shape, device="meta"), torch.tensor(0.5, dtype=torch.float64)
    try:
        if isinstance(model, Denoiser):
            y = torch.zeros(1, dtype=torch.long, device="meta") if classes and not model.has_null else None
            fits_shape = model(x, t, y).x_0.shape == x.shape
        elif isinstance(model, FirstStage):
            model.latent_shape(shape)
            fits_shape = model.decode(model.encode(x)).shape == x.shape
        elif isinstance(model, Classifier):
            fits_shape = model.log_prob(x, t).shape == (1, classes)
        else:
            y = torch.zeros(1, dtype=torch.long, device="meta") if classes else None
            fits_shape = model.log_density(x, None, y).shape == (1,)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"its network does not accept examples of its shape {shape}: {error}") from error
    if not fits_shape:
        wanted = "one number per class" if isinstance(model, Classifier) else "the shape of its examples"
        wanted = "one number" if isinstance(model, Energy) and not isinstance(model, Classifier) else wanted
        raise CheckpointError(f"its output is not {wanted}, for examples of shape {shape}")
