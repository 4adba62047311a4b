"""The smaller networks that a dry run suggests are conditioned as the network of the run."""

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from text_encoders import write_clip

from diffguide.backbones import UNet
from diffguide.cli import smaller_backbones as suggestions
from diffguide.conditions import ByteText, ClipText
from diffguide.conditions.encoders import TextEncoder
from diffguide.conditions.examples import ConditionedData
from diffguide.config.build import config_dir
from diffguide.datasets import Shapes
from diffguide.objectives import Denoising
from diffguide.schedules import Cosine

WORDS = ["dataset=shapes", "dataset.train=8", "dataset.validation=4", "dataset.test=4", "condition=text"]
OPTIONS = ["unet_joint", "mlp", "unet_lean_32", "edm_unet", "small_kl"]
TEXT = {"_target_": "diffguide.conditions.text.ByteText", "features": 8, "layers": 1, "heads": 2}


@pytest.fixture
def find(monkeypatch):
    """(conditioning, its node, classes) -> the names and conditionings of smaller networks, among some options."""

    def run(conditioning, node, classes=0):
        data = Shapes(train=8, validation=4, test=4)
        with torch.device("meta"):
            large = UNet(3, size=16, num_classes=classes, channels=256, attention=[8], conditioning=conditioning)
        objective = Denoising(large, Cosine())
        config = {
            "backbone": {"_target_": "diffguide.backbones.unet.UNet", "conditioning": node, "num_classes": classes},
            "objective": {"_target_": "diffguide.objectives.denoising.Denoising", "p_uncond": 0.0},
            "schedule": {"_target_": "diffguide.schedules.curves.Cosine"},
        }
        monkeypatch.setattr(suggestions, "task_overrides", lambda: [*WORDS, "backbone=unet_64"])
        with initialize_config_dir(config_dir(), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            monkeypatch.setattr(loader, "get_group_options", lambda group: OPTIONS)
            found = suggestions.smaller_backbones(objective, config, ConditionedData(data, objective.model))
            return {name: smaller.model.backbone for name, smaller in found}

    return run


def test_networks_of_texts_are_suggested_for_texts(find):
    found = find(ByteText(length=64, features=8, layers=1, heads=2), {**TEXT, "length": 64})
    assert [*found] == ["unet_lean_32"]
    assert isinstance(found["unet_lean_32"].conditioning, ByteText) and found["unet_lean_32"].num_classes == 0
    assert found["unet_lean_32"].conditioning.length == 64  # as in the run


def test_a_frozen_encoder_is_not_opened_again(find, tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "clip", length=64)
    text = ClipText(str(clip), length=64, cache=str(tmp_path / "cache"))
    node = {
        "_target_": "diffguide.conditions.frozen_text.ClipText", "path": str(clip), "length": 64,
        "cache": str(tmp_path / "cache"),
    }  # fmt: skip
    opened, whole = set(), TextEncoder.open
    monkeypatch.setattr(TextEncoder, "open", lambda self: opened.add(self) or whole(self))
    found = find(text, text.settle(node))
    assert [*found] == ["unet_lean_32"] and found["unet_lean_32"].conditioning.sha256 == text.sha256
    assert opened == {text.encoder}  # for the captions
