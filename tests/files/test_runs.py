"""Version folders have one owner; writes are atomic."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from diffguide.files.run_folders import WriteError, create_version_dir, write_atomically, write_together


def fill(folder):
    (folder / "config.yaml").write_text("seed: 0\n")


def test_versions_count_up_and_skip_gaps(tmp_path):
    assert create_version_dir(tmp_path / "a", fill).name == "v001"
    (tmp_path / "a" / "v007").mkdir()
    (tmp_path / "a" / "v9x").mkdir()
    assert create_version_dir(tmp_path / "a", fill).name == "v008"


def test_no_version_is_created_twice(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: create_version_dir(tmp_path, fill), range(64)))
    assert sorted(folder.name for folder in folders) == [f"v{i:03d}" for i in range(1, 65)]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_a_failed_write_of_several_files_leaves_the_old_ones(tmp_path):
    paths = [tmp_path / f"{k}.txt" for k in range(3)]
    write_together({path: partial(Path.write_text, data=path.stem) for path in paths})
    assert [path.read_text() for path in paths] == ["0", "1", "2"]

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(WriteError, match=r"cannot write .*/1\.txt: disk full"):
        write_together({paths[0]: partial(Path.write_text, data="new"), paths[1]: fail, paths[2]: fail})
    assert [path.read_text() for path in paths] == ["0", "1", "2"]
    assert len(list(tmp_path.iterdir())) == 3  # no temporary file is left
