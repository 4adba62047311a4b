"""The tests' own way to compose gives what Hydra gives."""

import quick_composing
from hydra import compose, initialize_config_dir
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf

from diffguide.config.build import config_dir

LINES = {
    "an option inside a recipe": ("train", "experiment=cdm_gmm2d", "guidance/rule=plain", "training.images=3"),
    "added and deleted": ("train", "+more.key=[1,2]", "~training.optimizer.betas"),
    "another command": ("sample", "checkpoint=a", "sampler=ddim", "sampler.steps=7"),
    "refused": ("train", "guidance=cfg", "guidance.scales=3"),
}


def compose_all() -> list[tuple[str, str]]:
    found = []
    with initialize_config_dir(config_dir(), version_base="1.3"):
        for name, *overrides in LINES.values():
            try:
                composed = compose(name, overrides, return_hydra_config=True)
                assert OmegaConf.is_struct(composed)
                found.append((OmegaConf.to_yaml(composed), str(composed.hydra.runtime.choices)))
            except Exception as error:
                found.append((str(error), str(error.__cause__)))
    return found


def test_configurations_are_those_of_hydra(monkeypatch):
    first, again = compose_all(), compose_all()
    assert len(set(first)) == len(LINES)
    with monkeypatch.context() as patch:
        patch.setattr(OmegaConf, "load", quick_composing.load.__defaults__[0])
        patch.setattr(config_loader_impl, "create_defaults_list", quick_composing.create_defaults_list.__defaults__[0])
        patch.setattr(
            ConfigLoaderImpl, "_compose_config_from_defaults_list", quick_composing.merge_defaults.__defaults__[0]
        )
        expected = compose_all()
    assert first == expected and again == expected
