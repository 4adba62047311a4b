"""The batches of a sampling run on the disk: one file each, written atomically, merged into one archive at the end."""

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
MEANS = "mean of "  # before the quantity, in the names of arrays
START_FILE = "start.json"  # in the folder of the shards: the header of the manifest at the start of the run


class ShardError(ValueError):
    """A shard that is damaged or of another run. The message names the file and what to do."""


class Shards:
    """One `<first index>.npz` per batch of n samples, without pickle. At most one batch is in memory.

    Arguments:
        folder: folder of the shards.
        n: number of samples.
        batch_size: samples per shard; the last one may have fewer.
        storage_spec: dtype and shape of one sample, checked in every shard; None = not checked.
    """

    def __init__(self, folder: Path, n: int, batch_size: int, storage_spec: tuple[str, tuple[int, ...]] | None = None):
        self.folder, self.n, self.batch_size, self.storage_spec = folder, n, batch_size, storage_spec
        self.firsts = range(0, n, batch_size)

    def path(self, first: int) -> Path:
        return self.folder / f"{first:010d}.npz"

    def missing_batches(self) -> list[int]:
        """The first index of every batch without a shard."""
        return [first for first in self.firsts if not self.path(first).exists()]

    def count(self, first: int) -> int:
        """Number of samples of a batch."""
        return min(self.batch_size, self.n - first)

    def write(
        self,
        first: int,
        samples: numpy.ndarray,
        evaluations: int,
        frames: numpy.ndarray | None,
        potential_evaluations: int = 0,
        means: Mapping[str, Mapping[float, Sequence[float]]] | None = None,
    ) -> None:
        """Writes a batch.

        Arguments:
            first: index of its first sample.
            samples: [b, ...].
            evaluations: number of evaluations of the network, for the whole batch.
            frames: frames of the trajectories [frames, shown, ...]; None = no sample of this batch is shown.
            potential_evaluations: the same of classifiers and other potentials.
            means: quantity -> noise level -> [sum, count]; None = none.

        Raises:
            WriteError: the disk is full, the folder is missing, ...
        """
        arrays = {
            "samples": samples,
            "evaluations": numpy.asarray(evaluations, dtype=numpy.int64),
            POTENTIAL_EVALUATIONS: numpy.asarray(potential_evaluations, dtype=numpy.int64),
        }
        if frames is not None:
            arrays["frames"] = frames
        for quantity, levels in (means or {}).items():
            arrays[MEANS + quantity] = numpy.array([[level, *mean] for level, mean in levels.items()])
        write_npz(self.path(first), arrays)

    @contextmanager
    def open(self, first: int) -> Iterator[Any]:
        """The arrays of a batch by name, read on access.

        Raises:
            ShardError: a file that is damaged or of another batch.
        """
        path = self.path(first)
        try:
            if not path.is_file():  # opening a pipe would block
                raise ValueError("it is not a file")
            with numpy.load(path, allow_pickle=False) as arrays:
                yield arrays
        except Exception as error:  # any error of NumPy and zipfile, and those raised by the caller
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ShardError(f"the shard {path} is damaged ({reason}); delete it and resume the run") from error

    def check(self, array: numpy.ndarray, counts: tuple[int, ...], shape: tuple[int, ...]) -> None:
        """Raises ValueError for an array of another shape than [*counts, *shape], or of another dtype than the samples."""
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
        """The total number of evaluations of the network, or of potentials (`POTENTIAL_EVALUATIONS`)."""
        total = 0
        for first in self.firsts:
            with self.open(first) as arrays:
                evaluations = arrays[name]
                if evaluations.shape != () or evaluations.dtype.kind not in "iu" or evaluations < 0:
                    raise ValueError(f"its {name} are {evaluations.dtype} {list(evaluations.shape)}, not an integer")
                total += int(evaluations)
        return total

    def means(self) -> dict[str, list[list[float]]]:
        """Quantity -> [noise level, mean over all samples] per level, from the highest; {} where the run states none."""
        totals: dict[str, dict[float, numpy.ndarray]] = {}
        for first in self.firsts:
            with self.open(first) as arrays:
                for name in filter(lambda name: name.startswith(MEANS), arrays):
                    levels = totals.setdefault(name.removeprefix(MEANS), {})
                    for level, *mean in arrays[name].tolist():
                        levels[level] = levels.get(level, 0.0) + numpy.array(mean)
        return {
            quantity: [[level, mean[0] / mean[1]] for level, mean in sorted(levels.items(), reverse=True)]
            for quantity, levels in totals.items()
        }

    def read_samples(self, indices: Iterable[int]) -> dict[int, numpy.ndarray]:
        """Single samples by index."""
        found: dict[int, numpy.ndarray] = {}
        for first, members in self.group_by_batch(indices).items():
            samples = self.samples(first)
            found |= {index: samples[index - first] for index in members}
        return found

    def frames(self, indices: Iterable[int]) -> dict[int, numpy.ndarray]:
        """The frames [frames, ...] of samples by index; `indices` must be all samples with frames."""
        found: dict[int, numpy.ndarray] = {}
        count = None
        for first, members in self.group_by_batch(indices).items():
            with self.open(first) as arrays:
                frames = arrays["frames"]
                count = len(frames) if count is None else count
                if self.storage_spec is not None:
                    shape = self.storage_spec[1]
                    shape = shape if len(shape) > 1 else (min(2, *shape),)  # of vectors two coordinates
                    self.check(frames, (count, len(members)), shape)
                found |= {index: part for index, part in zip(members, numpy.moveaxis(frames, 1, 0))}
        return found

    def group_by_batch(self, indices: Iterable[int]) -> dict[int, list[int]]:
        """Ascending indices by the first index of their batch."""
        groups: dict[int, list[int]] = {}
        for index in sorted(indices):
            groups.setdefault(index // self.batch_size * self.batch_size, []).append(index)
        return groups

    def remove(self) -> None:
        """Removes every shard and the start file, and the folder if it is then empty."""
        for path in (*map(self.path, self.firsts), self.folder / START_FILE):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()


def write_npz(path: Path, arrays: Mapping[str, numpy.ndarray]) -> None:
    """Writes arrays by name as an .npz.

    Raises:
        WriteError: the disk is full, the folder is missing, ...
    """
    write_atomically(path, lambda temporary: numpy.savez(temporary, **arrays))  # type: ignore[arg-type]


def write_archive(path: Path, parts: Iterator[numpy.ndarray], labels: Sequence[int]) -> None:
    """Writes the same bytes as numpy.savez(path, samples, labels), with one part in memory at a time.

    Arguments:
        path: path of the archive.
        parts: the samples in parts along the first axis, all of one dtype and shape.
        labels: one per sample.

    Raises:
        ShardError: parts of different dtype or shape, or another number of samples than of labels.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            count = 0
            kind = None
            for part in parts:
                if kind is None:
                    kind = part.dtype, part.shape[1:]
                    header = numpy.lib.format.header_data_from_array_1_0(part[:0])
                    header["shape"] = (len(labels), *part.shape[1:])
                    numpy.lib.format.write_array_header_1_0(file, header)
                if kind != (part.dtype, part.shape[1:]):
                    raise ShardError(
                        f"the shards differ, {kind} and {part.dtype, part.shape[1:]}; delete them and resume the run"
                    )
                count += len(part)
                file.write(numpy.ascontiguousarray(part).data)
            if count != len(labels):
                raise ShardError(f"{count} samples for {len(labels)} labels")
        with archive.open("arr_1.npy", "w", force_zip64=True) as file:
            numpy.lib.format.write_array(file, numpy.asarray(labels, dtype=numpy.int64), allow_pickle=False)


def read_rows(path: Path, indices: Iterable[int]) -> numpy.ndarray:
    """Rows of the samples in an archive of `write_archive`, in ascending order of their indices; others are not read.

    Raises:
        ValueError: another kind of archive, or an index out of range.
    """
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("arr_0.npy").header_offset
    with open(path, "rb") as file:  # uncompressed: rows can be read without zipfile, which would read all bytes before
        file.seek(offset + 26)
        lengths = struct.unpack("<HH", file.read(4))  # of the name and of the extra field of the entry
        file.seek(sum(lengths), os.SEEK_CUR)
        numpy.lib.format.read_magic(file)
        shape, _, dtype = numpy.lib.format.read_array_header_1_0(file)
        start = file.tell()
        size = dtype.itemsize * math.prod(shape[1:])
        rows = []
        for index in sorted(indices):
            if not 0 <= index < shape[0]:
                raise ValueError(f"{path} has {shape[0]} samples, got index {index}")
            file.seek(start + index * size)
            rows.append(numpy.frombuffer(file.read(size), dtype).reshape(shape[1:]))
    return numpy.stack(rows)
