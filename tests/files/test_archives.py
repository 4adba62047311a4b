"""Sealed files: they are read as written, and every change is detected."""

import json
import random

import pytest
import torch
from small_checkpoint import change, save

import diffguide
from diffguide.checkpoints.store import CheckpointError
from diffguide.files import safetensors as archives


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return save(tmp_path_factory.mktemp("good"))


HEADER = {"header bits": 90, "data bits": 60, "truncated": 60, "header size": 20}
SEALED = {"type": 15, "missing": 15, "extra": 15, "renamed": 15, "format": 10}


def mutate(rng: random.Random, kind: str, whole: bytes) -> bytes:
    """The bytes of a file after a disk error or an incomplete copy."""
    length = 8 + int.from_bytes(whole[:8], "little")
    if kind == "truncated":
        return whole[: rng.randrange(len(whole))]
    if kind == "header size":
        return rng.choice([rng.randrange(2**64), rng.randrange(len(whole) * 2)]).to_bytes(8, "little") + whole[8:]
    changed = bytearray(whole)
    place = rng.randrange(8, length) if kind == "header bits" else rng.randrange(length, len(whole))
    changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def tamper(rng: random.Random, kind: str, tensors: dict, metadata: dict) -> None:
    """A change with a valid seal, as by an attacker or another version of this program."""
    name = rng.choice([name for name in sorted(tensors) if name.startswith("ema.")])
    if kind == "type":
        tensors[name] = tensors[name].to(
            rng.choice([torch.int32, torch.int64, torch.bool, torch.uint8, torch.complex64])
        )
    elif kind == "missing":
        del tensors[name]
    elif kind == "extra":
        tensors[f"ema.{rng.randrange(100)}"] = torch.ones(rng.randrange(4))
    elif kind == "renamed":
        tensors[name + "_"] = tensors.pop(name)
    else:
        metadata["format"] = rng.choice([0, 1, 3, -2, "2", None, 2.5])


@pytest.mark.parametrize("kind", [*HEADER, *SEALED])
def test_mutations_are_detected(good, tmp_path, kind):
    rng, path, whole = random.Random(kind), tmp_path / "1.safetensors", good.read_bytes()
    for _ in range({**HEADER, **SEALED}[kind]):
        if kind in HEADER:
            path.write_bytes(mutate(rng, kind, whole))
            assert path.read_bytes() != whole
        else:
            change(good, path, lambda tensors, metadata: tamper(rng, kind, tensors, metadata))
        with pytest.raises(CheckpointError, match=str(path)):
            diffguide.load(path)


def test_a_sealed_file_is_read_as_written(tmp_path):
    """The seal depends on name, dtype, shape and bytes of every tensor, and on the text with its infinities."""
    tensors = {
        "a": torch.tensor(3.0),
        "b": torch.ones(2, 3, dtype=torch.bfloat16),
        "c": torch.zeros(0, dtype=torch.bool),
    }
    archives.write_sealed(tmp_path / "1", tensors, {"x": float("inf"), "names": ("é", "inf")})
    back, metadata = archives.read_sealed(tmp_path / "1")
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert metadata["x"] == float("inf") and metadata["format"] == archives.FORMAT_VERSION
    plain = json.loads(json.dumps({"format": 2, "x": "inf", "names": ["é", "inf"]}))
    seals = {
        archives.compute_digest(change, plain)
        for change in (
            tensors,
            tensors | {"a": torch.tensor([3.0])},
            tensors | {"a": torch.tensor(3)},
            tensors | {"a": torch.tensor(3.5)},
            tensors | {"b": torch.ones(3, 2, dtype=torch.bfloat16)},
            {**tensors, "d": torch.zeros(0)},
        )
    }
    assert len(seals) == 6
