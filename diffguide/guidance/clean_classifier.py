"""Guidance by a classifier of clean images, applied to the predicted x_0.

Its network comes from torchvision by name, or from a TorchScript or torch.export file.
"""

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..models.evaluation_counters import count_potential
from ..models.protocols import Denoiser, Prediction, SamplingError, keep_variance
from ..schedules import EVERYWHERE
from .base import check_uncompiled
from .classifier import ClassGuidance, shift_score, sum_label_log_prob

__all__ = ["ExportedProgram", "ImageNetwork", "CleanClassifierGuidance", "TorchScript", "Torchvision"]


class ImageNetwork(nn.Module):
    """network(images [B, C, H, W], preprocessed as in its training) -> logits [B, num_classes].

    Attributes:
        network: the network, set by a subclass.
        foreign: whether it runs a program from a file; the configuration of a checkpoint may build it only if trusted.
    """

    network: Callable[[Tensor], Tensor]
    foreign = False

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def find_file(path: str, what: str, key: str = "path") -> Path:
    """The file of a path.

    Raises:
        ValueError: there is no such file.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{key}: there is no {what} at {path}")
    return file


def first_sentence(error: Exception) -> str:
    """The first sentence of a message of torch."""
    return re.split(r"\.\s|\n", str(error).strip())[0]


class TorchScript(ImageNetwork):
    """A network that `torch.jit.save` wrote. Loading it runs its code: take files of people you trust.

    Arguments:
        path: of the file.

    Raises:
        ValueError: no such file, or another kind of file.
    """

    foreign = True

    def __init__(self, path: str):
        super().__init__()
        file = find_file(path, "TorchScript file")
        try:
            self.network = torch.jit.load(file, map_location="cpu").eval()
        except RuntimeError as error:
            raise ValueError(f"path: {path} is no TorchScript file: {first_sentence(error)}") from error


class ExportedProgram(ImageNetwork):
    """A network that `torch.export.save` wrote, in evaluation mode, for batches of any size (a dynamic first dimension).

    Loading it runs its code: take files of people you trust.

    Arguments:
        path: of the file.

    Raises:
        ValueError: no such file, or another kind of file.
    """

    foreign = True

    def __init__(self, path: str):
        super().__init__()
        file = find_file(path, "torch.export file")
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)  # torch would print the error, with its traceback
        try:
            self.network = torch.export.load(file).module()
        except (RuntimeError, ValueError, AssertionError, BadZipFile) as error:
            raise ValueError(f"path: {path} is no torch.export file (.pt2): {first_sentence(error)}") from error
        finally:
            logging.disable(before)


class Torchvision(ImageNetwork):
    """A model of torchvision by its name, with weights from a local file of tensors; nothing is downloaded, no code is run.

    Arguments:
        weights: its state dict, a .safetensors file. Pickles of `torch.save` are not read.
        name: of the model, see `torchvision.models.list_models()`.
        num_classes: length of its output.

    Raises:
        ValueError: no such model or file, or weights that are not this model's.
    """

    def __init__(self, weights: str, name: str = "resnet18", num_classes: int = 1000):
        super().__init__()
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        from torchvision.models import get_model

        file = find_file(weights, "file of weights", "weights")
        try:
            network = get_model(name, weights=None, num_classes=num_classes)
        except (ValueError, TypeError) as error:
            raise ValueError(f"name: torchvision has no classifier {name!r}: {error}") from error
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f'weights: {weights} is no safetensors file, and pickles are not read; convert it: python -c "import torch, '
                f"safetensors.torch as s; s.save_file(torch.load('{weights}', weights_only=True), 'weights.safetensors')\""
            ) from error
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"weights: {weights} is not the state dict of torchvision's {name}: {reason}") from error
        self.network = network.eval().requires_grad_(False)


class CleanClassifierGuidance(ClassGuidance):
    """The score plus w grad log p(y | x_0 = x0_hat(x_t)), p = softmax f((resize((x0_hat + 1) / 2) - mean) / std).

    Through the denoiser the gradient is that with respect to x_t (Bansal et al., "Universal Guidance for Diffusion
    Models", 2023, arXiv 2302.07121, forward guidance), added as in `ClassifierGuidance`. Otherwise it is that with respect
    to x_0, with sigma^2 / (alpha^2 + sigma^2), the variance of x_0 given x_t for data of unit variance, instead of the
    denoiser's

        sigma^2 / alpha d x0_hat / d x_t = Cov[x_0 | x_t]:    x_0 + w sigma^2 / (alpha^2 + sigma^2) grad_x0 log p(y | x0_hat).

    Arguments:
        denoiser: the generator, conditional or not.
        network: images -> logits.
        num_classes: length of its output; class k is class k of the generator.
        channels: of the network's images, 1 or 3; grey images are repeated, colours averaged.
        size: side of the network's images in pixels; None = that of the generator. Resized bilinearly with antialiasing.
        mean, std: per channel of images in [0, 1], or one number for all.
        scale: w; 0 = off.
        through_denoiser: whether the gradient goes through the generator's network: exact for a linear log p
            on Gaussian data, with twice the time and more memory.
        interval: (lo, hi] in noise level sigma / alpha.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        network: ImageNetwork,
        num_classes: int,
        channels: int = 3,
        size: int | None = 224,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        scale: float = 1.0,
        through_denoiser: bool = True,
        interval: Sequence[float] = EVERYWHERE,
    ):
        super().__init__(denoiser, num_classes, scale, interval)
        if channels not in (1, 3) or (size is not None and size < 1):
            raise ValueError(f"channels must be 1 or 3 and size at least 1, got {channels} and {size}")
        if len(mean) not in (1, channels) or len(std) not in (1, channels) or not all(value > 0 for value in std):
            raise ValueError(
                f"mean and std must be 1 or {channels} numbers, std positive, got {list(mean)} and {list(std)}"
            )
        self.network, self.channels, self.size = network, channels, size
        self.mean, self.std = (torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (mean, std))
        self.through_denoiser = bool(through_denoiser)

    def log_prob(self, x_0: Tensor) -> Tensor:
        """log p(y | x_0), [B, num_classes], of clean images in [-1, 1].

        Raises:
            SamplingError: vectors, or a network that rejects the images or returns another shape.
        """
        if x_0.ndim != 4:
            raise SamplingError(
                f"guidance=clean_classifier needs images [B, C, H, W], and this model generates {list(x_0.shape)}"
            )
        x = (x_0 + 1) / 2
        if x.shape[1] != self.channels:
            x = x.mean(1, keepdim=True).expand(-1, self.channels, -1, -1)
        if self.size is not None and list(x.shape[2:]) != [self.size] * 2:
            x = functional.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        logits = self.classify((x - self.mean.to(x)) / self.std.to(x))
        if logits.shape != (len(x_0), self.num_classes):
            raise SamplingError(
                f"guidance.num_classes={self.num_classes} needs logits [{len(x_0)}, {self.num_classes}], and the network "
                f"returns {list(logits.shape)}"
            )
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)

    def classify(self, x: Tensor) -> Tensor:
        """The network's logits for preprocessed images [B, C, H, W], in the precision of its weights."""
        weight = next(self.network.to(x.device).parameters(), x)
        try:
            return self.network(x.to(weight.dtype))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError) as error:  # the last line is the message, those above the place
            reason = ([line for line in str(error).splitlines() if line.strip()] or [""])[-1].strip()
            raise SamplingError(
                f"guidance.network cannot take images {list(x.shape)}, which guidance.channels and guidance.size decide: "
                f"{reason}"
            ) from error

    def guide(self, x_t: Tensor, t: Tensor, y: Tensor, scale: Tensor) -> Prediction:
        scale, (alpha, sigma) = scale.to(x_t.device), self.schedule.alpha_sigma(t, x_t.ndim)
        further = torch.is_grad_enabled() and x_t.requires_grad
        if self.through_denoiser:
            check_uncompiled(self.denoiser)
        with torch.enable_grad():
            x = x_t if further else x_t.detach().requires_grad_(self.through_denoiser)
            plain = prediction = self.predict_unguided(x, t, y)
            source = x
            if not self.through_denoiser:
                source = prediction.x_0 if further else prediction.x_0.detach().requires_grad_()
                prediction = Prediction(source, prediction.eps)
            count_potential(self.denoiser, len(x_t))
            value = sum_label_log_prob(self.log_prob(prediction.x_0), y)
            gradient = torch.autograd.grad(value, source, create_graph=further)[0]
        if not further:
            prediction = Prediction(*(field.detach() for field in prediction))
            gradient = gradient.detach()
        if not self.through_denoiser:
            gradient = (alpha / (alpha**2 + sigma**2)).to(gradient) * gradient
        return keep_variance(shift_score(prediction, scale * gradient, alpha, sigma), plain)
