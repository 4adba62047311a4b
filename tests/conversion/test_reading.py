"""Files of published weights: what is read of them, that nothing in them runs, and that a mistake is one line."""

import pickle
import random
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from diffguide.conversion.reading import read_tensors
from diffguide.conversion.weights import ConversionError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
HELD: list[str] = []  # what code in a file has done


class Code:
    """Runs when a pickle of it is read."""

    def __reduce__(self):
        return HELD.append, ("ran",)


def same(found: dict, wanted: dict) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("content, part", [
    (STATE, ""), ({"model": STATE}, "model"), ({"state_dict": STATE, "epoch": 3}, "state_dict"),
    ({"model": {}, "ema": STATE, "opt": {"lr": 1.0}}, "ema"), ({"state": 1, "model": {"ema": STATE}}, "model.ema"),
])  # fmt: skip
def test_the_averaged_weights_of_a_file_are_taken(tmp_path, content, part):
    torch.save(content, tmp_path / "x.pt")
    found, named = read_tensors(tmp_path / "x.pt")
    assert same(found, STATE) and named == part


def test_old_files_and_safetensors_are_read(tmp_path):
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(STATE, tmp_path / "x.safetensors")
    assert same(read_tensors(tmp_path / "old.pt")[0], STATE) and same(
        read_tensors(tmp_path / "x.safetensors")[0], STATE
    )


def test_a_file_is_mapped_into_memory_and_read_without_code(tmp_path, monkeypatch):
    """torch's own options, so that tensors take no memory before they are used."""
    torch.save(STATE, tmp_path / "x.pt")
    load, asked = torch.load, []
    monkeypatch.setattr(torch, "load", lambda path, **options: asked.append(options) or load(path, **options))
    read_tensors(tmp_path / "x.pt")
    assert asked == [{"weights_only": True, "map_location": "cpu", "mmap": True}]


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": Code()}))


def write_archive(path: Path) -> None:
    """An archive of torch.save whose pickle is another."""
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, pickle.dumps(Code(), protocol=2) if name.endswith("data.pkl") else content)


def write_half_of_an_old_file(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-40])


HOSTILE = {
    "half of an old file": (write_half_of_an_old_file, "is no file of torch.save, or is damaged"),
    "a pickle with code": (write_pickle, "holds code or objects besides tensors"),
    "code in an archive": (write_archive, "holds code or objects besides tensors"),
    "an object": (
        lambda path: torch.save({"ema": STATE, "args": Namespace(lr=1)}, path),
        "safetensors.torch.save_file",
    ),
    "a module": (lambda path: torch.save(torch.nn.Linear(2, 2), path), "holds code or objects besides tensors"),
    "a text": (lambda path: path.write_text("<html>not found</html>"), "is no file of torch.save"),
    "nothing": (lambda path: path.write_bytes(b""), "is no file of torch.save"),
    "numbers": (lambda path: torch.save({"lr": 1.0, "steps": [1, 2]}, path), "has no state dict"),
    "a list": (lambda path: torch.save([torch.ones(2)], path), "has no state dict"),
    "an empty mapping": (lambda path: torch.save({}, path), "has no state dict"),
    "a folder": (Path.mkdir, "is a folder, and the weights are one file"),
    "no file": (lambda path: None, "there is no file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_else_is_read_and_no_code_runs(tmp_path, name):
    write, message = HOSTILE[name]
    path = tmp_path / "x.pt"
    write(path)
    with pytest.raises(ConversionError) as error:
        read_tensors(path)
    assert message in str(error.value) and "\n" not in str(error.value) and HELD == []


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_are_refused_or_whole(tmp_path, suffix):
    """Bytes cut off or changed: an error of one line, or tensors. Never another exception, never code."""
    whole = tmp_path / f"whole{suffix}"
    torch.save(STATE, whole) if suffix == ".pt" else safetensors.torch.save_file(STATE, whole)
    good, rng = whole.read_bytes(), random.Random(0)
    for number in range(150):
        content = bytearray(good[: rng.randrange(len(good))] if number % 2 else good)
        for _ in range(0 if number % 2 else rng.randrange(1, 6)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(content)
        try:
            found, _ = read_tensors(path)
            assert all(isinstance(value, torch.Tensor) for value in found.values())
        except ConversionError as error:
            assert "\n" not in str(error) and len(str(error)) < 800
    assert HELD == []
