"""Uploads: the files, the model card, what the hub is asked for, and that no path of this machine leaves it."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from small_checkpoint import CONFIG, save

import diffguide
from diffguide.export.paths import shorten_paths
from diffguide.files.run_folders import WriteError, hash_file
from diffguide.files.safetensors import read_sealed

PRIVATE = "/home/ada/secret"


@pytest.fixture
def run(tmp_path):
    """A run folder whose records name private paths."""
    folder = tmp_path / "runs" / "v001"
    (folder / "checkpoints").mkdir(parents=True)
    config = CONFIG | {
        "output_root": f"{PRIVATE}/outputs", "seed": 3, "engine": {"precision": "32-true"},
        "guidance": {"_target_": "diffguide.guidance.contrast.ClassifierFree", "scale": 2.5},
        "guide": {"classifier": "~/secret/classifier"},
        "ancestry": {"checkpoint": f"{PRIVATE}/older.safetensors", "sha256": "1" * 64, "origin": {"family": "DiT"}},
    }  # fmt: skip
    data = {"sha256": "0" * 64, "count": 50, "path": f"{PRIVATE}/cats"}
    save(folder / "checkpoints", config, data=data, class_names=["/slash", "b", "c", "d"], validation_loss=0.25)
    return folder


def evaluation(folder: Path, sha256: str) -> Path:
    figures = {"fid": {"value": 12.345, "standard_error": 0.21, "n": 5000, "unit": "", "meaningful": True}}
    folder.mkdir()
    record = {
        "metric": "quality",
        "figures": figures,
        "seed": 7,
        "checkpoint": f"{PRIVATE}/x",
        "checkpoint_sha256": sha256,
    }
    (folder / "metrics.json").write_text(json.dumps(record))
    return folder


def test_figures_of_an_adapter_at_another_strength_are_refused(run, tmp_path):
    metrics = evaluation(tmp_path / "eval", hash_file(checkpoint(run)))
    record = json.loads((metrics / "metrics.json").read_text())
    (metrics / "metrics.json").write_text(json.dumps(record | {"adapter_scale": 0.5}))
    with pytest.raises(ValueError, match="adapter at another strength"):
        diffguide.push(run, "ada/points", "mit", metrics=[metrics], folder=tmp_path / "out")


def test_the_card_of_an_adapter_names_its_network(tmp_path):
    pytest.importorskip("peft")
    lora = {"_target_": "diffguide.backbones.lora.LoRA", "network": CONFIG["backbone"], "rank": 3, "targets": ["0"]}
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    save(tmp_path / "run/checkpoints", CONFIG | {"backbone": lora})
    diffguide.push(tmp_path / "run", "ada/points", "mit", folder=tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "| network | MLP, " in card and "| adapter | LoRA of rank 3, merged |" in card


def checkpoint(run: Path) -> Path:
    return next(file for file in (run / "checkpoints").glob("*.safetensors") if "optimizer" not in file.name)


def texts(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_files_name_no_private_path(run, tmp_path):
    metrics = evaluation(tmp_path / "eval", hash_file(checkpoint(run)))
    assert diffguide.push(run, "ada/points", "mit", metrics=[metrics], folder=tmp_path / "out") == str(tmp_path / "out")
    files = texts(tmp_path / "out")
    assert set(files) == {"README.md", "config.yaml", f"checkpoints/{checkpoint(run).name}"}
    assert not [name for name, content in files.items() if b"secret" in content or str(tmp_path).encode() in content]
    metadata = read_sealed(tmp_path / "out" / "checkpoints" / checkpoint(run).name)[1]
    assert metadata["data"]["path"] == "cats" and metadata["class_names"][0] == "/slash"
    assert yaml.safe_load(files["config.yaml"])["output_root"] == "outputs"


def test_the_files_load_as_a_run(run, tmp_path):
    diffguide.push(run, "ada/points", "mit", folder=tmp_path / "out")
    here, there = (diffguide.load(folder).state_dict() for folder in (run, tmp_path / "out"))
    assert here.keys() == there.keys() and all((here[name] == there[name]).all() for name in here)


def test_the_card_says_what_a_user_must_know(run, tmp_path):
    metrics = evaluation(run / "evaluation", hash_file(checkpoint(run)))
    diffguide.push(run, "ada/points", "cc-by-4.0", metrics=[metrics / "metrics.json"], folder=tmp_path / "out")
    _, header, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header) == {
        "license": "cc-by-4.0", "library_name": "diffguide", "tags": ["diffusion", "guidance", "diffguide"],
    }  # fmt: skip
    for words in (
        "| quality | fid | 12.35 | 0.21 | 5000 | 7 |", "| images seen | 7 |", "| seed | 3 |", "| held-out loss | 0.25 |",
        "`ClassifierFree` with scale 2.5", "scale 1 is off", "diffguide-sample checkpoint=ada/points",
        "| started from | family DiT, checkpoint older.safetensors, sha256 11",
        "50 examples or files", "4 classes: /slash, b, c, d", "MLP, ", "## Limits",
    ):  # fmt: skip
        assert words in text, words
    assert text.count("| quality |") == 1


def test_without_figures_the_card_says_so(run, tmp_path):
    diffguide.push(run, "ada/points", "mit", folder=tmp_path / "out")
    assert "None were measured" in (tmp_path / "out" / "README.md").read_text()


def test_the_upload_is_what_a_folder_gets(run, tmp_path, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, repo, private, exist_ok):
            calls.append(("create", repo, private, exist_ok))
            return f"https://hub.example/{repo}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append(("upload", repo_id, texts(Path(folder_path)), commit_message))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    diffguide.push(run, "ada/points", "mit", folder=tmp_path / "out")
    assert not calls
    address = diffguide.push(run, "ada/points", "mit", private=False, message="First")
    assert address == "https://hub.example/ada/points"
    assert calls == [("create", "ada/points", False, True), ("upload", "ada/points", texts(tmp_path / "out"), "First")]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"repo": "points"}, "repo must be owner/name"),
        ({"license": "The MIT License"}, "license must be an identifier"),
        ({"metrics": ["nowhere"]}, "metrics: nowhere is no metrics.json"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        diffguide.push(run, **{"repo": "ada/points", "license": "mit", "folder": tmp_path / "out"} | changes)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_figures_of_another_checkpoint_are_refused(run, tmp_path):
    metrics = evaluation(tmp_path / "eval", "f" * 64)
    with pytest.raises(ValueError, match="is of another checkpoint"):
        diffguide.push(run, "ada/points", "mit", metrics=[metrics], folder=tmp_path / "out")


def test_a_folder_is_not_overwritten(run, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(WriteError, match="nothing is overwritten"):
        diffguide.push(run, "ada/points", "mit", folder=tmp_path / "out")


def test_a_missing_hub_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'diffguide\[hub\]'"):
        diffguide.push(run, "ada/points", "mit")


@pytest.mark.parametrize(
    "value, expected",
    [
        ({"dataset": {"path": "data/private/cats/"}}, {"dataset": {"path": "cats"}}),
        ({"dataset": {"path": None}}, {"dataset": {"path": None}}),
        (
            {"a": ["/x/y", "~/z", r"C:\u\v", r"\\host\share", "../w", "file:///q/r"]},
            {"a": ["y", "z", "v", "share", "w", "r"]},
        ),
        ({"_target_": "diffguide.models.V", "n": 3, "url": "https://x.org/a"}, None),
        ({"class_names": ["/slash"], "name": "~tilde"}, None),
    ],
)
def test_paths_are_shortened(value, expected):
    assert shorten_paths(value) == (value if expected is None else expected)
