"""Image folders in memory and as streams, unreadable files, and the data sheet."""

from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import folder_of, numbers, paint, place, refusal, split_of
from PIL import Image
from torch.utils.data import DataLoader

from diffguide.datasets import Split, Stream


def spoil(path: Path) -> None:
    """A JPEG whose header is whole and whose pixels are not."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:900])


def test_unreadable_files_are_skipped_and_named(tmp_path):
    for i in range(8):
        paint(tmp_path / f"{i}.png", i)
    first = "first.jpg"
    for name in ("cut.jpg", first):
        spoil(tmp_path / name)
    with open(tmp_path / first, "ab") as file:  # until it is the first in memory
        while place(tmp_path / first) > min(place(path) for path in tmp_path.glob("?.png")):
            file.write(b"\0")
            file.flush()
    (tmp_path / "empty.gif").write_bytes(b"")
    (tmp_path / "text.png").write_text("text")
    data = folder_of(tmp_path)
    assert sorted(split_of(data)) == list(range(8))
    assert {str(path) for path, _ in data.unreadable} == {"cut.jpg", first, "empty.gif", "text.png"}
    line = data.summary()[-1]
    assert line.startswith("unreadable: 4 files skipped: ") and "text.png (no image that Pillow can identify), " in line
    assert "image file is truncated" in line and line.endswith("), ...")
    streamed = folder_of(tmp_path, memory=0)
    assert {str(path) for path, _ in streamed.unreadable} == {"empty.gif", "text.png"}  # those with an invalid header
    for i in range(3, 8):
        (tmp_path / f"{i}.png").write_bytes(b"")
    message = refusal(tmp_path)
    assert "most files cannot be read; 9 of 12 files cannot be read: " in message and message.count("(") == 3


def test_a_class_whose_images_are_all_unreadable_is_refused(tmp_path):
    for i in range(8):
        paint(tmp_path / "good" / f"{i}.png", i)
    spoil(tmp_path / "bad" / "x.jpg")
    message = refusal(tmp_path, num_classes=2)
    assert "class bad has no readable image" in message and "1 of 9 files cannot be read: bad/x.jpg (" in message


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


def test_a_stream_has_the_examples_of_the_data_in_memory(varied):
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


def test_a_file_that_fails_later_is_replaced_and_reported_once(tmp_path, capfd):
    for i in range(10):
        paint(tmp_path / f"{i}.png", i)
    data = folder_of(tmp_path, validation=1e-9, test=0.0, memory=0)
    order = numbers(data.train)
    for number in (order[2], order[-1]):
        (tmp_path / f"{number}.png").write_bytes(b"gone bad")
    for _ in range(2):
        found = torch.cat([x for x, _ in DataLoader(data.train, batch_size=2, num_workers=2)])[:, 0, 0, 0].tolist()
        assert found == [*order[:2], order[3], *order[3:-1], order[0]]
    reported = capfd.readouterr().err.splitlines()
    assert sorted(reported) == sorted(
        f"{tmp_path / f'{number}.png'} is skipped: no image that Pillow can identify"
        for number in (order[2], order[-1])
    )
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    with pytest.raises(RuntimeError, match="none of the 9 images can be read"):
        data.train[4]


def test_stretching_keeps_the_borders_that_cropping_removes(tmp_path):
    stripes = np.repeat(np.array([[10, 60, 110, 160, 160, 110, 60, 10]], dtype=np.uint8), 4, axis=0)
    for i in range(2):
        Image.fromarray(stripes).save(tmp_path / f"{i}.png")
    for memory in (0, 1e9):
        cut, squeezed = (folder_of(tmp_path, channels=1, stretch=stretch, memory=memory) for stretch in (False, True))
        cut, squeezed = (next(iter(DataLoader(list(zip(*data.train)) if memory else data.train)))[0][0, 0, 0]
                         for data in (cut, squeezed))  # fmt: skip
        assert cut.tolist() == [110, 160, 160, 110]
        assert squeezed.float().sub(torch.tensor([35, 135, 135, 35])).abs().max() < 20


def test_wide_files_share_one_white_in_memory_and_streamed(tmp_path):
    """Integers of 32 bits up to 255 are not black; the sheet names the white level."""
    u = np.arange(16, dtype=np.int32).reshape(4, 4)
    for i in range(4):
        Image.fromarray(u * (5 + 4 * i)).save(tmp_path / f"{i}.tif")
    Image.fromarray((u / 15).astype(np.float32)).save(tmp_path / "share.tif")
    for memory in (0, 1e9):
        data = folder_of(tmp_path, channels=1, validation=0.0, test=0.0, memory=memory)
        found = sorted(x[0].flatten().tolist() for x, _ in (zip(*data.train) if memory else data.train))
        assert found == sorted([(u * factor).flatten().tolist() for factor in (5, 9, 13, 17, 17)])
        sheet = "\n".join(data.summary())
        assert "grey of more than 8 bits: 4 images, white is 255" in sheet
        assert "floating-point grey: 1 images, white is 1" in sheet


def test_the_data_sheet_describes_the_files(tmp_path):
    for i, size in enumerate([(3, 5), (8, 6), (10, 10)]):
        Image.new("L", size, i).save(tmp_path / f"{i}.png")
    Image.new("RGB", (20, 7), (9, 9, 9)).save(tmp_path / "x.bmp")
    lines = folder_of(tmp_path, validation=1e-9, test=0.0).summary()
    assert lines == [
        "train: 3 examples", "validation: 1 examples", "test: 0 examples",
        "original sizes, smallest / median / largest: 3 x 5 / 10 x 10 / 20 x 7 pixels", "modes: 3 grey, 1 RGB",
        "stored: 3 x 4 x 4, 0.0 MB, in memory", "enlarged: 1 images have a side below 4 pixels",
        "all images are grey: set dataset.channels=1", "copies: no two files are identical",
    ]  # fmt: skip
    streamed = folder_of(tmp_path, validation=0.0, test=0.0, memory=0).summary()
    assert "stored: 3 x 4 x 4, 0.0 MB, read as needed by 2 workers (above dataset.memory)" in streamed
    assert "all images are grey: set dataset.channels=1" not in streamed  # unknown from the headers of RGB images
    assert "all images are grey: set dataset.channels=1" not in folder_of(tmp_path, channels=1).summary()
    paint(tmp_path / "colour.png", 200)
    for i in range(150):
        Image.new("L", (4, 4), i).save(tmp_path / f"more {i}.png")
    assert "all images are grey: set dataset.channels=1" not in folder_of(tmp_path).summary()
