"""Where the first stage of a training is, and where the latents of its data are kept."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ..runtime.ranges import check_range, check_whole

__all__ = ["DiffusersKL", "DiffusersTiny", "FirstStageSource", "NoFirstStage", "OwnAutoencoder", "TrainedAutoencoder"]


class FirstStageSource:
    """A trained first stage on the disk.

    Arguments:
        path: a folder, see the subclasses.
        cache: folder of the encoded data.
        batch_size: pictures that are encoded at a time.
        memory: bytes of latents up to which they are kept in memory; above, training reads them from the cache.

    Attributes:
        network: class of diffusers; None = an autoencoder that was trained here.

    Raises:
        ValueError: an empty path, or a number out of its range.
    """

    network: ClassVar[str | None] = None

    def __init__(self, path: str, cache: str = "outputs/latents", batch_size: int = 64, memory: float = 2e9):
        if not path:
            raise ValueError("path must be the folder of a first stage, got ''")
        self.path, self.cache = path, cache
        self.batch_size = check_whole("batch_size", batch_size, 1)
        self.memory = check_range("memory", memory, "[0, inf)")


class NoFirstStage(FirstStageSource):
    """Diffusion in pixels."""

    def __init__(self) -> None:
        pass


class TrainedAutoencoder(FirstStageSource):
    """An autoencoder that `objective=autoencoder` trained: path is its run folder or a checkpoint. Its weights are averaged."""


class OwnAutoencoder(TrainedAutoencoder):
    """An autoencoder that `diffguide-train` trains first, from the same data, with a recipe.

    The command puts a `TrainedAutoencoder` with the run folder in its place, which checkpoints name.

    Arguments:
        path: a run folder or a checkpoint of an autoencoder, which is taken instead; None = it is trained.
        recipe: option of the group experiment that trains it.
        overrides: changes of the recipe, key -> value; None = none.
        cache, batch_size, memory: see `FirstStageSource`.

    Raises:
        ValueError: as `FirstStageSource`; and for a None that no command has replaced.
    """

    def __init__(
        self,
        path: str | None = None,
        recipe: str = "own_images_autoencoder",
        overrides: Mapping[str, Any] | None = None,
        cache: str = "outputs/latents",
        batch_size: int = 64,
        memory: float = 2e9,
    ):
        if path is None:
            raise ValueError("path must be the run of a trained autoencoder: only diffguide-train trains one first")
        super().__init__(path, cache, batch_size, memory)
        self.recipe, self.overrides = recipe, dict(overrides or {})


class DiffusersKL(FirstStageSource):
    """AutoencoderKL of diffusers: path is its folder, a pipeline that has one in vae/, or the name of one on the hub."""

    network = "AutoencoderKL"


class DiffusersTiny(FirstStageSource):
    """AutoencoderTiny of diffusers: path is its folder, a pipeline that has one in vae/, or the name of one on the hub."""

    network = "AutoencoderTiny"
