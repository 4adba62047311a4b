"""Shards and the merged archive: the bytes of NumPy, with one batch in memory."""

import tracemalloc
import zipfile

import numpy
import pytest

from diffguide.files.shards import START_FILE, ShardError, Shards, read_rows, write_archive

KINDS = {
    "grey": numpy.random.default_rng(0).integers(0, 256, (23, 8, 8, 1)).astype(numpy.uint8),
    "colour": numpy.random.default_rng(0).integers(0, 256, (23, 5, 7, 3)).astype(numpy.uint8),
    "vectors": numpy.random.default_rng(0).normal(size=(23, 2)).astype(numpy.float32),
}


@pytest.mark.parametrize("x", KINDS.values(), ids=KINDS)
def test_the_archive_has_the_bytes_of_numpy_savez(tmp_path, x):
    labels = [k % 3 - 1 for k in range(23)]
    shards = Shards(tmp_path, 23, 5)
    for first in shards.firsts:
        shards.write(first, x[first : first + 5], 7, None)
    write_archive(tmp_path / "own.npz", map(shards.samples, shards.firsts), labels)
    numpy.savez(tmp_path / "numpys.npz", x, numpy.asarray(labels, dtype=numpy.int64))
    assert (tmp_path / "own.npz").read_bytes() == (tmp_path / "numpys.npz").read_bytes()
    assert numpy.array_equal(read_rows(tmp_path / "own.npz", [22, 0, 7]), x[[0, 7, 22]])
    assert shards.evaluations() == 5 * 7
    picked = shards.read_samples([22, 3, 5])
    assert list(picked) == [3, 5, 22] and all(numpy.array_equal(picked[index], x[index]) for index in picked)


def test_merging_holds_one_shard_in_memory(tmp_path):
    """64 MB in shards of 256 kB, with a peak of a few of them; reading rows of the archive needs none."""
    shards = Shards(tmp_path, 64 * 256, 64)
    for first in shards.firsts:
        shards.write(first, numpy.full((64, 32, 32, 4), first // 64, dtype=numpy.uint8), 0, None)
    tracemalloc.start()
    write_archive(tmp_path / "all.npz", map(shards.samples, shards.firsts), [0] * shards.n)
    rows = read_rows(tmp_path / "all.npz", [0, 64 * 200, 64 * 256 - 1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "all.npz").stat().st_size > 64 * 2**20 and peak < 4 * 2**20
    assert rows[:, 0, 0, 0].tolist() == [0, 200, 255]


def test_batches_without_shard_are_missing(tmp_path):
    shards = Shards(tmp_path, 23, 5)
    assert shards.missing_batches() == [0, 5, 10, 15, 20]
    assert [shards.count(first) for first in shards.firsts] == [5, 5, 5, 5, 3]
    shards.write(10, numpy.zeros((5, 2)), 0, None)
    (tmp_path / ".0000000015.77.npz").write_bytes(b"half")
    assert shards.missing_batches() == [0, 5, 15, 20]


def test_means_per_level_are_those_of_all_batches(tmp_path):
    shards = Shards(tmp_path, 10, 5)
    assert Shards(tmp_path, 0, 5).means() == {}
    shards.write(0, numpy.zeros((5, 2)), 0, None, 0, {"acceptance": {0.5: [3.0, 5], 2.0: [1.0, 5]}})
    shards.write(5, numpy.zeros((5, 2)), 0, None, 0, {"acceptance": {0.5: [4.0, 5], 2.0: [2.5, 5]}})
    assert shards.means() == {"acceptance": [[2.0, 0.35], [0.5, 0.7]]}


def test_frames_are_read_by_sample(tmp_path):
    shards, frames = Shards(tmp_path, 10, 5), numpy.arange(24).reshape(4, 3, 2)
    shards.write(0, numpy.zeros((5, 2)), 0, frames[:, :2])  # of samples 1 and 4
    shards.write(5, numpy.zeros((5, 2)), 0, frames[:, 2:])  # of sample 8
    found = shards.frames([8, 1, 4])
    assert {index: part[0].tolist() for index, part in found.items()} == {1: [0, 1], 4: [2, 3], 8: [4, 5]}


def test_shards_of_another_dtype_or_shape_are_refused(tmp_path):
    """Frames of images have the shape of the images, frames of vectors two coordinates; all have equally many frames."""
    images = Shards(tmp_path / "x", 4, 2, ("uint8", (5, 7, 3)))
    vectors = Shards(tmp_path / "y", 4, 2, ("float32", (3,)))
    for folder in (images.folder, vectors.folder):
        folder.mkdir()
    x, frames = numpy.zeros((2, 5, 7, 3), numpy.uint8), numpy.zeros((6, 1, 5, 7, 3), numpy.uint8)
    y, points = numpy.zeros((2, 3), numpy.float32), numpy.zeros((6, 2, 2), numpy.float32)
    images.write(0, x, 1, frames)
    vectors.write(0, y, 1, points)
    assert images.samples(0).shape == x.shape and list(images.frames([1])) == [1]
    assert vectors.samples(0).shape == y.shape and list(vectors.frames([0, 1])) == [0, 1]
    for wrong in (x.astype(float), x[:, :4], x[..., :1], y):
        images.write(2, wrong, 1, None)
        with pytest.raises(ShardError, match=r"0000000002\.npz .* instead of uint8 \[2, 5, 7, 3\]"):
            images.samples(2)
    for wrong in (frames[:5], frames[..., :1], frames.astype(float), numpy.repeat(frames, 2, axis=1), frames[0]):
        images.write(2, x, 1, wrong)
        with pytest.raises(ShardError, match=r"instead of uint8 \[6, 1, 5, 7, 3\]"):
            images.frames([1, 2])
    vectors.write(2, y, 1, numpy.zeros((6, 2, 3), numpy.float32))
    with pytest.raises(ShardError, match=r"float32 \[6, 2, 3\] instead of float32 \[6, 2, 2\]"):
        vectors.frames([0, 1, 2, 3])


def test_removing_shards_keeps_other_files(tmp_path):
    (tmp_path / "shards").mkdir()
    shards = Shards(tmp_path / "shards", 10, 5)
    (tmp_path / "shards/notes.txt").write_text("mine")
    (tmp_path / "shards" / START_FILE).write_text("{}")
    shards.write(5, numpy.zeros((5, 2)), 0, None)
    shards.remove()
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["notes.txt"]
    (tmp_path / "shards/notes.txt").unlink()
    shards.remove()
    assert not (tmp_path / "shards").exists()


def test_a_shard_with_a_pickle_is_refused(tmp_path):
    shards = Shards(tmp_path, 1, 1)
    numpy.savez(shards.path(0), samples=numpy.array([print]), evaluations=1)
    with pytest.raises(ShardError, match=r"0000000000\.npz is damaged.*delete it"):
        shards.samples(0)
    with zipfile.ZipFile(tmp_path / "0000000000.npz") as archive:
        assert "samples.npy" in archive.namelist()
