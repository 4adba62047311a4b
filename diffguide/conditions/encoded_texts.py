"""Texts that a frozen encoder encodes once, into shards on the disk, from which training reads them.

The folder of the shards is named by a hash of the encoder, its settings and the texts, so that other encodings are never read.
A shard is written atomically with a checksum; a run that was stopped continues with the next shard, and a damaged one is
encoded again. Tokens alone are stored, no padding.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ..backbones.conditions import TokenStates
from ..files import safetensors as archives
from ..files.run_folders import BusyError, convert_write_errors, lock_run_dir
from ..files.safetensors import CheckpointError
from ..runtime.progress import Progress
from .encoders import Encoding

__all__ = ["EncodedTexts", "encode_texts", "pad_encodings"]

VERSION = 1  # of the shards; increase it with every change of what they hold
SHARD_BYTES, SHARD_ROWS = 2**26, 1024  # at most, of texts with all their tokens
WAIT_SECONDS = 0.5  # between two looks at a folder that another process fills


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

    def __deepcopy__(self, memo: Any) -> "EncodedTexts":
        return self  # open files cannot be copied, and nothing in it changes

    @cached_property
    def files(self) -> list[Any]:
        """The shards, opened: their pages are read from the disk when they are used."""
        return [safetensors.safe_open(file, framework="pt") for file in self.shards]

    @cached_property
    def ends(self) -> list[Tensor]:
        """Of each shard where the tokens of its texts end, [n]."""
        return [file.get_tensor("counts").cumsum(0) for file in self.files]

    def read(self, index: int) -> Encoding:
        """The encoding of one text."""
        shard, row = divmod(index, self.rows)
        ends = self.ends[shard]
        first, last = int(ends[row - 1]) if row else 0, int(ends[row])
        file = self.files[shard]
        return Encoding(file.get_slice("states")[first:last], file.get_slice("pooled")[row])

    def __getitem__(self, rows: Tensor) -> TokenStates:
        found = [self.read(row) for row in rows.tolist()]
        return pad_encodings(found, self.length, self.keep[rows])


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
) -> EncodedTexts:
    """The encodings of texts, of which those that are not in the cache are computed.

    Arguments:
        encode: texts -> encodings.
        cache: folder of the encoded texts of all data sets.
        settings: that name the encoder and what changes its encodings.
        length: tokens of a text at most.
        widths: length of the vector of a token, and of that of a text.

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
    return EncodedTexts(list(parts), rows, keep, length)


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
