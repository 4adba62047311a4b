"""Image folders: classes, splits, what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import folder_of, numbers, paint, place, refusal, split_of
from omegaconf import OmegaConf

from diffguide.configuration import ConfigError, build, config_dir
from diffguide.datasets import Split
from diffguide.datasets.folders import uniform

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


def test_without_classes_all_images_below_count(animals):
    paint(animals / "beside.png", 999)
    data = folder_of(animals, num_classes=0)
    assert data.class_names == () and sum(len(split.y) for split in (data.train, data.validation, data.test)) == 61
    assert set(data.train.y.tolist()) == set(data.validation.y.tolist()) == {-1}


def expected_split(u: float, validation: float, test: float) -> str:
    return "validation" if u < validation else "test" if u >= 1 - test else "train"


def test_splits_are_decided_by_the_path_alone(tmp_path):
    for i in range(40):
        paint(tmp_path / f"{i}.png", i)
    before = split_of(folder_of(tmp_path))
    assert before == {i: expected_split(place(f"{i}.png"), 0.25, 0.25) for i in range(40)}
    for i in range(40, 90):
        paint(tmp_path / ("deep" if i % 2 else "") / f"{i}.png", i)
    after = split_of(folder_of(tmp_path))
    assert len(after) == 90 and {number: after[number] for number in before} == before
    assert sorted(set(after.values())) == ["test", "train", "validation"]
    other = split_of(folder_of(tmp_path, validation=0.1))
    assert [i for i in other if other[i] == "test"] == [i for i in after if after[i] == "test"]


def test_the_hash_is_uniform_and_the_same_for_both_forms_of_an_accent():
    u = np.array([uniform(f"cat/{i}.png") for i in range(4000)])
    assert u.min() >= 0 and u.max() < 1
    assert np.abs(np.histogram(u, bins=8, range=(0, 1))[0] - 500).max() < 4.5 * np.sqrt(4000 * 7 / 64)
    assert uniform("caf\u00e9.png") == uniform("cafe\u0301.png") == pytest.approx(place("café.png"), abs=1e-14)


def test_at_least_one_image_validates(tmp_path):
    for i in range(6):
        paint(tmp_path / f"{i}.png", i)
    for memory in (0, 1e9):
        data = folder_of(tmp_path, validation=0.0, test=0.0, memory=memory)
        assert numbers(data.validation) == [min(range(6), key=lambda i: place(f"{i}.png"))]
        assert len(data.train.y) == 5 and len(data.test.y) == 0


def test_hidden_files_and_loops_of_links_are_skipped(tmp_path):
    for name in ("a.png", ".hidden.png", ".cache/b.png", "notes.txt.d/c.PNG"):
        paint(tmp_path / "x" / name, len(name))
    (tmp_path / "x" / "notes.txt").write_text("no image")
    (tmp_path / "x" / "loop").symlink_to(tmp_path / "x")
    paint(tmp_path / "elsewhere" / "d.png", 77)
    (tmp_path / "x" / "link").symlink_to(tmp_path / "elsewhere")
    data = folder_of(tmp_path / "x", validation=0.0, test=0.0)
    assert sorted(numbers(data.train) + numbers(data.validation)) == [5, 17, 77]


def test_folders_without_images_are_refused(tmp_path, monkeypatch):
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "a.txt").write_text("a")
    assert f"{tmp_path / 'none'}, which does not exist" in refusal(tmp_path / "none")
    assert f"{tmp_path / 'a.txt'}, which is a file" in refusal(tmp_path / "a.txt")
    for folder in (tmp_path / "empty folder", tmp_path):
        assert f"dataset.path is {folder}, which holds no image (png," in refusal(folder)

    def deny(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("os.listdir", deny)
    assert f"where {tmp_path} cannot be listed: Permission denied" in refusal(tmp_path)


def test_other_classes_are_refused(animals, tmp_path):
    shown = "café au lait, dog, small, k=v, 日本"
    expected = f"dataset.num_classes is 10, but {animals} has 4 classes ({shown}): say dataset.num_classes=4"
    assert refusal(animals, num_classes=10) == expected
    paint(animals / "zebra.png", 1)
    assert "zebra.png lies beside the class folders: move it" in refusal(animals, num_classes=4)
    paint(tmp_path / "flat" / "1.png", 1)
    assert "no class folders with images, its images (1) lie" in refusal(tmp_path / "flat", num_classes=3)


def test_too_few_images_are_refused(tmp_path):
    paint(tmp_path / "one" / "a.png", 1)
    assert "no image is left to train on (1 are usable" in refusal(tmp_path / "one")
    inside = next(f"b/{i}.png" for i in range(100) if place(f"b/{i}.png") < 0.25)
    for name in (inside, *(f"a/{i}.png" for i in range(9))):
        paint(tmp_path / "two" / name, 1)
    assert "no image of class b falls into the training split" in refusal(tmp_path / "two", num_classes=2)


@pytest.mark.parametrize("changes, said", [
    ({"channels": 4}, "dataset.channels is 4"), ({"size": 0}, "dataset.size is 0"), ({"workers": -1}, "dataset.workers is -1"),
    ({"num_classes": -2}, "dataset.num_classes is -2"), ({"resize": 3}, "dataset.resize is 3, but must be at least"),
    ({"validation": -0.1}, "dataset.validation is -0.1"), ({"validation": 0.6, "test": 0.4}, "sum to less than 1"),
    ({"size": 2365}, "dataset.size is 2365, but must be at most 2364"),
    ({"size": 4097, "channels": 1}, "dataset.size is 4097, but must be at most 4096"),
    ({"resize": 2**14 + 1}, "dataset.resize is 16385, but must be at most 16384"),
    ({"test": float("nan")}, "dataset.test nan"), ({"memory": -1.0}, "dataset.memory is -1.0"),
])  # fmt: skip
def test_arguments_out_of_range_are_refused(changes, said, animals):
    assert said in refusal(animals, **changes)


def test_the_yaml_file_builds_it(animals):
    config = OmegaConf.create({"dataset": OmegaConf.load(Path(config_dir()) / "dataset/image_folder.yaml")})
    with pytest.raises(ConfigError, match="dataset.path must be given .a text.: it has no default, say dataset.path="):
        build(config, "dataset")
    config.dataset.path = str(animals)
    with pytest.raises(ConfigError, match="dataset.num_classes must be given .a whole number."):
        build(config, "dataset")
    config.dataset.num_classes = 4
    data = build(config, "dataset")
    assert data.shape == (3, 64, 64) and data.flip and data.workers == 2 and isinstance(data.train, Split)
