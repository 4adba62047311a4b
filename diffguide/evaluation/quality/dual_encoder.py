"""A small dual encoder of pictures and texts, trained on the captions of the training split: a CLIP of one data set."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...conditions.text import ByteText, bytes_to_ids
from ...datasets import Dataset
from .local import EVAL_BATCH, MAX_SIDE, MIN_SIDE, LocalNetwork, augment, load_images
from .trained import TrainedNetwork, hash_data, load_or_train

__all__ = ["CAPTIONS", "DualEncoder", "DualNetwork", "contrastive_loss", "train_dual_network"]

CAPTIONS = "captions"  # the column of the data
EMBEDDING, TEXT_FEATURES, TEXT_LAYERS, TEXT_HEADS = 64, 64, 2, 4
MAX_LENGTH = 128  # tokens of a text; longer ones are cut
FIRST_SCALE, MAX_SCALE = 1 / 0.07, 100.0  # of the cosines
BATCH, RATE, DECAY = 100, 2e-3, 0.05
RECIPE = {
    "version": 1,  # of network and training; increase it with every change of the figures
    "embedding": EMBEDDING,
    "text": [TEXT_FEATURES, TEXT_LAYERS, TEXT_HEADS, MAX_LENGTH],
    "batch": BATCH,
    "rate": RATE,
    "decay": DECAY,
}


class DualNetwork(nn.Module):
    """Unit vectors of pictures, by the convolutions of `LocalNetwork`, and of texts, by a transformer of their bytes.

    Arguments:
        channels, size: of the pictures, side 8 to 64 pixels.
        length: tokens of a text at most.
    """

    def __init__(self, channels: int, size: int, length: int):
        super().__init__()
        self.length = length
        self.pictures = LocalNetwork(channels, size, EMBEDDING)
        self.texts = ByteText(length, TEXT_FEATURES, TEXT_LAYERS, TEXT_HEADS)
        self.projection = nn.Linear(TEXT_FEATURES, EMBEDDING)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def encode_pictures(self, x: Tensor) -> Tensor:
        """Unit vectors [B, E] of pictures in [-1, 1]."""
        return functional.normalize(self.pictures(x)[1], dim=1)

    def encode_texts(self, ids: Tensor) -> Tensor:
        """Unit vectors [B, E] of the indices of texts [B, L], each with a token."""
        return functional.normalize(self.projection(self.texts.encode(ids)[0]), dim=1)

    def read(self, texts: Sequence[str]) -> Tensor:
        """The indices of texts, which are cut where they are too long, [N, L] with L of the longest."""
        ids = bytes_to_ids([cut_text(text, self.length - 1) for text in texts], self.length)
        return ids[:, : int((ids != 0).sum(1).max())]


def cut_text(text: str, size: int) -> str:
    """The text without what lies beyond its first `size` bytes."""
    return text.encode()[:size].decode(errors="ignore")


def contrastive_loss(logits: Tensor, fits: Tensor) -> Tensor:
    """The symmetric cross-entropy of pictures and texts, 0-d.

        1/2 [mean_i -sum_j p_ij log softmax_j(logits_ij) + mean_j -sum_i q_ij log softmax_i(logits_ij)]

    p has rows and q columns that divide 1 equally among the pairs that fit. With one text for each picture this is the loss
    of Radford et al., "CLIP", 2021, arXiv 2103.00020, section 2.3, figure 3; several pictures of a batch may have the same
    text here.

    Arguments:
        logits: [B, B], scaled cosines of picture i and text j.
        fits: [B, B] bool, whether text j is a caption of picture i; at least one in every row and column.
    """
    share = fits.to(logits.dtype)
    of_texts = -(share / share.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    of_pictures = -(share / share.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (of_texts + of_pictures) / 2


def train_dual_network(
    images: Tensor,
    captions: Sequence[Sequence[str]],
    steps: int,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> DualNetwork:
    """Trains a network on pictures and their captions: AdamW, cosine decay, shifted pictures with noise.

    A step has 100 pictures, each with one of its captions. The scale of the cosines is learned from 1 / 0.07, up to 100
    (section 2.5 of the paper). The result is a function of the arguments (up to rounding on the device); global generators
    are not changed.

    Arguments:
        images: bytes [N, C, H, W].
        captions: of each, at least one.
        progress: progress(done, total, unit).
    """
    index = {text: row for row, text in enumerate(dict.fromkeys(text for texts in captions for text in texts))}
    own = torch.full((len(captions), max(map(len, captions))), -1)  # the captions of each picture, -1 = no more
    for row, texts in enumerate(captions):
        own[row, : len(texts)] = torch.tensor([index[text] for text in texts])
    counts = (own >= 0).sum(1)
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        network = DualNetwork(images.shape[1], images.shape[2], text_length(captions)).to(device).train()
        ids = network.read(list(index))
        rng = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            if progress is not None:
                progress(step, steps, "steps of the dual encoder")
            rows = torch.randperm(len(images), generator=rng)[:BATCH]
            choice = (torch.rand(len(rows), generator=rng) * counts[rows]).long()
            drawn = own[rows, choice]
            fits = (own[rows][:, None] == drawn[None, :, None]).any(-1).to(device)
            some = ids[drawn]
            u = network.encode_pictures(augment(images[rows], rng).to(device))
            v = network.encode_texts(some[:, : int((some != 0).sum(1).max())].to(device))
            loss = contrastive_loss(network.log_scale.exp() * u @ v.T, fits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
            with torch.no_grad():
                network.log_scale.clamp_(max=math.log(MAX_SCALE))
        return network.eval().requires_grad_(False)


def text_length(captions: Sequence[Sequence[str]]) -> int:
    """The number of tokens of the longest text, at most MAX_LENGTH."""
    return min(max(len(text.encode()) for texts in captions for text in texts) + 1, MAX_LENGTH)


class DualEncoder(TrainedNetwork):
    """A `DualNetwork` that is trained on the training split and cached.

    Arguments:
        steps: of training, 100 pictures each; at least 1.
        seed: of weights and batches, at least 0.
        cache: folder for trained networks, None = no cache; the name of a file has a hash of data and recipe.
    """

    network: DualNetwork

    def __init__(self, steps: int = 500, seed: int = 0, cache: str | None = "~/.cache/diffguide"):
        super().__init__(steps, seed, cache)

    def check(self, data: Dataset) -> None:
        """
        Raises:
            ValueError: data that are no square pictures of 8 to 64 pixels with captions.
        """
        if CAPTIONS not in data.train.columns:
            raise ValueError("metric=alignment needs data with captions, in its training split too; these have none")
        shape = data.shape
        if len(shape) != 3 or shape[1] != shape[2] or not MIN_SIDE <= shape[1] <= MAX_SIDE:
            raise ValueError(
                f"metric=alignment trains a dual encoder on square pictures of {MIN_SIDE} to {MAX_SIDE} pixels per side; "
                f"these are {list(shape)}"
            )

    def prepare(self, data: Dataset, device: torch.device, progress: Callable[[int, int, str], None]) -> None:
        """Trains the network, or loads it from the cache, and moves it to the device."""
        given = [[text for text in texts if text] for texts in data.train.columns[CAPTIONS]]
        rows = torch.tensor([row for row, texts in enumerate(given) if texts])
        captions = [given[row] for row in rows.tolist()]
        images = load_images(data, "train", rows)[0]
        recipe = RECIPE | {"steps": self.steps, "seed": self.seed, "shape": list(data.shape)}
        texts = torch.frombuffer(bytearray(json.dumps(captions), "utf-8"), dtype=torch.uint8)
        self.digest = hash_data(recipe, (images, texts))
        network = load_or_train(
            "metric.encoder.cache",
            self.cache,
            "dual",
            recipe,
            self.digest,
            lambda: DualNetwork(data.shape[0], data.shape[1], text_length(captions)),
            lambda: train_dual_network(images, captions, self.steps, self.seed, device, progress),
        )
        self.network, self.device = network.to(device), device

    @torch.no_grad()
    def encode_pictures(self, images: Tensor) -> Tensor:
        """Unit vectors [N, E] of bytes [N, C, H, W], on the CPU."""
        parts = [
            self.network.encode_pictures(part.to(self.device).float() / 127.5 - 1) for part in images.split(EVAL_BATCH)
        ]
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [N, E] of texts that are not empty, on the CPU."""
        ids = self.network.read(texts).split(EVAL_BATCH)
        return torch.cat([self.network.encode_texts(part.to(self.device)) for part in ids]).cpu()

    def facts(self) -> dict[str, Any]:
        """Settings that distinguish its figures from others with the same name."""
        return RECIPE | self.training_facts()
