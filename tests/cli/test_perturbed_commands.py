"""guidance=pag, seg and slg on the command line."""

import copy
import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from perturbed_networks import attentive, denoiser, network
from small_checkpoint import CONFIG, FACTS

from diffguide.checkpoints import store as checkpoints
from diffguide.checkpoints.allowlist import construct
from diffguide.config.build import ConfigError, build, config_dir
from diffguide.guidance import PAG, SEG, SLG
from diffguide.sample import main
from diffguide.train import main as train

FILES = {"pag": (PAG, []), "seg": (SEG, []), "slg": (SLG, ["guidance.layers=[3]"])}  # and what must be said beside
every_file = pytest.mark.parametrize("name, kind, said", [(name, *row) for name, row in FILES.items()], ids=FILES)
UNET = {
    "_target_": "diffguide.backbones.unet.UNet", "in_channels": 1, "out_features": None, "num_classes": 4, "size": 8,
    "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "head_channels": 8, "dropout": 0.0,
    "noise_conditioned": True, "condition_features": 0, "double_differentiable": False, "checkpointing": False,
    "channels_last": False,
}  # fmt: skip


def composed(*overrides: str):
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return compose("sample", ["oracle=gmm2d", *overrides])


@every_file
def test_a_file_builds_its_class_and_takes_lists_of_layers(name, kind, said):
    """Builds its class, needs nothing of training, and takes lists of layers."""
    model = denoiser(network())
    guided = build(composed(f"guidance={name}", "guidance/rule=apg", *said).guidance, "guidance", model)
    assert type(guided) is kind and guided.scale == 2.0 and len(guided.perturbation.layers) == (1 if said else 4)
    assert not get_class(composed(f"guidance={name}").guidance._target_).needs_null
    guided = build(composed(f"guidance={name}", "guidance.layers=[0,2]").guidance, "guidance", model)
    assert guided.perturbation.layers == (0, 2)
    for wrong, sentence in (("1", "guidance.layers must be a list"), ("[1.5]", "guidance.layers must be a list"),
                            ("[20]", r"layers must be some of the .* got \[20\]")):  # fmt: skip
        with pytest.raises(ConfigError, match=sentence):
            build(composed(f"guidance={name}", f"guidance.layers={wrong}").guidance, "guidance", model)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A U-Net of 8 by 8 pixels whose parameters are all drawn."""
    folder = tmp_path_factory.mktemp("images")
    config = CONFIG | {"backbone": UNET, "dataset": CONFIG["dataset"] | {"channels": 1, "size": 8}}
    backbone, schedule = construct(UNET, "backbone", ()), construct(config["schedule"], "schedule", ())
    objective = attentive(construct(config["objective"], "objective", (), backbone, schedule))
    optimizer, sums = torch.optim.AdamW(objective.parameters()), {"loss": torch.tensor(3.0), "count": torch.tensor(4.0)}
    training = checkpoints.TrainingState(FACTS | {"shape": [1, 8, 8]}, sums, {"scale": 2.0})
    checkpoints.save(folder, objective, copy.deepcopy(objective), optimizer, config, training)
    return folder


def run(command, checkpoint, at, *said: str) -> tuple[np.ndarray, int]:
    """The samples, and the evaluations of the network for each."""
    done = command(main, f"checkpoint={checkpoint}", "n=4", "sampler=ddim", "sampler.steps=2", *said, at=at)
    assert done.code == 0, done.err
    header = json.loads((at / done.folder / "manifest.jsonl").read_text().splitlines()[0])
    with np.load(at / done.folder / "samples.npz") as arrays:
        return arrays["arr_0"].astype(int), header["network_evaluations"]


def test_a_trained_model_is_guided(checkpoint, tmp_path, command):
    """Scale 1 is the model itself by as many evaluations, scale 30 another one by twice as many."""
    plain, once = run(command, checkpoint, tmp_path, "guidance=none")
    off, evaluations = run(command, checkpoint, tmp_path, "guidance=pag", "guidance.scale=1")
    assert np.array_equal(off, plain) and evaluations == once
    guided, evaluations = run(command, checkpoint, tmp_path, "guidance=pag", "guidance.scale=30")
    assert np.abs(guided - plain).max() > 1 and evaluations == 2 * once


def test_an_empty_list_of_layers_prints_those_of_the_network(checkpoint, tmp_path, command):
    done = command(main, f"checkpoint={checkpoint}", "guidance=slg", "guidance.layers=[]", at=tmp_path)
    assert done.code == 1 and "residual blocks 0 to 9" in done.err and "Traceback" not in done.err, done.err
    done = command(main, f"checkpoint={checkpoint}", "guidance=slg", at=tmp_path)
    assert done.code == 1 and "guidance.layers" in done.err and "Traceback" not in done.err, done.err


def test_layers_without_attention_are_an_error_before_sampling(tmp_path, command):
    for entry, said in ((main, ["oracle=gmm2d", "n=4"]), (train, ["experiment=gmm2d"])):
        done = command(entry, *said, "guidance=pag", at=tmp_path)
        assert done.code == 1 and "perturbs attention layers" in done.err and "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []
