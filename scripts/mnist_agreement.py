"""Label agreement of samples of MNIST, by a convolutional classifier that shares no training digit with the samples' model.

    python scripts/mnist_agreement.py [--path data] outputs/sample/mnist/v001 [more sample folders]

Trains a small network on MNIST's test split, which no training of `dataset=mnist` uses, and prints its accuracy on MNIST's
training split, which it does not see. Then, for each folder: the fraction of samples whose label it agrees with, and the
class with the smallest one. `--path` is dataset.path of the run. Takes a minute or two on one core.
"""

import argparse
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffguide.datasets import MNIST

STEPS, BATCH, RATE = 1600, 64, 0.003
MAX_TURN, MAX_GROWTH, MAX_SHIFT = 0.25, 0.15, 0.15  # radians, a fraction, half sides


def build_network() -> nn.Sequential:
    """[B, 1, 28, 28] in [0, 2] -> logits [B, 10]."""
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(48, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3)),
        *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(576, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def scale_pixels(images: Tensor) -> Tensor:
    """Bytes [B, 1, H, W] -> [0, 2], so that the pixels beyond the border, 0, are black."""
    return images.float() / 127.5


def move_at_random(x: Tensor) -> Tensor:
    """Each image turned, scaled and shifted, uniformly up to the constants above."""
    turn, growth = (2 * torch.rand(2, len(x)) - 1) * torch.tensor([[MAX_TURN], [MAX_GROWTH]])
    cos, sin, shift = (1 + growth) * turn.cos(), (1 + growth) * turn.sin(), (2 * torch.rand(2, len(x)) - 1) * MAX_SHIFT
    maps = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], dim=1).reshape(-1, 2, 3)
    return F.grid_sample(x, F.affine_grid(maps, list(x.shape), align_corners=False), align_corners=False)


def train_network(images: Tensor, labels: Tensor, steps: int = STEPS) -> nn.Sequential:
    """AdamW with one cycle of the learning rate, from seed 0."""
    torch.manual_seed(0)
    network = build_network()
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for _ in range(steps):
        rows = torch.randint(len(images), (BATCH,))
        loss = F.cross_entropy(network(move_at_random(scale_pixels(images[rows]))), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return network.eval()


@torch.no_grad()
def find_agreement(network: nn.Sequential, images: Tensor, labels: Tensor) -> Tensor:
    """Whether the network's class is the label, [N], from bytes [N, 1, 28, 28]."""
    found = torch.cat([network(scale_pixels(part)).argmax(1) for part in images.split(500)])
    return found == labels


def read_samples(folder: str) -> tuple[Tensor, Tensor]:
    """(bytes [N, 1, 28, 28], labels [N]) of a sample folder."""
    with numpy.load(Path(folder) / "samples.npz") as arrays:
        images, labels = (torch.from_numpy(arrays[name]) for name in ("arr_0", "arr_1"))
    return images.reshape(-1, 1, 28, 28), labels.long()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", metavar="samples", help="folders of diffguide-sample")
    parser.add_argument("--path", default="data", help="folder of MNIST's files, or to download them to")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the classifier's training")
    chosen = parser.parse_args(arguments)
    data = MNIST(chosen.path, validation=0)
    network = train_network(*data.test, chosen.steps)
    accuracy = find_agreement(network, *data.train).float().mean()
    print(f"trained on {len(data.test.y)} digits, accuracy on {len(data.train.y)} others {accuracy:.2%}")
    print(f"{'samples':44} {'n':>5} {'agreed':>7}  lowest class")
    for folder in chosen.folders:
        images, labels = read_samples(folder)
        agreed = find_agreement(network, images, labels).float()
        classes = {int(label): float(agreed[labels == label].mean()) for label in labels.unique()}
        lowest = min(classes, key=classes.__getitem__)
        print(f"{folder:44} {len(labels):5} {agreed.mean():7.1%}  {lowest}: {classes[lowest]:.1%}")


if __name__ == "__main__":
    main()
