"""Features of pretrained networks: Inception through torch-fidelity, DINOv2 and CLIP through transformers."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor

from ...datasets import Dataset
from .features import IMAGENET, FeatureOutput, Features, as_rgb, preprocess

__all__ = ["CLIP", "DINOv2", "Inception"]

INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_WEIGHTS}"
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
CLIP_COLOURS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Pretrained(Features):
    """Base of the features of a pretrained network.

    Attributes:
        network: in evaluation mode.
    """

    network: Any

    def check(self, data: Dataset) -> None:
        if len(data.shape) != 3 or data.shape[0] not in (1, 3):
            raise ValueError(
                f"metric.features={self.name} needs images of 1 or 3 channels; these are {list(data.shape)}"
            )

    def prepare(self, data: Dataset, device: torch.device, progress: Callable[[int, int, str], None]) -> None:
        self.device = device
        self.network.to(device)


class Inception(Pretrained):
    """The 2048 features of Inception-v3 of 2015-12-05, as for the FID of papers; logits of 1008 classes.

    The network of torch-fidelity, which resizes to 299 x 299 like TensorFlow 1. Only the published weights are accepted:
    their SHA-256 is checked before the file is loaded.

    Arguments:
        weights: the file weights-inception-2015-12-05-6726825d.pth; None = download to the cache of torch.

    Raises:
        ValueError: torch-fidelity is not installed, or the file is missing, has other contents or cannot be downloaded.
    """

    name, resize, classifies = "inception", "TensorFlow 1 bilinear to 299", True

    def __init__(self, weights: str | None = None):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise ValueError("inception needs torch-fidelity: pip install 'diffguide[fid]'") from None
        file = find_inception_weights(weights)
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file)
        )

    def width(self, shape: Sequence[int]) -> int:
        return 2048

    @torch.no_grad()
    def __call__(self, images: Tensor) -> FeatureOutput:
        features, logits = self.network(as_rgb(images).to(self.device))
        return FeatureOutput(features.float().cpu(), logits.float().cpu())

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"weights": INCEPTION_WEIGHTS}


def find_inception_weights(weights: str | None) -> Path:
    """Returns the file of the published Inception weights; downloads it if `weights` is None and it is not in the cache.

    Raises:
        ValueError: it is missing, has other contents, or cannot be downloaded.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_WEIGHTS
    file = cached if weights is None else Path(weights).expanduser()
    if weights is None and not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(WEIGHTS_URL, str(file), WEIGHTS_SHA256[:8])
        except (URLError, OSError, RuntimeError) as error:
            raise ValueError(
                f"weights: {INCEPTION_WEIGHTS} cannot be downloaded ({error}): set metric.features.weights=<file>, or use "
                "metric/features=local"
            ) from error
    if not file.is_file():
        raise ValueError(f"weights: there is no file {weights}")
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ValueError(
            f"weights: {file} is not {INCEPTION_WEIGHTS}: its SHA-256 starts with {digest[:8]}, not {WEIGHTS_SHA256[:8]}"
        )
    return file


class Transformer(Pretrained):
    """A vision model of `transformers`, in evaluation mode.

    Arguments:
        model: a local folder, or a name on the hub, from which `transformers` downloads it.

    Raises:
        ValueError: `transformers` is not installed, or there is no such model.
    """

    transformers_class: str
    colours: Sequence[Sequence[float]]

    def __init__(self, model: str):
        try:
            import transformers
        except ImportError:
            raise ValueError(f"{self.name} needs transformers: pip install 'diffguide[clip]'") from None
        try:
            architecture = getattr(transformers, self.transformers_class)
            network = architecture.from_pretrained(model, use_safetensors=True)  # not a pickle, which could run code
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"model: there is no {self.transformers_class} {model}: {reason}") from error
        self.network = network.eval().requires_grad_(False)
        self.model, self.side = model, self.network.config.image_size

    def preprocess(self, images: Tensor) -> Tensor:
        """The input of the network, float32 [B, 3, side, side] on the device."""
        return preprocess(images.to(self.device), self.side, *self.colours)

    def facts(self) -> dict[str, Any]:
        return {"resize": f"bicubic with antialiasing to {self.side}", "model": self.model}


class DINOv2(Transformer):
    """The normalised class token of the last layer of DINOv2: the features of FD-DINOv2.

    Stein et al., "Exposing flaws of generative model evaluation metrics", 2023, arXiv 2306.04675, section 3: ViT-L/14 at 224
    pixels, resized bicubically with antialiasing.

    Arguments:
        model: a local folder, or a name on the hub; papers use facebook/dinov2-large.
        side: of the resized images, pixels; a multiple of the patch size.
    """

    name = "dinov2"
    transformers_class = "Dinov2Model"
    colours = IMAGENET

    def __init__(self, model: str = "facebook/dinov2-large", side: int = 224):
        super().__init__(model)
        patch = self.network.config.patch_size
        if side < patch or side % patch:
            raise ValueError(f"side must be a multiple of the patch size of the model, {patch} pixels, got {side}")
        self.side = side

    def width(self, shape: Sequence[int]) -> int:
        return self.network.config.hidden_size

    @torch.no_grad()
    def __call__(self, images: Tensor) -> FeatureOutput:
        output = self.network(pixel_values=self.preprocess(images))
        return FeatureOutput(output.last_hidden_state[:, 0].float().cpu())


class CLIP(Transformer):
    """The image embedding of CLIP, not normalised: the features of CLIP-FID.

    Kynkaanniemi et al., "The Role of ImageNet Classes in Frechet Inception Distance", 2022, arXiv 2203.06026, appendix A.

    Arguments:
        model: a local folder, or a name on the hub; papers use openai/clip-vit-base-patch32.
    """

    name = "clip"
    transformers_class = "CLIPVisionModelWithProjection"
    colours = CLIP_COLOURS

    def __init__(self, model: str = "openai/clip-vit-base-patch32"):
        super().__init__(model)

    def width(self, shape: Sequence[int]) -> int:
        return self.network.config.projection_dim

    @torch.no_grad()
    def __call__(self, images: Tensor) -> FeatureOutput:
        return FeatureOutput(self.network(pixel_values=self.preprocess(images)).image_embeds.float().cpu())
