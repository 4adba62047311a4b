"""diffguide-convert RUN FOLDER to=...: what it writes, and what it refuses."""

import json

import pytest
from safetensors.torch import load_file
from small_checkpoint import CONFIG, save

import diffguide
from diffguide.convert import main as convert


@pytest.fixture
def at(tmp_path):
    """A folder with a run."""
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    save(tmp_path / "run/checkpoints", CONFIG | {"output_root": str(tmp_path)})
    return tmp_path


@pytest.mark.parametrize("weights", ["ema", "objective"])
def test_a_run_is_written_as_tensors(command, at, weights):
    done = command(convert, "run", "exported", "to=safetensors", f"to.weights={weights}", at=at)
    assert done.code == 0 and done.out == "exported\n"
    assert {file.name for file in (at / "exported").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    model, held = diffguide.load(at / "run", weights=weights).backbone, load_file(at / "exported/model.safetensors")
    assert all((held[name] == value).all() for name, value in model.state_dict().items())
    record = json.loads((at / "exported/config.json").read_text())
    assert record["trained_by"]["weights"] == weights and record["configuration"]["backbone"] == CONFIG["backbone"]
    assert str(at) not in (at / "exported/config.json").read_text()


@pytest.mark.parametrize(
    "words, message",
    [
        (["run", "run", "to=safetensors"], "target run exists, and nothing is overwritten"),
        (["run", "", "to=safetensors"], "target must be given: diffguide-convert SOURCE TARGET to="),
        (["", "exported", "to=safetensors"], "source must be given"),
        (["run", "exported", "third/path", "to=safetensors"], "source= or target="),
        (["nowhere", "exported", "to=safetensors"], "source: no checkpoint at nowhere"),
        (["run", "exported", "to=tensorrt"], "there is no option to=tensorrt"),
        (["run", "exported", "to=onnx", "to.opset=9"], "to: opset must be"),
        (["run", "exported", "to=safetensors", "to.weights=last"], "weights must be ema"),
        (["run", "exported", "to=safetensors", "name=other"], "name has no effect with to="),
        (
            ["run", "exported", "to=safetensors", "null_class=3"],
            "null_class has no effect on a checkpoint of diffguide",
        ),
        (["run", "exported", "architecture=dit", "null_class=3"], "null_class has no effect with architecture="),
        (["run", "exported", "to=diffusers"], "this one is a MLP: to=torch_export, onnx and safetensors take it"),
        (["run", "missing/deep/exported", "to=diffusers"], "to: to=diffusers takes networks of diffusers"),
    ],
)
def test_mistakes_are_one_line(command, at, words, message):
    before = {file for file in at.rglob("*") if file.name != "missing" and file.name != "deep"}
    done = command(convert, *words, at=at)
    assert done.code == 1 and message in done.err and done.err.count("\n") == 1 and not done.out, done.err
    assert {file for file in at.rglob("*") if file.name not in ("missing", "deep")} == before
