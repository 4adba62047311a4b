"""torchvision's data sets from small files in their formats, without a download."""

import hashlib
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision

from diffguide.datasets import CIFAR10, CIFAR100, MNIST, FashionMNIST

RNG = np.random.default_rng(0)
FACTS = {MNIST: (1, 28, 10), FashionMNIST: (1, 28, 10), CIFAR10: (3, 32, 10), CIFAR100: (3, 32, 100)}


def build(kind, root: Path, **changes):
    channels, size, num_classes = FACTS[kind]
    facts = dict(channels=channels, size=size, num_classes=num_classes)
    return kind(**dict(path=str(root), download=False, **facts, flip=False, validation=4) | changes)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise URLError("the network is down")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def write_idx(folder: Path) -> list[np.ndarray]:
    """Twelve training and five test images in LeCun's idx format."""
    folder.mkdir(parents=True)
    arrays = []
    for name, n in (("train", 12), ("t10k", 5)):
        x, y = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8), RNG.integers(0, 10, n, dtype=np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, n, 28, 28) + x.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + y.tobytes())
        arrays += [x[:, None], y]
    return arrays


def write_batches(kind, root: Path, monkeypatch) -> list[np.ndarray]:
    """Three training images per batch file and five test images in Krizhevsky's format, with checksums of their own."""
    known = getattr(torchvision.datasets, kind.__name__)
    folder = root / known.base_folder
    folder.mkdir(parents=True)
    key, classes = ("labels", 10) if kind is CIFAR10 else ("fine_labels", 100)

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    arrays = []
    for attribute, n in (("train_list", 3), ("test_list", 5)):
        xs, ys, sums = [], [], []
        for name, _ in getattr(known, attribute):
            n = 12 if name == "train" else n  # CIFAR-100 has one file
            x, y = RNG.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), RNG.integers(0, classes, n).tolist()
            sums.append([name, write(name, {"data": x.reshape(n, -1), key: y})])
            xs, ys = [*xs, x], [*ys, *y]
        monkeypatch.setattr(known, attribute, sums)
        arrays += [np.concatenate(xs), np.array(ys)]
    meta = {known.meta["key"]: [f"kind {i}" for i in range(classes)]}
    monkeypatch.setattr(known, "meta", known.meta | {"md5": write(known.meta["filename"], meta)})
    return arrays


def check(data, x, y, test_x, test_y):
    """The validation split is the last four training examples."""
    expected = [(x[:-4], y[:-4]), (x[-4:], y[-4:]), (test_x, test_y)]
    for split, (pixels, labels) in zip((data.train, data.validation, data.test), expected):
        assert split.x.dtype == torch.uint8 and split.y.dtype == torch.long and split.x.is_contiguous()
        np.testing.assert_array_equal(split.x.numpy(), pixels)
        np.testing.assert_array_equal(split.y.numpy(), labels)


@pytest.mark.parametrize("kind, first", [(MNIST, "0 - zero"), (FashionMNIST, "T-shirt/top")])
def test_mnist_is_read_from_its_idx_files(kind, first, tmp_path):
    arrays = write_idx(tmp_path / kind.__name__ / "raw")
    data = build(kind, tmp_path)
    check(data, *arrays)
    assert data.class_names[0] == first and len(data.class_names) == 10
    assert data.shape == (1, 28, 28) and not data.flip and build(kind, tmp_path, flip=True).flip


def test_the_validation_split_may_be_empty(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    data = build(MNIST, tmp_path, validation=0)
    assert [len(split.y) for split in (data.train, data.validation, data.test)] == [12, 0, 5]
    assert data.held_out_split == ("train", data.train)
    assert "held-out losses are computed on training examples" in data.summary()[3]


@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
def test_cifar_is_read_from_its_batches(kind, tmp_path, monkeypatch):
    arrays = write_batches(kind, tmp_path, monkeypatch)
    data = build(kind, tmp_path)
    check(data, *arrays)
    assert data.class_names[:2] == ("kind 0", "kind 1") and data.shape == (3, 32, 32)


def refusal(kind, root: Path, **changes) -> str:
    with pytest.raises(ValueError) as raised:
        build(kind, root, **changes)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("download, reason", [(False, "Dataset not found"), (True, "the network is down")])
@pytest.mark.parametrize("kind", list(FACTS))
def test_missing_files_are_reported_with_the_archives_and_their_folder(kind, download, reason, tmp_path):
    message = refusal(kind, tmp_path / "data", download=download)
    place = tmp_path / "data" / (f"{kind.__name__}/raw" if "MNIST" in kind.__name__ else "")
    archives = "the four *-ubyte.gz" if "MNIST" in kind.__name__ else f"cifar-{kind.__name__[5:]}-python.tar.gz"
    assert message.startswith(f"dataset.path is {tmp_path / 'data'}, where {kind.__name__} cannot be read (")
    assert reason in message and f"or put {archives} into {place}" in message


def test_existing_archives_are_unpacked_without_a_network(tmp_path, monkeypatch):
    """As the error message says."""
    import gzip

    arrays = write_idx(tmp_path / "MNIST" / "raw")
    sums = []
    for file in sorted((tmp_path / "MNIST" / "raw").iterdir()):
        packed = file.with_name(file.name + ".gz")
        packed.write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
        sums.append((packed.name, hashlib.md5(packed.read_bytes()).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", sums)
    check(build(MNIST, tmp_path, download=True), *arrays)


def test_damaged_files_and_invalid_folders_are_reported(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"")
    assert "MNIST cannot be read (" in refusal(MNIST, tmp_path)
    (tmp_path / "file").write_text("no folder")
    assert "Not a directory" in refusal(MNIST, tmp_path / "file", download=True)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"channels": 3}, "dataset.channels is 3, but MNIST has 1"),
        ({"size": 32}, "dataset.size is 32, but MNIST has 28"),
        ({"num_classes": 0}, "dataset.num_classes is 0, but MNIST has 10"),
        ({"validation": -1}, "dataset.validation is -1"),
        ({"validation": 12}, "dataset.validation is 12, but must be"),
    ],
)
def test_other_facts_are_refused(changes, message, tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    assert message in refusal(MNIST, tmp_path, **changes)


def test_importing_the_data_sets_imports_nothing_heavy():
    heavy = ["torchvision", "sklearn", "scipy", "matplotlib"]
    code = f"import sys, diffguide.checkpoints.store; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
