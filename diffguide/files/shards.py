"""The batches of a sampling run on the disk: one file each, whole or absent, merged into one archive at the end."""

import math
import os
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy

from .run_folders import write_atomically

__all__ = ["POTENTIAL_EVALUATIONS", "START_FILE", "ShardError", "Shards", "read_rows", "write_archive", "write_npz"]

POTENTIAL_EVALUATIONS = "potential_evaluations"
START_FILE = "start.json"  # beside the shards: the header of the manifest, as it was when the run began


class ShardError(ValueError):
    """A shard that is damaged or not of this run; the message names it and what would be right."""


class Shards:
    """One `<first index>.npz` per batch of n samples, without pickle; reading holds one batch in memory.

    Arguments:
        folder: where they lie.
        n: number of samples.
        batch_size: samples per shard; the last one has what is left.
        storage_spec: dtype and shape of one sample, checked in every shard; None = unchecked.
    """

    def __init__(self, folder: Path, n: int, batch_size: int, storage_spec: tuple[str, tuple[int, ...]] | None = None):
        self.folder, self.n, self.batch_size, self.storage_spec = folder, n, batch_size, storage_spec
        self.firsts = range(0, n, batch_size)

    def path(self, first: int) -> Path:
        return self.folder / f"{first:010d}.npz"

    def missing_batches(self) -> list[int]:
        """The first index of every batch that is not there."""
        return [first for first in self.firsts if not self.path(first).exists()]

    def count(self, first: int) -> int:
        """How many samples a batch has."""
        return min(self.batch_size, self.n - first)

    def write(
        self, first: int, samples: numpy.ndarray, evaluations: int, frames: numpy.ndarray | None, potential_evaluations: int = 0
    ) -> None:  # fmt: skip
        """Writes a batch.

        Arguments:
            first: index of its first sample.
            samples: [b, ...].
            evaluations: of the network, for the whole batch.
            potential_evaluations: of classifiers and other potentials, for the whole batch.
            frames: what the trajectory shows of it [frames, shown, ...], None = it shows nothing of this batch.

        Raises:
            WriteError: the disk is full, the folder is gone, ...
        """
        arrays = {
            "samples": samples,
            "evaluations": numpy.asarray(evaluations, dtype=numpy.int64),
            POTENTIAL_EVALUATIONS: numpy.asarray(potential_evaluations, dtype=numpy.int64),
        }
        if frames is not None:
            arrays["frames"] = frames
        write_npz(self.path(first), arrays)

    @contextmanager
    def open(self, first: int) -> Iterator[Any]:
        """The arrays of a batch by name, read on access.

        Raises:
            ShardError: a file that is damaged or holds something else than this batch.
        """
        path = self.path(first)
        try:
            if not path.is_file():  # opening a pipe would wait for ever
                raise ValueError("it is no file")
            with numpy.load(path, allow_pickle=False) as arrays:
                yield arrays
        except Exception as error:  # any error of NumPy and zipfile, and those raised by the caller
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ShardError(f"the shard {path} is damaged ({reason}): delete it and resume the run") from error

    def check(self, array: numpy.ndarray, counts: tuple[int, ...], shape: tuple[int, ...]) -> None:
        """Raises ValueError where an array is not [*counts, *shape], or not of the samples' dtype."""
        dtype, _ = self.storage_spec or (array.dtype, ())
        if (array.dtype, array.shape) != (dtype, counts + shape):
            wanted = f"{dtype} {[*counts, *shape]}"
            raise ValueError(f"it holds {array.dtype} {list(array.shape)} instead of {wanted}")

    def samples(self, first: int) -> numpy.ndarray:
        """The samples of a batch."""
        with self.open(first) as arrays:
            samples = arrays["samples"]
            if len(samples) != self.count(first):
                raise ValueError(f"it has {len(samples)} samples instead of {self.count(first)}")
            if self.storage_spec is not None:
                self.check(samples, (self.count(first),), self.storage_spec[1])
            return samples

    def evaluations(self, name: str = "evaluations") -> int:
        """Network evaluations of all batches together, or those of potentials (`POTENTIAL_EVALUATIONS`)."""
        total = 0
        for first in self.firsts:
            with self.open(first) as arrays:
                evaluations = arrays[name]
                if evaluations.shape != () or evaluations.dtype.kind not in "iu" or evaluations < 0:
                    raise ValueError(f"its {name} are {evaluations.dtype} {list(evaluations.shape)}, no whole number")
                total += int(evaluations)
        return total

    def read_samples(self, indices: Iterable[int]) -> dict[int, numpy.ndarray]:
        """Single samples by index."""
        return {
            index: samples[index - first]
            for first, members in self.group_by_batch(indices).items()
            for samples in [self.samples(first)]
            for index in members
        }

    def frames(self, indices: Iterable[int]) -> dict[int, numpy.ndarray]:
        """The trajectory's frames [frames, ...] of single samples by index: all those that it shows."""
        found: dict[int, numpy.ndarray] = {}
        count = None
        for first, members in self.group_by_batch(indices).items():
            with self.open(first) as arrays:
                frames = arrays["frames"]
                count = len(frames) if count is None else count
                if self.storage_spec is not None:
                    shape = self.storage_spec[1]
                    shape = shape if len(shape) > 1 else (min(2, *shape),)  # of vectors two coordinates are shown
                    self.check(frames, (count, len(members)), shape)
                found |= {index: part for index, part in zip(members, numpy.moveaxis(frames, 1, 0))}
        return found

    def group_by_batch(self, indices: Iterable[int]) -> dict[int, list[int]]:
        """Indices, ascending, by the batch that they are in."""
        groups: dict[int, list[int]] = {}
        for index in sorted(indices):
            groups.setdefault(index // self.batch_size * self.batch_size, []).append(index)
        return groups

    def remove(self) -> None:
        """Removes every batch and the start file, and the folder where nothing else is in it."""
        for path in (*map(self.path, self.firsts), self.folder / START_FILE):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()


def write_npz(path: Path, arrays: Mapping[str, numpy.ndarray]) -> None:
    """Writes arrays by name as an .npz.

    Raises:
        WriteError: the disk is full, the folder is gone, ...
    """
    write_atomically(path, lambda temporary: numpy.savez(temporary, **arrays))  # type: ignore[arg-type]


def write_archive(path: Path, parts: Iterator[numpy.ndarray], labels: Sequence[int]) -> None:
    """Writes what numpy.savez(path, samples, labels) would, byte for byte, with one part in memory at a time.

    Arguments:
        path: of the archive.
        parts: the samples, cut along the first axis; of one dtype and shape.
        labels: one per sample.

    Raises:
        ShardError: parts that differ, or do not have as many samples as there are labels.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            count, kind = 0, None
            for part in parts:
                if kind is None:
                    kind = part.dtype, part.shape[1:]
                    header = numpy.lib.format.header_data_from_array_1_0(part[:0])
                    header["shape"] = (len(labels), *part.shape[1:])
                    numpy.lib.format.write_array_header_1_0(file, header)
                if kind != (part.dtype, part.shape[1:]):
                    raise ShardError(
                        f"shards differ: {kind} and {part.dtype, part.shape[1:]}; delete them and resume the run"
                    )
                count += len(part)
                file.write(numpy.ascontiguousarray(part).data)
            if count != len(labels):
                raise ShardError(f"{count} samples for {len(labels)} labels")
        with archive.open("arr_1.npy", "w", force_zip64=True) as file:
            numpy.lib.format.write_array(file, numpy.asarray(labels, dtype=numpy.int64), allow_pickle=False)


def read_rows(path: Path, indices: Iterable[int]) -> numpy.ndarray:
    """Rows of arr_0 in such an archive, in ascending order of their indices; the others are not read at all.

    Raises:
        ValueError: no such archive, or no such row.
    """
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("arr_0.npy").header_offset
    with open(path, "rb") as file:  # stored, not compressed: zipfile itself would read all that it skips
        file.seek(offset + 26)
        lengths = struct.unpack("<HH", file.read(4))  # of the entry's name and of its extra field
        file.seek(sum(lengths), os.SEEK_CUR)
        numpy.lib.format.read_magic(file)
        shape, _, dtype = numpy.lib.format.read_array_header_1_0(file)
        start, size = file.tell(), dtype.itemsize * math.prod(shape[1:])
        rows = []
        for index in sorted(indices):
            if not 0 <= index < shape[0]:
                raise ValueError(f"{path} has {shape[0]} samples, and none of index {index}")
            file.seek(start + index * size)
            rows.append(numpy.frombuffer(file.read(size), dtype).reshape(shape[1:]))
    return numpy.stack(rows)
