"""Where the first stage of a training is, and where the latents of its data are kept."""

from typing import ClassVar

from ..runtime.ranges import check_range, check_whole

__all__ = ["DiffusersKL", "DiffusersTiny", "FirstStageSource", "NoFirstStage", "TrainedAutoencoder"]


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


class DiffusersKL(FirstStageSource):
    """AutoencoderKL of diffusers: path is its folder, a pipeline that has one in vae/, or the name of one on the hub."""

    network = "AutoencoderKL"


class DiffusersTiny(FirstStageSource):
    """AutoencoderTiny of diffusers: path is its folder, a pipeline that has one in vae/, or the name of one on the hub."""

    network = "AutoencoderTiny"
