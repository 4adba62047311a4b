"""Networks that a metric trains on the training split, cached by a hash of their recipe and their data."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from ...files import safetensors as archives
from ...files.run_folders import WriteError
from ...runtime.ranges import check_whole
from ..metric import MetricError

__all__ = ["TrainedNetwork", "hash_data", "load_or_train"]

Network = TypeVar("Network", bound=nn.Module)


class TrainedNetwork:
    """Base of what measures by a network that is trained on the training split and cached.

    Arguments:
        steps: of training, at least 1.
        seed: of weights and batches, at least 0.
        cache: folder for trained networks, None = no cache; the name of a file has a hash of data and recipe.
    """

    def __init__(self, steps: int, seed: int, cache: str | None):
        self.steps = check_whole("steps", steps, 1)
        self.seed = check_whole("seed", seed, 0)
        self.cache = None if cache is None else Path(cache).expanduser()
        self.digest: str | None = None

    def training_facts(self) -> dict[str, Any]:
        """What distinguishes a network from others of the same recipe."""
        return {"steps": self.steps, "seed": self.seed, "hash": self.digest}


def hash_data(recipe: Mapping[str, Any], tensors: Sequence[Tensor]) -> str:
    """The hash of a recipe and of the tensors that a network is trained on."""
    digest = hashlib.sha256(json.dumps(recipe).encode())
    for part in tensors:
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


def load_or_train(
    key: str,
    cache: Path | None,
    kind: str,
    recipe: Mapping[str, Any],
    digest: str,
    create: Callable[[], Network],
    train: Callable[[], Network],
) -> Network:
    """The network of the cache; a new one, which is written to it, if it has none.

    Arguments:
        key: of the configuration, with the cache, for messages.
        cache: a folder; None = no cache.
        kind: of the network, the first word of the file name.
        recipe, digest: of `hash_data`.
        create: makes a network of any weights.
        train: makes a trained one.

    Raises:
        MetricError: a file that is damaged or of other data, or a folder that cannot be written.
    """
    path = None if cache is None else cache / f"{kind}-{digest[:16]}.safetensors"
    if path is not None and path.exists():
        return load(path, digest, create()).eval().requires_grad_(False)
    network = train()
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            archives.write_sealed(path, network.state_dict(), {**recipe, "data": digest})
        except (OSError, WriteError) as error:
            raise MetricError(f"{key}={cache}: {error}; use null for no cache") from error
    return network


def load(path: Path, digest: str, network: Network) -> Network:
    """The network with the weights of a file; MetricError if the file is damaged, or from other data."""
    try:
        tensors, facts = archives.read_sealed(path)
        if facts.get("data") != digest:
            raise ValueError("it is from other data")
        network.load_state_dict(tensors)
    except (ValueError, RuntimeError) as error:
        raise MetricError(f"the cached network {path} cannot be read ({error}): remove the file") from error
    return network
