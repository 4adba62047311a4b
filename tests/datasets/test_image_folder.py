"""Classes, splits and rejected arguments of image folders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import folder_of, numbers, paint, path_place, place, refusal, split_of
from omegaconf import OmegaConf

from diffguide.config.build import ConfigError, build, config_dir
from diffguide.datasets import Split
from diffguide.datasets.splits import content_hash, group_copies, path_hash, unit_hash

NAMES = ["café au lait", "dog, small", "k=v", "日本"]


@pytest.fixture
def animals(tmp_path) -> Path:
    """Four classes of 15 images in folders with difficult names, two levels deep."""
    for label, name in enumerate(NAMES):
        for i in range(15):
            paint(tmp_path / "my = pictures, 1" / name / f"part {i % 2}" / f"{i} é.png", 100 * label + i)
    return tmp_path / "my = pictures, 1"


def test_a_class_is_a_first_level_folder(animals):
    data = folder_of(animals, num_classes=4)
    assert data.class_names == tuple(NAMES) and data.shape == (3, 4, 4)
    for split in (data.train, data.validation, data.test):
        assert split.x.dtype == torch.uint8 and split.y.dtype == torch.long
        assert [number // 100 for number in numbers(split)] == split.y.tolist()
    assert sorted(split_of(data)) == [100 * label + i for label in range(4) for i in range(15)]


def test_without_classes_all_images_below_the_folder_are_used(animals):
    paint(animals / "beside.png", 999)
    data = folder_of(animals, num_classes=0)
    assert data.class_names == () and sum(len(split.y) for split in (data.train, data.validation, data.test)) == 61
    assert set(data.train.y.tolist()) == set(data.validation.y.tolist()) == {-1}


def expected_split(u: float, validation: float, test: float) -> str:
    return "validation" if u < validation else "test" if u >= 1 - test else "train"


@pytest.mark.parametrize("split_by", ["contents", "path"])
def test_the_split_of_a_file_depends_on_that_file_alone(tmp_path, split_by):
    def u(i: int) -> float:
        return path_place(f"{i}.png") if split_by == "path" else place(tmp_path / f"{i}.png")

    for i in range(40):
        paint(tmp_path / f"{i}.png", i)
    before = split_of(folder_of(tmp_path, split_by=split_by))
    assert before == {i: expected_split(u(i), 0.25, 0.25) for i in range(40)}
    for i in range(40, 90):
        paint(tmp_path / ("deep" if i % 2 else "") / f"{i}.png", i)
    after = split_of(folder_of(tmp_path, split_by=split_by))
    assert len(after) == 90 and {number: after[number] for number in before} == before
    assert sorted(set(after.values())) == ["test", "train", "validation"]
    other = split_of(folder_of(tmp_path, validation=0.1, split_by=split_by))
    assert [i for i in other if other[i] == "test"] == [i for i in after if after[i] == "test"]


def test_the_hash_is_uniform_and_the_same_for_both_forms_of_an_accent():
    u = np.array([unit_hash(path_hash(f"cat/{i}.png")) for i in range(4000)])
    assert u.min() >= 0 and u.max() < 1
    assert np.abs(np.histogram(u, bins=8, range=(0, 1))[0] - 500).max() < 4.5 * np.sqrt(4000 * 7 / 64)
    accents = [unit_hash(path_hash(name)) for name in ("caf\u00e9.png", "cafe\u0301.png")]
    assert accents[0] == accents[1] == pytest.approx(path_place("café.png"), abs=1e-14)


def test_copies_are_in_one_split(tmp_path):
    """Also in another class and under another name; with split_by=path some are in several splits."""
    for i in range(60):
        for name in (f"a/{i}.png", f"a/copy {i}.png", f"b/{i}.png"):
            paint(tmp_path / name, i)
    for memory in (0, 1e9):
        data = folder_of(tmp_path, num_classes=2, memory=memory)
        splits = [numbers(split) for split in (data.train, data.validation, data.test)]
        assert all(splits) and sum(map(len, splits)) == 180
        assert not set(splits[0]) & set(splits[1]) and not (set(splits[0]) | set(splits[1])) & set(splits[2])
        line = "copies: 180 files in 60 groups of identical files; 0 groups across splits, 60 groups across classes ("
        assert any(text.startswith(line) for text in data.summary())
    old = folder_of(tmp_path, num_classes=2, split_by="path")
    places = [path_place(name) for i in range(60) for name in (f"a/{i}.png", f"a/copy {i}.png", f"b/{i}.png")]
    sides = [expected_split(u, 0.25, 0.25) for u in places]
    parted = sum(len(set(sides[3 * i : 3 * i + 3])) > 1 for i in range(60))
    leaked = sum(side == "validation" and "train" in sides[k // 3 * 3 : k // 3 * 3 + 3] for k, side in enumerate(sides))
    lines = [line for line in old.summary() if line.startswith("copies: ")]
    assert f"; {parted} groups across splits (" in lines[0] and parted > 20
    seen = f"copies: {leaked} of {sides.count('validation')} validation images are identical to training images"
    assert lines[1] == seen and leaked > 10


def test_large_files_are_hashed_in_blocks_and_compared_whole(tmp_path):
    """64 blocks of 16 KiB; a comparison of files finds differences between the blocks."""
    content = np.random.default_rng(0).integers(0, 256, 3 * 2**20, dtype=np.uint8)
    for name, at in (("a", None), ("b", None), ("between", 20_000), ("end", -1)):
        changed = content.copy()
        if at is not None:
            changed[at] ^= 1
        (tmp_path / name).write_bytes(changed.tobytes())
    hashes = {name: content_hash(tmp_path / name) for name in ("a", "b", "between", "end")}
    assert hashes["a"] == hashes["b"] == hashes["between"] != hashes["end"]
    assert group_copies(hashes, tmp_path) == [["a", "b"]]


def test_the_validation_split_is_empty_at_validation_0(tmp_path):
    for i in range(6):
        paint(tmp_path / f"{i}.png", i)
    for memory in (0, 1e9):
        data = folder_of(tmp_path, validation=0.0, test=0.0, memory=memory)
        assert [len(split.y) for split in (data.train, data.validation, data.test)] == [6, 0, 0]
        assert data.held_out_split == ("train", data.train)
        assert "the validation split is empty: held-out losses are computed on training examples" in data.summary()
        one = folder_of(tmp_path, validation=1e-9, test=0.0, memory=memory)  # a share above 0 is at least one image
        assert numbers(one.validation) == [min(range(6), key=lambda i: place(tmp_path / f"{i}.png"))]
        old = folder_of(tmp_path, validation=0.0, test=0.0, memory=memory, split_by="path")
        assert numbers(old.validation) == [min(range(6), key=lambda i: path_place(f"{i}.png"))]


def test_every_class_has_a_training_image(tmp_path):
    for k in range(8):
        paint(tmp_path / f"single {k}" / "a.png", k)
    data = folder_of(tmp_path, num_classes=8, validation=0.5, test=0.2)
    assert sorted(numbers(data.train)) == list(range(8)) and not len(data.validation.y) and not len(data.test.y)
    for i in range(20):
        paint(tmp_path / "many" / f"{i}.png", 100 + i)
    data = folder_of(tmp_path, num_classes=9, validation=0.5, test=0.2)
    assert set(range(8)) < set(numbers(data.train)) and len(data.validation.y) > 3
    many = [100 + i for i in range(20) if place(tmp_path / "many" / f"{i}.png") < 0.5]
    assert sorted(numbers(data.validation)) == many
    # among those that leave their class a training image
    least = folder_of(tmp_path, num_classes=9, validation=1e-9, test=0.0)
    smallest = min(range(20), key=lambda i: place(tmp_path / "many" / f"{i}.png"))
    assert numbers(least.validation) == [100 + smallest]
    paint(tmp_path / "one" / "a.png", 1)
    assert numbers(folder_of(tmp_path / "one").train) == [1]


def test_class_folders_that_are_integers_are_in_numerical_order(tmp_path):
    for k in range(1, 13):
        paint(tmp_path / "all" / str(k) / "a.png", k)
    new, old = (folder_of(tmp_path / "all", num_classes=12, class_order=order) for order in ("numbers", "names"))
    assert new.class_names == tuple(map(str, range(1, 13)))
    assert old.class_names == ("1", "10", "11", "12", *map(str, range(2, 10)))
    for data in (new, old):
        assert [int(data.class_names[label]) for label in data.train.y.tolist()] == numbers(data.train)
    for name, number in (("10", 1), ("9", 2), ("-1", 3), ("007", 4)):
        paint(tmp_path / "odd" / name / "a.png", number)
    assert folder_of(tmp_path / "odd", num_classes=4).class_names == ("-1", "007", "9", "10")
    paint(tmp_path / "odd" / "x" / "a.png", 5)
    assert folder_of(tmp_path / "odd", num_classes=5).class_names == ("-1", "007", "10", "9", "x")


def test_hidden_files_and_loops_of_links_are_skipped_and_counted(tmp_path):
    for name in ("a.png", ".hidden.png", ".cache/deep/b.png", "notes.txt.d/c.PNG"):
        paint(tmp_path / "x" / name, len(name))
    for name in ("notes.txt", "e.heic", "f.HEIC", ".DS_Store", "README"):
        (tmp_path / "x" / name).write_text("no image")
    (tmp_path / "x" / "loop").symlink_to(tmp_path / "x")
    paint(tmp_path / "elsewhere" / "d.png", 77)
    (tmp_path / "x" / "link").symlink_to(tmp_path / "elsewhere")
    data = folder_of(tmp_path / "x")
    assert sorted(number for number in split_of(data)) == [5, 17, 77]
    expected = (
        "not read: 3 hidden, 2 of them images (.cache/deep/b.png, .hidden.png, ...); 2 .heic (e.heic, f.HEIC); "
        "1 .txt (notes.txt); 1 links back to a folder above (loop); 1 no ending (README)"
    )
    assert data.summary()[-1] == data.warnings()[-1] == expected
    fewer = folder_of(tmp_path / "x", suffixes=[".PNG", ".gif"])
    assert split_of(fewer) == split_of(data)
    paint(tmp_path / "x" / "more.gif", 0)
    assert "1 .gif (more.gif)" in folder_of(tmp_path / "x", suffixes=[".png"]).summary()[-1]


def test_folders_without_images_are_refused(tmp_path, monkeypatch):
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "a.txt").write_text("a")
    assert f"{tmp_path / 'none'}, which does not exist" in refusal(tmp_path / "none")
    assert f"{tmp_path / 'a.txt'}, which is a file" in refusal(tmp_path / "a.txt")
    for folder in (tmp_path / "empty folder", tmp_path):
        assert f"dataset.path is {folder}, which has no image" in refusal(folder)
    assert "but 1 .txt; " in refusal(tmp_path)

    def deny(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("os.listdir", deny)
    assert f"where {tmp_path} cannot be listed: Permission denied" in refusal(tmp_path)


def test_other_classes_are_refused(animals, tmp_path):
    message = refusal(animals, num_classes=10)
    assert f"{animals} has 4 class folders (café au lait, dog, small, k=v, 日本)" in message
    assert message.startswith("dataset.num_classes is 10") and message.endswith("set dataset.num_classes=4")
    paint(animals / "zebra.png", 1)
    assert "zebra.png is not in a class folder" in refusal(animals, num_classes=4)
    paint(tmp_path / "flat" / "1.png", 1)
    assert "no class folders: its 1 images" in refusal(tmp_path / "flat", num_classes=3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"channels": 4}, "dataset.channels is 4"),
        ({"size": 0}, "dataset.size must be"),
        ({"size": 2365}, "dataset.size is 2365, but must be at most 2364"),
        ({"size": 4097, "channels": 1}, "dataset.size is 4097, but must be at most 4096"),
        ({"workers": -1}, "dataset.workers must be"),
        ({"num_classes": -2}, "dataset.num_classes must be"),
        ({"resize": 3}, "dataset.resize is 3"),
        ({"resize": 2**14 + 1}, "dataset.resize is 16385, but must be at most 16384"),
        ({"validation": -0.1}, "dataset.validation and dataset.test"),
        ({"validation": 0.6, "test": 0.4}, "sum to less than 1"),
        ({"test": float("nan")}, "got 0.25 and nan"),
        ({"memory": -1.0}, "dataset.memory must be"),
        ({"class_order": "size"}, "dataset.class_order is size"),
        ({"split_by": "name"}, "dataset.split_by is name"),
        ({"suffixes": ["png"]}, "dataset.suffixes has png"),
        ({"suffixes": ["png"]}, "write it with the dot"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, message, animals):
    assert message in refusal(animals, **changes)


def test_the_yaml_file_builds_it(animals):
    config = OmegaConf.create({"dataset": OmegaConf.load(Path(config_dir()) / "dataset/image_folder.yaml")})
    with pytest.raises(ConfigError, match="dataset.path must be given"):
        build(config.dataset, "dataset")
    config.dataset.path = str(animals)
    with pytest.raises(ConfigError, match="dataset.num_classes must be given"):
        build(config.dataset, "dataset")
    config.dataset.num_classes = 4
    data = build(config.dataset, "dataset")
    assert data.shape == (3, 64, 64) and data.flip and data.workers == 2 and isinstance(data.train, Split)
