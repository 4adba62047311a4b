"""diffguide: train conditional diffusion models; study and use guidance, everything between a generator and a classifier.

Conventions, the same everywhere:

    t, s        time in [0, 1], 0 = data, 1 = noise; s < t is the next, cleaner time; float64
    x_0, x_t    data, nominally in [-1, 1], and noised data, x_t = alpha_t x_0 + sigma_t eps
    log_snr     log(alpha_t^2 / sigma_t^2), strictly decreasing in t; a schedule is this curve and a normalisation
    noise_level sigma_t / alpha_t, the sigma of Karras et al.; guidance intervals are stated in it
    y           class indices [B], -1 = no condition in that row; None = -1 everywhere
    scale       contrast guidance: weak + scale (strong - weak), 1 = off, 0 = weak alone
    score       grad_x log p_t(x) = -eps / sigma_t

A denoiser is `denoiser(x_t, t, y) -> Prediction(x_0, eps)`. Guidance wraps a denoiser into a denoiser. A sampler integrates
from noise to data. `diffguide.load(path)` loads the model of a checkpoint, `diffguide.push(run, repo,
license)` uploads it. `diffguide.to_uint8(x)` converts samples to bytes.
"""

from .version import __version__

__all__ = ["load", "push", "to_uint8", "__version__"]


def load(path, weights: str = "ema", device="cpu", trust=(), null_class=None, adapter=None, adapter_scale=1.0):
    """The trained model in a checkpoint file, run folder or folder of diffusers; see `diffguide.checkpoints.store.load`."""
    # importing torch takes seconds, and `--help` does not need it
    from .checkpoints.store import load as load_checkpoint

    return load_checkpoint(path, weights, device, trust, null_class, adapter, adapter_scale).model


def push(
    run, repo, license, metrics=(), folder=None, private=True, message="Upload a model of diffguide", trust=()
) -> str:
    """Uploads a run with a model card to the hub, or writes what it would upload; see `diffguide.export.push.push`."""
    from .export.push import push as push_run

    return push_run(run, repo, license, metrics, folder, private, message, trust)


def to_uint8(x):
    """Images as bytes, round(127.5 (x + 1)) clipped to 0..255, as in samples.npz of `diffguide-sample`.

    `diffguide.samplers.generate` does not clip: some of its values may lie outside [-1, 1].

    Arguments:
        x: tensor [N, C, H, W], any floating dtype and device; black is -1, white is 1.

    Returns a numpy array [N, H, W, C], uint8.
    """
    from .figures.image_grids import to_uint8 as convert

    return convert(x)
