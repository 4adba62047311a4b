"""Image folders: classes, splits, what is refused, in memory and streamed."""

import hashlib
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader

from diffguide.configuration import ConfigError, build, config_dir
from diffguide.datasets import ImageFolder, Split, Stream
from diffguide.datasets.folders import uniform


def folder_of(path: Path, **changes) -> ImageFolder:
    arguments = dict(
        path=str(path), channels=3, size=4, num_classes=0, resize=None, stretch=False, flip=False, validation=0.25,
        test=0.25, memory=1e9, workers=2,
    )  # fmt: skip
    return ImageFolder(**arguments | changes)


def paint(path: Path, number: int, size: tuple[int, int] = (4, 4)) -> None:
    """An image of one colour, which tells its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (number % 256, number // 256, 100)).save(path)


def numbers(split: Split | Stream) -> list[int]:
    """The numbers of a split's images, in order."""
    x = split.x if isinstance(split, Split) else [split[i][0] for i in range(len(split))]
    return [int(image[0, 0, 0]) + 256 * int(image[1, 0, 0]) for image in x]


def place(relative: str) -> float:
    """The hash of a path as the documentation states it."""
    return int(hashlib.sha256(unicodedata.normalize("NFC", relative).encode()).hexdigest(), 16) / 2**256


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
    everything = sum((numbers(split) for split in (data.train, data.validation, data.test)), [])
    assert sorted(everything) == sorted(100 * label + i for label in range(4) for i in range(15))


def test_without_classes_all_images_below_count(animals):
    paint(animals / "beside.png", 999)
    data = folder_of(animals, num_classes=0)
    assert data.class_names == () and sum(len(split.y) for split in (data.train, data.validation, data.test)) == 61
    assert set(data.train.y.tolist()) == set(data.validation.y.tolist()) == {-1}


def split_of(data: ImageFolder) -> dict[int, str]:
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {number: name for name, split in splits.items() for number in numbers(split)}


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


def refusal(path: Path, **changes) -> str:
    with pytest.raises(ValueError) as raised:
        folder_of(path, **changes)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_folders_without_images_are_refused(tmp_path):
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "a.txt").write_text("a")
    assert f"{tmp_path / 'none'}, which does not exist" in refusal(tmp_path / "none")
    assert f"{tmp_path / 'a.txt'}, which is a file" in refusal(tmp_path / "a.txt")
    for folder in (tmp_path / "empty folder", tmp_path):
        assert f"dataset.path is {folder}, which holds no image (png," in refusal(folder)


def test_a_folder_that_cannot_be_listed_is_named(animals, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("os.listdir", refuse)
    assert f"dataset.path is {animals}, where {animals} cannot be listed: Permission denied" in refusal(animals)


def test_other_classes_are_refused(animals, tmp_path):
    shown = "café au lait, dog, small, k=v, 日本"
    expected = f"dataset.num_classes is 10, but {animals} has 4 classes ({shown}): say dataset.num_classes=4"
    assert refusal(animals, num_classes=10) == expected
    paint(animals / "zebra.png", 1)
    assert "zebra.png lies beside the class folders: move it" in refusal(animals, num_classes=4)
    paint(tmp_path / "flat" / "1.png", 1)
    assert "no class folders with images, its 1 images" in refusal(tmp_path / "flat", num_classes=3)


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
    ({"test": float("nan")}, "dataset.test nan"), ({"memory": -1.0}, "dataset.memory is -1.0"),
])  # fmt: skip
def test_arguments_out_of_range_are_refused(changes, said, animals):
    assert said in refusal(animals, **changes)


def spoil(path: Path) -> None:
    """A JPEG whose header is whole and whose pixels are not."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:900])


def test_unreadable_files_are_left_out_and_named(tmp_path):
    for i in range(8):
        paint(tmp_path / f"{i}.png", i)
    first = next(f"{i}.jpg" for i in range(1000) if place(f"{i}.jpg") < 0.01)  # before all others in memory
    for name in ("cut.jpg", first):
        spoil(tmp_path / name)
    (tmp_path / "empty.gif").write_bytes(b"")
    (tmp_path / "text.png").write_text("text")
    data = folder_of(tmp_path)
    assert sorted(split_of(data)) == list(range(8))
    assert {str(path) for path, _ in data.unreadable} == {"cut.jpg", first, "empty.gif", "text.png"}
    line = data.sheet()[-1]
    assert line.startswith("unreadable: 4 files left out: empty.gif (no image that Pillow can identify), ")
    assert "image file is truncated" in line and line.endswith("), ...")
    streamed = folder_of(tmp_path, memory=0)
    assert {str(path) for path, _ in streamed.unreadable} == {"empty.gif", "text.png"}  # the headers say no more
    for i in range(3, 8):
        (tmp_path / f"{i}.png").write_bytes(b"")
    message = refusal(tmp_path)
    assert "most files are unusable; 9 of 12 files cannot be read: " in message and message.count("(") == 3


def test_a_class_whose_images_are_all_unreadable_is_refused(tmp_path):
    for i in range(8):
        paint(tmp_path / "good" / f"{i}.png", i)
    spoil(tmp_path / "bad" / "x.jpg")
    assert "class bad has no usable image; 1 of 9 files cannot be read: bad/x.jpg (" in refusal(tmp_path, num_classes=2)


@pytest.fixture
def varied(tmp_path) -> Path:
    """Two classes of images of several kinds and sizes."""
    rng = np.random.default_rng(1)
    for i in range(24):
        width, height = rng.integers(8, 40, 2)
        path = tmp_path / "data" / ("a" if i % 3 else "b") / f"{i}.{('png', 'jpg', 'webp')[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return tmp_path / "data"


def test_streams_give_what_memory_holds(varied):
    facts = dict(num_classes=2, size=6, resize=9, channels=1)
    held, streamed = folder_of(varied, **facts, memory=24 * 81), folder_of(varied, **facts, memory=24 * 81 - 1)
    assert held.shape == streamed.shape == (1, 6, 6)
    for split, stream in zip(
        (held.train, held.validation, held.test), (streamed.train, streamed.validation, streamed.test)
    ):
        assert isinstance(split, Split) and isinstance(stream, Stream) and torch.equal(split.y, stream.y)
        for i, (x, y) in enumerate(zip(*split)):
            assert torch.equal(stream[i][0], x) and stream[i][1] == int(y) and x.shape == (1, 9, 9)


def test_streams_go_through_worker_processes(varied):
    facts = dict(num_classes=2, size=6)
    held, streamed = folder_of(varied, **facts), folder_of(varied, **facts, memory=0)
    batches = list(DataLoader(streamed.train, batch_size=5, num_workers=2))
    x, y = (torch.cat(parts) for parts in zip(*batches))
    assert torch.equal(x, held.train.x) and torch.equal(y, held.train.y) and y.dtype == torch.long


def test_a_file_that_fails_later_is_replaced_and_told_once(tmp_path, capfd):
    for i in range(10):
        paint(tmp_path / f"{i}.png", i)
    data = folder_of(tmp_path, validation=0.0, test=0.0, memory=0)
    order = numbers(data.train)
    for number in (order[2], order[-1]):
        (tmp_path / f"{number}.png").write_bytes(b"gone bad")
    for _ in range(2):
        found = torch.cat([x for x, _ in DataLoader(data.train, batch_size=2, num_workers=2)])[:, 0, 0, 0].tolist()
        assert found == [*order[:2], order[3], *order[3:-1], order[0]]
    told = capfd.readouterr().err.splitlines()
    assert sorted(told) == sorted(
        f"{tmp_path / f'{number}.png'} is left out: no image that Pillow can identify"
        for number in (order[2], order[-1])
    )
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    with pytest.raises(RuntimeError, match="none of these 9 images can be read any more"):
        data.train[4]


def test_stretching_keeps_what_cutting_loses(tmp_path):
    stripes = np.repeat(np.array([[10, 60, 110, 160, 160, 110, 60, 10]], dtype=np.uint8), 4, axis=0)
    for i in range(2):
        Image.fromarray(stripes).save(tmp_path / f"{i}.png")
    for memory in (0, 1e9):
        cut, squeezed = (folder_of(tmp_path, channels=1, stretch=stretch, memory=memory) for stretch in (False, True))
        cut, squeezed = (next(iter(DataLoader(list(zip(*data.train)) if memory else data.train)))[0][0, 0, 0]
                         for data in (cut, squeezed))  # fmt: skip
        assert cut.tolist() == [110, 160, 160, 110]
        assert squeezed.float().sub(torch.tensor([35, 135, 135, 35])).abs().max() < 20


def test_the_sheet_says_what_is_there(tmp_path):
    for i, size in enumerate([(3, 5), (8, 6), (10, 10)]):
        Image.new("L", size, i).save(tmp_path / f"{i}.png")
    Image.new("RGB", (20, 7), (9, 9, 9)).save(tmp_path / "x.bmp")
    lines = folder_of(tmp_path, validation=0.0, test=0.0).sheet()
    assert lines == [
        "train: 3 examples", "validation: 1 examples", "test: 0 examples",
        "original sizes, smallest / median / largest: 3 x 5 / 10 x 10 / 20 x 7 pixels", "modes: 3 grey, 1 RGB",
        "stored: 3 x 4 x 4, 0.0 MB, in memory", "enlarged: 1 images have a side below 4 pixels",
        "all images are grey: dataset.channels=1 would do",
    ]  # fmt: skip
    streamed = folder_of(tmp_path, validation=0.0, test=0.0, memory=0).sheet()
    assert "stored: 3 x 4 x 4, 0.0 MB, read as needed by 2 workers (above dataset.memory)" in streamed
    assert "all images are grey: dataset.channels=1 would do" not in streamed  # the headers cannot tell it of RGB
    assert "all images are grey: dataset.channels=1 would do" not in folder_of(tmp_path, channels=1).sheet()
    paint(tmp_path / "colour.png", 200)
    for i in range(150):
        Image.new("L", (4, 4), i).save(tmp_path / f"more {i}.png")
    assert "all images are grey: dataset.channels=1 would do" not in folder_of(tmp_path).sheet()


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
