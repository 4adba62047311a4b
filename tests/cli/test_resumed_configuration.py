"""What resume reads from a run folder, and its errors; a foreign folder runs no code."""

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from short_run import RUN

from diffguide.checkpoints import store as checkpoints
from diffguide.train import main


def config_of(run: Path) -> dict:
    return OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))


NOT_RESUMED = {
    "another network": (
        ["backbone.dropout=0"],
        ": drop backbone.dropout=0\n",
    ),
    "another batch": (["training.batch_size=64"], "training.batch_size (32 -> 64)"),
    "another seed": (["seed=1"], "seed (0 -> 1)"),
    "another objective": (
        ["objective=eps"],
        "objective.parameterization (V -> Eps)",
    ),
    "another optimiser": (["training.optimizer.weight_decay=0.5"], "training.optimizer.weight_decay=0.01"),
    "a length that is no number": (["training.images=many"], "training.images must be a whole number"),
    "nothing left": (["training.images=288"], "set more training.images"),
    "a bare file": ([f"resume={RUN}/checkpoints/0000000288.safetensors"], "is no run folder such as"),
    "another name": (["name=other"], "name (digits -> other)"),
    "another root": (["output_root=elsewhere"], "output_root (outputs -> elsewhere)"),
    "a look first": (["dry_run=true"], "dry_run cannot be combined with resume"),
    "no optimiser": (["~training.optimizer"], "training.optimizer"),
    "trust in a number": (["trust=3"], "trust must be a list"),
    "trust in a text": (["trust=foo"], "trust must be a list"),
    "nowhere": (["resume=nowhere"], "no run at nowhere"),
}


@pytest.mark.parametrize("again", [["experiment=gmm2d"], ["first_stage=none"]])
def test_a_run_is_resumed_by_the_words_that_began_it(tmp_path, command, again):
    words = ["backbone.width=8", "backbone.layers=1", "training.batch_size=32", "sampler.steps=2"]
    run = command(main, "experiment=gmm2d", *words, "training.images=32", at=tmp_path).folder
    done = command(main, *again, *words, "training.images=64", f"resume={run}", at=tmp_path)
    assert done.code == 0 and checkpoints.find(tmp_path / run).name == "0000000064.safetensors", done.err


@pytest.mark.parametrize("arguments, message", NOT_RESUMED.values(), ids=NOT_RESUMED)
def test_resume_refuses_and_leaves_the_run_alone(unfinished, tmp_path, command, arguments, message):
    before = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    done = command(main, *([] if "resume" in arguments[-1][:6] else [f"resume={RUN}"]), *arguments, at=tmp_path)
    assert done.code == 1 and message in done.err and "Traceback" not in done.err, done.err
    assert {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()} == before


HOSTILE = {
    "a backbone of another package": ("backbone", {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}),
    "an engine": ("engine", {"_target_": "os.system", "command": "touch canary"}),
    "a sampler": ("sampler", {"_target_": "subprocess.run", "args": ["touch", "canary"]}),
    "a training": ("training", {"_target_": "os.system", "command": "touch canary"}),
    "an interpolation": ("name", "${oc.env:HOME}"),
    "an engine that is none": ("engine", 3),
    "a backbone that is a list": ("backbone", ["x"]),
    "a schedule that is null": ("schedule", None),
    "a huge seed": ("seed", 10**400),
    "a number as a key": (3, "x"),
    "a YAML tag": ("name", "!!python/object:os.system"),
    "a new key": ("hydra", {"run": {"dir": "elsewhere"}}),
}


@pytest.mark.parametrize("key, node", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_run_folder_runs_nothing(unfinished, tmp_path, command, key, node):
    config = OmegaConf.to_container(OmegaConf.load(unfinished / "config.yaml"))
    config[key] = node
    (unfinished / "config.yaml").write_text(json.dumps(config))
    done = command(main, f"resume={RUN}", at=tmp_path)
    assert done.code == 1 and "resume: " in done.err and "Traceback" not in done.err, done.err
    assert not (tmp_path / "canary").exists() and len(done.err.splitlines()) <= 6


def test_a_configuration_with_aliases_is_an_error(unfinished, tmp_path, command):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 12)]
    with open(unfinished / "config.yaml", "a") as file:
        file.write("\n".join(lines) + "\n")
    done = command(main, f"resume={RUN}", at=tmp_path)
    assert done.code == 1 and "it has aliases" in done.err and len(done.err.splitlines()) == 1


def test_a_resumed_run_keeps_its_label_dropout_under_another_guidance(unfinished, tmp_path, command):
    """p_uncond is fixed, so guidance=none only changes the sample grids."""
    done = command(main, f"resume={RUN}", "guidance=none", "training.images=320", at=tmp_path)
    assert done.code == 0, done.err
    config = OmegaConf.load(unfinished / "config.yaml")
    assert config.p_uncond == 0.1 and "ClassifierFree" not in config.guidance._target_


def test_an_optimiser_is_never_read_from_a_file(unfinished, tmp_path, command):
    config = OmegaConf.to_container(OmegaConf.load(unfinished / "config.yaml"))
    config["training"]["optimizer"] = {"_target_": "os.system", "_partial_": True, "command": "touch canary"}
    OmegaConf.save(OmegaConf.create(config), unfinished / "config.yaml")
    done = command(main, f"resume={RUN}", at=tmp_path)
    assert done.code == 1 and "training.optimizer" in done.err and not (tmp_path / "canary").exists()


@pytest.mark.parametrize("key", ["engine", "seed", "training", "name", "compile", "trust"])
def test_a_configuration_without_a_key_is_an_error(unfinished, tmp_path, command, key):
    config = config_of(unfinished)
    del config[key]
    OmegaConf.save(OmegaConf.create(config), unfinished / "config.yaml")
    done = command(main, f"resume={RUN}", at=tmp_path)
    assert done.code == 1 and "does not have the keys of this command" in done.err and len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["[" * 3000, "\xff\xfe", "a: &a [*a]", "x" * 2_000_000, "", "3", "a: !!python/object:x {}"]
)
def test_an_invalid_configuration_is_an_error(unfinished, tmp_path, command, text):
    (unfinished / "config.yaml").write_text(text, encoding="latin-1")
    done = command(main, f"resume={RUN}", at=tmp_path)
    assert done.code == 1 and "config.yaml" in done.err and "Traceback" not in done.err, done.err
    assert len(done.err.splitlines()) == 1 and len(done.err) < 700


def test_dry_run_is_not_read_from_a_file(unfinished, tmp_path, command):
    config = config_of(unfinished) | {"dry_run": True}
    OmegaConf.save(OmegaConf.create(config), unfinished / "config.yaml")
    done = command(main, f"resume={RUN}", at=tmp_path)
    assert done.code == 0 and checkpoints.find(unfinished).stem == "0000000320", done.err
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["train"]


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_bytes(b"\xff\xfe{}\n"), lambda path: (path.unlink(), path.mkdir())]
)
def test_invalid_lines_of_metrics_are_an_error_or_dropped(unfinished, tmp_path, command, spoil):
    spoil(unfinished / "metrics.jsonl")
    done = command(main, f"resume={RUN}", at=tmp_path)
    assert "Traceback" not in done.err and (done.code == 0 or "metrics.jsonl: Is a directory" in done.err)


def test_a_missing_optimiser_file_is_an_error(unfinished, tmp_path, command):
    (unfinished / "checkpoints/0000000288.optimizer.safetensors").unlink()
    done = command(main, f"resume={RUN}", at=tmp_path)
    assert done.code == 1 and "move outputs/train/digits/v001/checkpoints/0000000288.safetensors away" in done.err
    shutil.move(unfinished / "checkpoints/0000000288.safetensors", tmp_path)
    assert command(main, f"resume={RUN}", at=tmp_path).code == 0


@pytest.mark.parametrize("name", ["3", "2026", "1e3", "true", "n" * 200, "it's ü = 2, 3"])
def test_a_run_of_any_name_can_be_resumed(tmp_path, command, name):
    """The name as typed; a name that no checkpoint could be loaded with is an error before training."""
    short = [
        "backbone.channels=4",
        "backbone.multipliers=[1]",
        "backbone.attention=[]",
        "backbone.blocks=1",
        "sampler.steps=2",
        "training.batch_size=8",
        "training.images=8",
    ]
    done = command(main, *short, f"name={name}", at=tmp_path)
    assert done.code == 0 and done.folder.parent.name == name, done.err
    again = command(main, f"resume={done.folder}", "training.images=16", at=tmp_path)
    assert again.code == 0, again.err


def test_an_experiment_with_its_own_root_key_can_be_resumed(tmp_path, command):
    """The key is ce_weight; the experiment need not be repeated."""
    short = ["dataset.train=100", "backbone.width=8", "training.batch_size=32", "training.images=32", "sampler.steps=2"]
    done = command(main, "experiment=cdm_gmm2d", *short, at=tmp_path)
    assert done.code == 0, done.err
    again = command(main, f"resume={done.folder}", "training.images=64", at=tmp_path)
    assert again.code == 0 and config_of(tmp_path / done.folder)["ce_weight"] == 1.0, again.err


@pytest.mark.parametrize("name", ["!!x", "n" * 230])
def test_a_name_that_could_not_be_loaded_is_not_trained(tmp_path, command, name):
    done = command(main, f"name={name}", at=tmp_path)
    assert done.code == 1 and len(done.err.splitlines()) == 1 and not (tmp_path / "outputs").exists(), done.err
