"""to=lora: adapters alone, as peft and diffusers load them onto the network that they were trained beside."""

import copy
import json

import pytest
import torch
from diffusers_folders import DIT, TOKENS, UNET, randomize
from networks import batch, lively, unet
from safetensors import safe_open

from diffguide.backbones.conditions import Embedding
from diffguide.backbones.diffusers_network import DiffusersNetwork
from diffguide.backbones.lora import LoRA
from diffguide.checkpoints.store import Loaded
from diffguide.export.adapter import PeftAdapter
from diffguide.export.errors import ExportError
from diffguide.models.parameterizations import Eps
from diffguide.models.preconditioned import Preconditioned
from diffguide.schedules import Linear

peft = pytest.importorskip("peft")


def plain(name: str) -> DiffusersNetwork:
    if name == "UNet2DConditionModel":
        return randomize(DiffusersNetwork(4, None, 0, 8, name, TOKENS[name], condition_tokens=4))
    if name == "DiTTransformer2DModel":
        return randomize(DiffusersNetwork(4, None, 3, 8, name, DIT | {"num_embeds_ada_norm": 3}, learned_variance=True))
    return randomize(DiffusersNetwork(3, None, 0, 8, name, UNET | {"sample_size": 8}))


def adapted(network, **changes) -> LoRA:
    changed = LoRA(
        copy.deepcopy(network), **({"rank": 2, "alpha": 5.0, "targets": ["to_q", "conv_in", "proj"]} | changes)
    )
    rng = torch.Generator().manual_seed(1)
    for name, value in changed.named_parameters():
        if ".lora_" in name:
            value.data = 0.3 * torch.randn(value.shape, generator=rng)
    return changed.eval().requires_grad_(False)


def loaded(backbone) -> Loaded:
    model = Preconditioned(backbone, Linear(), Eps(), backbone.takes_null).eval()
    ancestry = {"checkpoint": "/home/me/pipe/unet/diffusion_pytorch_model.safetensors", "sha256": "ab" * 32}
    names = list(map(str, range(backbone.num_classes)))
    return Loaded(
        model, {"name": "mine", "ancestry": ancestry}, {"shape": [4, 8, 8], "class_names": names, "images": 7}
    )


@pytest.mark.parametrize("name", ["UNet2DModel", "DiTTransformer2DModel", "UNet2DConditionModel"])
def test_peft_and_diffusers_give_our_prediction(name, tmp_path):
    network = plain(name)
    backbone = adapted(network)
    PeftAdapter().write(loaded(backbone), tmp_path)
    rng = torch.Generator().manual_seed(0)
    x, log_snr = torch.randn(2, network.arguments["in_channels"], 8, 8, generator=rng), torch.tensor([-2.0, 3.0])
    y = None
    if network.condition_features:
        y = Embedding(torch.randn(2, network.condition_features, generator=rng), torch.tensor([True, True]))
    elif network.num_classes:
        y = torch.tensor([2, -1])
    expected = backbone(x, log_snr, y)
    assert float((expected - network(x, log_snr, y)).abs().max()) > 0.05
    by_peft, close = copy.deepcopy(network), {"rtol": 1e-5, "atol": 1e-5 * float(expected.abs().max())}
    by_peft.network = peft.PeftModel.from_pretrained(by_peft.network, tmp_path).eval()
    torch.testing.assert_close(by_peft(x, log_snr, y), expected, **close)
    readme = (tmp_path / "README.md").read_text()
    assert ("load_lora_adapter" in readme) == hasattr(network.network, "load_lora_adapter")
    if "load_lora_adapter" in readme:
        code = readme.split("\n`network.load_lora_adapter")[1].split("`")[0].replace('"."', "folder")
        by_diffusers = copy.deepcopy(network)
        exec(f"network.load_lora_adapter{code}", {"network": by_diffusers.network, "folder": str(tmp_path)})
        torch.testing.assert_close(by_diffusers(x, log_snr, y), expected, **close)


def test_the_files(tmp_path):
    PeftAdapter().write(loaded(adapted(plain("UNet2DModel"))), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "diffguide.json",
    }  # fmt: skip
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as opened:
        names = set(opened.keys())
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["r"] == 2 and settings["lora_alpha"] == 5 and settings["peft_type"] == "LORA"
    assert settings["inference_mode"] and settings["base_model_name_or_path"] is None
    layers = settings["target_modules"]
    assert names == {f"base_model.model.{layer}.lora_{part}.weight" for layer in layers for part in "AB"}
    everything = "".join(file.read_text(errors="replace") for file in tmp_path.iterdir())
    assert "/home" not in everything and "diffusion_pytorch_model.safetensors has the SHA-256 abab" in everything


def test_a_network_of_this_package_is_read_back(tmp_path):
    torch.manual_seed(0)
    network = lively(unet())
    backbone = adapted(network, targets=["qkv", "projection"])
    PeftAdapter().write(loaded(backbone), tmp_path)
    x, log_snr, y = batch(4, 1, 8, 8)
    by_peft = peft.PeftModel.from_pretrained(copy.deepcopy(network), tmp_path).eval()
    torch.testing.assert_close(by_peft(x, log_snr, y), backbone(x, log_snr, y), rtol=1e-5, atol=1e-5)


def test_other_models_are_refused(tmp_path):
    with pytest.raises(ExportError, match="to=lora takes runs of training/adapter=lora"):
        PeftAdapter().write(loaded(plain("UNet2DModel")), tmp_path)
    with pytest.raises(ExportError, match="trains_classes"):
        PeftAdapter().write(loaded(adapted(plain("DiTTransformer2DModel"), trains_classes=True)), tmp_path)
