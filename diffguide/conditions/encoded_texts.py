"""Texts that a frozen encoder encodes once, into shards on the disk, from which training reads them.

The folder of the shards is named by a hash of the encoder, its settings and the texts, so that other encodings are never read.
A shard is written atomically with a checksum; a run that was stopped continues with the next shard, and a damaged one is
encoded again. Tokens alone are stored, no padding. Encodings that are small enough are kept in memory, where training takes
those of a batch by one operation; larger ones are read from the shards.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from ..backbones.conditions import TokenStates
from ..files import safetensors as archives
from ..files.run_folders import BusyError, convert_write_errors, lock_run_dir
from ..files.safetensors import CheckpointError
from ..runtime.progress import Progress
from .encoders import Encoding

__all__ = ["DEFAULT_MEMORY", "EncodedTexts", "PackedTexts", "encode_texts", "pad_encodings"]

VERSION = 1  # of the shards; increase it with every change of what they hold
SHARD_BYTES, SHARD_ROWS = 2**26, 1024  # at most, of texts with all their tokens
DEFAULT_MEMORY = 2e9  # bytes
WAIT_SECONDS = 0.5  # between two looks at a folder that another process fills


class Shard(NamedTuple):
    """An open shard of n texts: states [T, D], pooled [n, P], and where the tokens of each text end."""

    states: Tensor
    pooled: Tensor
    ends: list[int]


def open_shard(path: Path) -> Shard:
    """A shard, mapped into memory: safetensors returns tensors over the mapped file."""
    file = safetensors.safe_open(path, framework="pt")
    return Shard(file.get_tensor("states"), file.get_tensor("pooled"), file.get_tensor("counts").cumsum(0).tolist())


class EncodedTexts:
    """The encodings of texts in shards on the disk, mapped into memory; rows of a tensor of indices are a condition.

    Arguments:
        shards: files of `rows` texts each, the last one of fewer.
        rows: see above.
        keep: [N] bool, False = an empty text, which has no condition.
        length: tokens of a text at most.
    """

    def __init__(self, shards: Sequence[Path], rows: int, keep: Tensor, length: int):
        self.shards, self.rows, self.keep, self.length = list(shards), rows, keep, length

    @cached_property
    def files(self) -> list[Shard]:
        """The shards, opened: their pages are read from the disk when they are used."""
        return [open_shard(file) for file in self.shards]

    def to(self, device: torch.device) -> "EncodedTexts":
        """Itself: the disk is no device."""
        return self

    def read(self, index: int) -> Encoding:
        """The encoding of one text."""
        shard, row = divmod(index, self.rows)
        states, pooled, ends = self.files[shard]
        return Encoding(states[ends[row - 1] if row else 0 : ends[row]], pooled[row])

    def __getitem__(self, rows: Tensor) -> TokenStates:
        rows = rows.cpu()
        found = [self.read(row) for row in rows.tolist()]
        return pad_encodings(found, self.length, self.keep[rows])

    def pack(self) -> "PackedTexts":
        """The same in memory."""
        states, pooled, ends = zip(*self.files)
        counts = torch.cat([torch.tensor([0, *part]).diff() for part in ends])
        padding = torch.zeros(1, states[0].shape[1])
        return PackedTexts(torch.cat([*states, padding]), torch.cat(pooled), counts, self.keep, self.length)


class PackedTexts:
    """The encodings of texts in memory, those of a batch by one operation; rows of a tensor of indices are a condition.

    Arguments:
        states: [T + 1, D], the tokens of one text after the other, and zeros as those of padding.
        pooled: [N, P].
        counts: [N], tokens of each text, T in total.
        keep, length: see `EncodedTexts`.
    """

    def __init__(self, states: Tensor, pooled: Tensor, counts: Tensor, keep: Tensor, length: int):
        self.states, self.pooled, self.counts, self.keep, self.length = states, pooled, counts, keep, length
        self.firsts = counts.cumsum(0) - counts

    def to(self, device: torch.device) -> "PackedTexts":
        if self.states.device != torch.device(device):
            self.states, self.pooled, self.counts, self.keep, self.firsts = (
                part.to(device) for part in (self.states, self.pooled, self.counts, self.keep, self.firsts)
            )
        return self

    def __getitem__(self, rows: Tensor) -> TokenStates:
        place = torch.arange(self.length, device=rows.device)
        mask = place < self.counts[rows, None]
        index = torch.where(mask, self.firsts[rows, None] + place, len(self.states) - 1)
        states = self.states.index_select(0, index.flatten()).unflatten(0, index.shape)
        return TokenStates(states, mask, self.pooled[rows], self.keep[rows])


def pad_encodings(encodings: Sequence[Encoding], length: int, keep: Tensor) -> TokenStates:
    """The condition of encoded texts, at least one, with zeros as the states of padding.

    Arguments:
        keep: [B] bool, which of them are conditions.
    """
    states = torch.zeros(len(encodings), length, encodings[0].states.shape[1])
    for row, each in zip(states, encodings):
        row[: len(each.states)] = each.states
    counts = torch.tensor([len(each.states) for each in encodings], dtype=torch.long)
    pooled = torch.stack([each.pooled for each in encodings])
    return TokenStates(states, torch.arange(length) < counts[:, None], pooled, keep)


def encode_texts(
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], list[Encoding]],
    cache: Path,
    settings: Sequence[Any],
    length: int,
    widths: tuple[int, int],
    memory: float = DEFAULT_MEMORY,
) -> EncodedTexts | PackedTexts:
    """The encodings of texts, of which those that are not in the cache are computed.

    Arguments:
        encode: texts -> encodings.
        cache: folder of the encoded texts of all data sets.
        settings: that name the encoder and what changes its encodings.
        length: tokens of a text at most.
        widths: length of the vector of a token, and of that of a text.
        memory: bytes up to which they are kept in memory.

    Raises:
        ValueError: from `encode`.
        WriteError: a shard cannot be written.
    """
    facts = [VERSION, *settings, list(texts)]
    folder = cache / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    with convert_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    rows = max(1, min(SHARD_BYTES // (4 * length * widths[0]), SHARD_ROWS))
    parts = {folder / f"{first:010d}.safetensors": texts[first : first + rows] for first in range(0, len(texts), rows)}
    with hold(folder):
        missing = [file for file, part in parts.items() if not is_whole(file, len(part), widths)]
        done = len(texts) - sum(len(parts[file]) for file in missing)
        progress = Progress("encoding texts", len(texts), "texts", done, silent=not missing)
        for file in missing:
            write_shard(file, parts[file], encode, widths)
            progress.advance(len(parts[file]))
            progress.show()
        progress.close()
    keep = torch.tensor([text != "" for text in texts], dtype=torch.bool)
    encoded = EncodedTexts(list(parts), rows, keep, length)
    size = sum(file.stat().st_size for file in parts)
    return encoded.pack() if parts and size <= memory else encoded


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder; waits for another process, such as another rank, that encodes the same texts."""
    while True:
        try:
            with lock_run_dir(folder):
                yield
            return
        except BusyError:
            time.sleep(WAIT_SECONDS)


def write_shard(
    path: Path, texts: Sequence[str], encode: Callable[[Sequence[str]], list[Encoding]], widths: tuple[int, int]
) -> None:
    """Encodes texts into a shard; an empty text has no tokens in it."""
    given = [row for row, text in enumerate(texts) if text]
    states = [torch.zeros(0, widths[0]) for _ in texts]
    pooled = torch.zeros(len(texts), widths[1])
    for row, found in zip(given, encode([texts[row] for row in given]) if given else []):
        states[row], pooled[row] = found
    counts = torch.tensor([len(each) for each in states])
    archives.write_sealed(
        path, {"states": torch.cat(states), "pooled": pooled, "counts": counts}, {"texts": path.parent.name}
    )


def is_whole(path: Path, count: int, widths: tuple[int, int]) -> bool:
    """Whether a shard is there, undamaged, and of `count` texts of its folder."""
    try:
        tensors, metadata = archives.read_sealed(path)
    except CheckpointError:
        return False
    if metadata.get("texts") != path.parent.name or tensors.keys() != {"states", "pooled", "counts"}:
        return False
    shape = (int(tensors["counts"].sum()), widths[0])
    return tuple(tensors["states"].shape) == shape and tuple(tensors["pooled"].shape) == (count, widths[1])
