"""A foreign checkpoint gives one line, runs no code, never crashes, and takes no more memory than its size."""

import os
import pickle
import resource
import zipfile

import pytest
import safetensors.torch
import torch
from small_checkpoint import CONFIG, change, change_header, drop, put, save

import diffguide
from diffguide.checkpoints import store as checkpoints
from diffguide.checkpoints.store import CheckpointError
from diffguide.sample import main

EVIL = "diffguide_evil"  # a module that lies on the path, and leaves a trace when it is imported
WEIGHT = "model.backbone.linear_in.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return save(tmp_path_factory.mktemp("good"))


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The file that any of the attackers' code would make."""
    (tmp_path / "path").mkdir()
    path = tmp_path / "canary"
    code = f"""
from pathlib import Path
def run(*args, **kwargs):
    Path({str(path)!r}).touch()
class Net:
    __init__ = run
run()
"""
    (tmp_path / "path" / f"{EVIL}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.setenv("CANARY", str(path))
    return path


SHELL = {"_target_": "os.system", "command": "touch $CANARY"}
RUN = {"_target_": f"{EVIL}.run"}
MLP = CONFIG["backbone"]
NODES = {
    "a function": put("config.backbone", SHELL),
    "a module that runs when it is imported": put("config.backbone", {"_target_": f"{EVIL}.Net"}),
    "a built-in": put("config.backbone", {"_target_": "builtins.eval", "source": "open('canary', 'w')"}),
    "another package's class": put("config.backbone", {"_target_": "torch.nn.Linear", "in_features": 1}),
    "through an attribute": put("config.backbone", {"_target_": "diffguide.files.safetensors.torch.load", "f": "x"}),
    "through a module's module": put(
        "config.schedule", {"_target_": "diffguide.checkpoints.store.hashlib.new", "name": "md5"}
    ),
    "a function of ours": put("config.schedule", {"_target_": "diffguide.schedules.base.linear", "log_snr": 1.0}),
    "a constant of ours": put("config.schedule", {"_target_": "diffguide.files.safetensors.METADATA_KEY"}),
    "a module of ours": put("config.schedule", {"_target_": "diffguide.schedules"}),
    "another role": put("config.backbone", CONFIG["dataset"]),
    "a re-export": put("config.schedule", {"_target_": "diffguide.objectives.denoising.Schedule"}),
    "a package's name for a class": put("config.backbone._target_", "diffguide.backbones.MLP"),
    "a path in place of a name": put("config.schedule._target_", "diffguide./../../schedules.Cosine"),
    "dots": put("config.schedule._target_", "diffguide..schedules.curves.Cosine"),
    "one word": put("config.schedule._target_", "diffguide"),
    "an empty name": put("config.schedule._target_", ""),
    "the beginning of our name": put("config.schedule._target_", f"{EVIL}.Net"),
    "no such module": put("config.schedule._target_", "diffguide.nothing.Cosine"),
    "no such class": put("config.schedule._target_", "diffguide.schedules.curves.Nothing"),
    "the base itself": put("config.backbone", {"_target_": "diffguide.backbones.base.Backbone"}),
    "partial": put("config.schedule._partial_", True),
    "positional arguments": put("config.schedule._args_", [12, -10]),
    "any other key of Hydra's": put("config.schedule._recursive_", True),
    "interpolation": put("config.schedule.log_snr_max", "${oc.env:HOME}"),
    "interpolation elsewhere": put("config.training.images", "${oc.env:HOME}"),
    "interpolation in a key": put("config.x", {"${oc.env:HOME}": 1}),
    "a YAML tag": put("config.schedule.log_snr_max", "!!python/object/apply:os.system ['touch $CANARY']"),
    "a hydra key": put("config.hydra", {"callbacks": {"x": SHELL}}),
    "a defaults key": put("config.backbone.defaults", ["/hydra/launcher: basic"]),
    "nested": put("config.objective.weight", SHELL),
    "nested in a number's place": put("config.backbone.width", RUN),
    "nested in a list": put("config.backbone.layers", [RUN]),
    "nested in a nested list": put("config.objective.weight", [[RUN]]),
    "nested of another role": put("config.objective.weight", {"_target_": "diffguide.samplers.grids.UniformT"}),
    "nested that reads files": put("config.objective.levels", CONFIG["dataset"]),
    "given by position": put("config.objective.backbone", MLP),
    "no target": put("config.backbone", {"channels": 3}),
    "a target that is no text": put("config.backbone._target_", ["os.system"]),
    "no mapping": put("config.backbone", "os.system"),
    "an unknown argument": put("config.backbone.widht", 3),
    "a missing argument": drop("config.backbone.width"),
}
VALUES = {
    "an enormous width": put("config.backbone.width", 10**12),
    "a large width": put("config.backbone.width", 2**20),
    "a negative width": put("config.backbone.width", -8),
    "countless layers": put("config.backbone.layers", 10**9),
    "many layers": put("config.backbone.layers", 2**20),
    "a huge list": put("config.backbone.layers", list(range(10**5))),
    "true for a number": put("config.backbone.layers", True),
    "a text for a number": put("config.backbone.layers", "one"),
    "infinity for a number": put("config.backbone.layers", "inf"),
    "no number": put("config.schedule.log_snr_max", None),
    "ends the wrong way round": put("config.schedule.log_snr_max", -20.0),
    "no configuration": drop("config"),
    "a configuration that is a list": put("config", [CONFIG]),
    "no objective": drop("config.objective"),
    "no name": drop("config.name"),
    "a name that is a path": put("config.name", "../../x"),
    "no images": drop("images"),
    "negative images": put("images", -1),
    "true images": put("images", True),
    "images of a million digits": put("images", 10**4000),
    "class names that are a text": put("class_names", "0123"),
    "class names that are numbers": put("class_names", [0, 1, 2, 3]),
    "more names than classes": put("class_names", list("01234")),
    "no shape": put("shape", []),
    "a negative shape": put("shape", [-2]),
    "half a pixel": put("shape", [2.5]),
    "a gigantic shape": put("shape", [2, 10**5, 10**5]),
    "a shape whose size overflows": put("shape", [2**24] * 4),
    "a shape of many sides": put("shape", [2, 1, 1, 1, 1]),
    "another shape": put("shape", [3]),
    "images for a network of vectors": put("shape", [2, 8, 8]),
    "another format": put("format", 1),
    "a format that is a list": put("format", [2]),
}


def tensor(name: str, value: torch.Tensor):
    """An edit that replaces a tensor."""
    return lambda tensors, metadata: tensors.update({name: value})


TENSORS = {
    "NaN": tensor(f"ema.{WEIGHT}", torch.full((8, 6), float("nan"))),
    "infinity": tensor(f"ema.{WEIGHT}", torch.full((8, 6), float("inf"))),
    "whole numbers": tensor(f"ema.{WEIGHT}", torch.ones(8, 6, dtype=torch.int32)),
    "complex numbers": tensor(f"ema.{WEIGHT}", torch.ones(8, 6, dtype=torch.complex64)),
    "eight bits": tensor(f"ema.{WEIGHT}", torch.ones(8, 6).to(torch.float8_e4m3fn)),
    "another shape of a tensor": tensor(f"ema.{WEIGHT}", torch.ones(6, 8)),
    "an extra tensor": tensor("ema.extra", torch.ones(1)),
    "a tensor of neither set": tensor("extra", torch.ones(1)),
    "a missing tensor": lambda tensors, metadata: tensors.pop(f"ema.{WEIGHT}"),
    "no tensors": lambda tensors, metadata: tensors.clear(),
}


def text(edit):
    """What changes the JSON text below our key, unsealed."""

    def write(good, path, canary):
        def header(parts):
            parts["__metadata__"]["diffguide"] = edit(parts["__metadata__"]["diffguide"])
            return parts

        change_header(good, path, header)

    return write


def header(edit):
    """An edit that changes the header of safetensors."""
    return lambda good, path, canary: change_header(good, path, edit)


def raw(make):
    """An edit that writes other bytes."""
    return lambda good, path, canary: path.write_bytes(make(good.read_bytes()))


class Payload:
    """What runs a command where a pickle of it is read."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def overlap(parts):
    """Two tensors in one place."""
    names = [name for name in parts if name != "__metadata__"]
    parts[names[0]]["data_offsets"] = parts[names[1]]["data_offsets"]
    return parts


def retype(parts):
    """Numbers of the same size, read as whole ones."""
    parts[f"ema.{WEIGHT}"]["dtype"] = "I32"
    return parts


def zipped(good, path, canary):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(canary)))


FILES = {
    "empty": raw(lambda whole: b""),
    "a text": raw(lambda whole: b"weights\n" * 100),
    "half": raw(lambda whole: whole[: len(whole) // 2]),
    "more than written": raw(lambda whole: whole + b"\0"),
    "a header of 2^63 bytes": raw(lambda whole: (2**63).to_bytes(8, "little") + whole[8:]),
    "a header longer than the file": raw(lambda whole: (len(whole) * 2).to_bytes(8, "little") + whole[8:]),
    "a pickle": lambda good, path, canary: path.write_bytes(pickle.dumps(Payload(canary))),
    "a file of torch.save": lambda good, path, canary: torch.save({"x": Payload(canary)}, path),
    "a zip archive": zipped,
    "another program's safetensors": lambda good, path, canary: safetensors.torch.save_file({"x": torch.ones(1)}, path),
    "a folder": lambda good, path, canary: path.mkdir(),
    "a pipe": lambda good, path, canary: os.mkfifo(path),
    "a device": lambda good, path, canary: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda good, path, canary: path.symlink_to("nowhere"),
    "overlapping tensors": header(overlap),
    "another type of the same size": header(retype),
    "a header that is a list": header(lambda parts: [parts]),
    "metadata that is no text": header(lambda parts: parts | {"__metadata__": {"diffguide": 3}}),
    "text that is no JSON": text(lambda said: "{'format': 2}"),
    "text that is a list": text(lambda said: f"[{said}]"),
    "text that is a number": text(lambda said: "2"),
    "a deep text": text(lambda said: said[:-1] + ', "x": ' + "[" * 10**5 + "]" * 10**5 + "}"),
    "a key twice": text(lambda said: '{"format": 2, ' + said[1:]),
    "a number that is none": text(lambda said: said.replace("12.0", "NaN")),
    "five thousand digits": text(lambda said: said.replace("12.0", "9" * 5000)),
    "no checksum": text(lambda said: said[: said.index(', "sha256"')] + "}"),
    "another checksum": text(lambda said: said[:-4] + "0" * 2 + said[-2:]),
    "another setting": text(lambda said: said.replace("12.0", "11.0")),
    "the optimiser's file": lambda good, path, canary: path.symlink_to(good.with_suffix(".optimizer.safetensors")),
}
EDITS = NODES | VALUES | TENSORS
KINDS = [*EDITS, *FILES]


def make(kind: str, good, path, canary):
    """The hostile file of a kind."""
    if kind in EDITS:
        return change(good, path, EDITS[kind])
    FILES[kind](good, path, canary)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_file_is_one_line(good, tmp_path, canary, kind):
    path = make(kind, good, tmp_path / "hostile.safetensors", canary)
    with pytest.raises(CheckpointError) as caught:
        diffguide.load(path)
    message = str(caught.value)
    assert str(path) in message and message.isprintable() and len(message) < 700
    assert not canary.exists()


def test_the_canary_detects_foreign_code(canary):
    """The traps above would go off: the module, the class, the shell command and the pickle."""
    for fire in (
        lambda: __import__(EVIL).Net(),
        lambda: os.system(SHELL["command"]),
        lambda: pickle.loads(pickle.dumps(Payload(canary))),
    ):
        canary.unlink(missing_ok=True)
        fire()
        assert canary.exists()


def test_the_good_file_is_loaded(good):
    assert diffguide.load(good)(torch.zeros(1, 2), torch.tensor(0.5).double(), None).x_0.shape == (1, 2)


@pytest.mark.parametrize("kind", ["a function", "nested", "a large width", "a text", "a key twice", "NaN", "no name"])
def test_the_command_reports_a_hostile_file_in_one_line(good, tmp_path, canary, command, kind):
    path = make(kind, good, tmp_path / "hostile.safetensors", canary)
    done = command(main, f"checkpoint={path}", at=tmp_path)
    lines = [line for line in done.err.splitlines() if line]
    assert done.code == 1 and len(lines) == 1 and lines[0].startswith("diffguide-sample: checkpoint: ")
    assert done.out == "" and not canary.exists() and not (tmp_path / "outputs").exists()


def test_a_file_cannot_allocate_more_memory_than_its_tensors(good, tmp_path, canary):
    """4 GiB per matrix, a million layers, a billion numbers in an example: an error before the allocation."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for key, value in {
        "config.backbone.width": 2**15,
        "config.backbone.layers": 2**20,
        "shape": [2, 2**15, 2**15],
    }.items():
        with pytest.raises(CheckpointError):
            diffguide.load(change(good, tmp_path / "1.safetensors", put(key, value)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_names_are_printed_without_control_characters(tmp_path):
    names = ["cat", "\x1b[2Jdog", "é", "inf"]
    loaded = checkpoints.load(save(tmp_path, class_names=names))
    assert loaded.facts["class_names"] == ["cat", "\\x1b[2Jdog", "é", "inf"]
    assert str(CheckpointError("a\x1b[2J\nb" + "c" * 1000)).startswith("a\\x1b[2J b") and CheckpointError("x").args
