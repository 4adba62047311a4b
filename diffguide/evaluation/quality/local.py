"""Features of a small classifier, trained on the training split of the data set in about half a minute."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...datasets import Dataset
from ...datasets.base import fetch_examples
from ...figures.image_grids import quantize
from .features import FeatureOutput, Features
from .trained import TrainedNetwork, hash_data, load_or_train

__all__ = ["Local", "LocalNetwork", "augment", "load_images", "network_accuracy", "train_local_network"]

NUM_FEATURES = 64
MIN_SIDE, MAX_SIDE = 8, 64  # of images, pixels
BATCH, RATE, DECAY, SMOOTHING, DROPOUT, PIXEL_NOISE = 100, 2e-3, 0.05, 0.1, 0.3, 0.1
EVAL_BATCH = 500  # images per evaluation
RECIPE = {
    "version": 1,  # of network and training; increase it with every change of the features
    "width": NUM_FEATURES,
    "batch": BATCH,
    "rate": RATE,
    "decay": DECAY,
    "smoothing": SMOOTHING,
    "dropout": DROPOUT,
    "noise": PIXEL_NOISE,
}


class LocalNetwork(nn.Module):
    """Convolutions down to 4 x 4 pixels, 64 features, and a logit per class.

    Arguments:
        channels, size: of the images, side 8 to 64 pixels.
        classes: K.
    """

    def __init__(self, channels: int, size: int, classes: int):
        super().__init__()
        width = 32
        layers = [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
        while size >= MIN_SIDE:
            outputs, size = min(2 * width, 128), (size + 1) // 2
            layers += [nn.Conv2d(width, outputs, 3, stride=2, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()]
            width = outputs
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, NUM_FEATURES))
        self.head = nn.Sequential(nn.SiLU(), nn.Dropout(DROPOUT), nn.Linear(NUM_FEATURES, classes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(features [B, 64], logits [B, K]) of images in [-1, 1]."""
        features = self.trunk(x)
        return features, self.head(features)


def train_local_network(
    images: Tensor,
    y: Tensor,
    classes: int,
    steps: int,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> LocalNetwork:
    """Trains a network to classify images: AdamW, cosine decay, random shifts by up to an eighth of the side, noise.

    The result is a function of the arguments (up to rounding on the device); global generators are not changed.

    Arguments:
        images: bytes [N, C, H, W].
        y: classes [N], 0 to classes - 1.
        steps: of 100 images.
        progress: progress(done, total, unit).
    """
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        network = LocalNetwork(images.shape[1], images.shape[2], classes).to(device).train()
        rng = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            if progress is not None:
                progress(step, steps, "steps of the classifier")
            rows = torch.randint(len(images), (min(BATCH, len(images)),), generator=rng)
            logits = network(augment(images[rows], rng).to(device))[1]
            loss = functional.cross_entropy(logits, y[rows].to(device), label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
        return network.eval().requires_grad_(False)


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Bytes [B, C, H, W] as inputs in [-1, 1], shifted at random by up to an eighth of the side, with noise."""
    x = shift_at_random(images.float() / 127.5 - 1, rng)
    return x + PIXEL_NOISE * torch.randn(x.shape, generator=rng)


def shift_at_random(x: Tensor, rng: torch.Generator) -> Tensor:
    """Shifts each image by up to an eighth of its side in both directions; the border is replicated."""
    side, shift = x.shape[2], x.shape[2] // 8
    corner = torch.randint(2 * shift + 1, (len(x), 2), generator=rng)
    rows, columns = (part + torch.arange(side) for part in corner.T[:, :, None])
    padded = functional.pad(x, [shift] * 4, mode="replicate")
    batch = torch.arange(len(x))[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def network_accuracy(network: LocalNetwork, images: Tensor, y: Tensor, device: torch.device | str = "cpu") -> float:
    """The accuracy of the network on images (bytes) of classes y."""
    parts = [network(part.to(device).float() / 127.5 - 1)[1].argmax(1).cpu() for part in images.split(EVAL_BATCH)]
    return float((torch.cat(parts) == y).double().mean())


def load_images(data: Dataset, split: str, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Preprocessed examples of a split as bytes, and their classes; None = all rows."""
    examples = getattr(data, split)
    x, y = fetch_examples(examples, torch.arange(len(examples.y)) if rows is None else rows)
    return quantize(data.preprocess(x)), y


class Local(TrainedNetwork, Features):
    """The 64 features before the last layer of `LocalNetwork`, which is trained on the training split and cached.

    Arguments:
        steps: of training, 100 images each; at least 1.
        seed: of weights and batches, at least 0.
        cache: folder for trained networks, None = no cache; the name of a file has a hash of data and recipe.
    """

    name, classifies = "local", True
    network: LocalNetwork | None = None

    def __init__(self, steps: int = 300, seed: int = 0, cache: str | None = "~/.cache/diffguide"):
        super().__init__(steps, seed, cache)

    def check(self, data: Dataset) -> None:
        shape = data.shape
        if len(shape) != 3 or shape[1] != shape[2] or not MIN_SIDE <= shape[1] <= MAX_SIDE:
            raise ValueError(
                f"metric.features=local needs square images of {MIN_SIDE} to {MAX_SIDE} pixels per side; these are "
                f"{list(shape)}: use metric/features=inception, dinov2, clip or pixels"
            )
        labels = data.train.y[data.train.y >= 0]
        if len(labels.unique()) < 2:
            raise ValueError(
                "metric.features=local needs at least two classes in the training split: use metric/features=inception, "
                "dinov2, clip or pixels"
            )

    def width(self, shape: Sequence[int]) -> int:
        return NUM_FEATURES

    def prepare(self, data: Dataset, device: torch.device, progress: Callable[[int, int, str], None]) -> None:
        images, y = load_images(data, "train")
        images, y = images[y >= 0], y[y >= 0]
        self.device, classes = device, len(data.class_names)
        recipe = RECIPE | {"steps": self.steps, "seed": self.seed, "classes": classes, "shape": list(data.shape)}
        self.digest = hash_data(recipe, (images, y))
        network = load_or_train(
            "metric.features.cache",
            self.cache,
            self.name,
            recipe,
            self.digest,
            lambda: LocalNetwork(data.shape[0], data.shape[1], classes),
            lambda: train_local_network(images, y, classes, self.steps, self.seed, device, progress),
        )
        self.network = network.to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> FeatureOutput:
        assert self.network is not None, "call prepare first"
        features, logits = self.network(images.to(self.device).float() / 127.5 - 1)
        return FeatureOutput(features.cpu(), logits.cpu())

    def facts(self) -> dict[str, Any]:
        return super().facts() | RECIPE | self.training_facts()
