"""Every YAML file is one constructor call with every argument written out."""

import inspect
from importlib import import_module
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from diffguide.configuration import config_dir

FOLDER = Path(config_dir())
INJECTED = {"objective": ["backbone", "schedule"], "guidance": ["denoiser"]}  # handed over by position
NO_COMPONENTS = {"label_dropout", "experiment"}
COMPONENTS = sorted(path for path in FOLDER.rglob("*/*.yaml") if path.relative_to(FOLDER).parts[0] not in NO_COMPONENTS)


def nodes(node, role: str):
    """(role, node) for a mapping with a _target_ and for those below it."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield role, node
        for key, value in node.items():
            yield from nodes(value, key)


def target(name: str):
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def check(role: str, node: dict) -> None:
    constructor = target(node["_target_"])
    parameters = [name for name in inspect.signature(constructor).parameters if name not in INJECTED.get(role, [])]
    written = {key for key in node if not key.startswith("_")}
    nested = {"grid"} if role == "sampler" else set()  # comes from the nested group's file
    if not node.get("_partial_"):
        assert written | nested == set(parameters), node["_target_"]
    assert f"{constructor.__module__}.{constructor.__qualname__}" == node["_target_"] or node.get("_partial_")


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_file_is_a_constructor(path):
    config = OmegaConf.to_container(OmegaConf.load(path))
    role = "grid" if path.parent.name == "grid" else path.parent.name
    for name, node in nodes({key: value for key, value in config.items() if key != "defaults"}, role):
        check(name, node)


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_key_has_a_comment(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    bare = [line for line in lines if ":" in line and not line.rstrip().endswith(":")]
    assert [line for line in bare if "#" not in line and "_target_" not in line and "- grid" not in line] == []


def test_training_node_is_a_constructor():
    config = OmegaConf.to_container(OmegaConf.load(FOLDER / "train.yaml"))
    for role, node in nodes(config["training"], "training"):
        check(role, node)


def test_every_group_is_tested():
    groups = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    assert groups - NO_COMPONENTS == {path.relative_to(FOLDER).parts[0] for path in COMPONENTS}
