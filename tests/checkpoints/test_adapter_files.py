"""Adapters in files of peft and diffusers, added to networks of diffusers, against these libraries' own calls."""

import copy
import json

import diffusers
import pytest
import torch
from diffusers_folders import TOKENS, dit, randomize, save_pipeline, unet
from safetensors.torch import load_file, save_file
from small_checkpoint import save

import diffguide
from diffguide.checkpoints.adapter_files import identify_adapter
from diffguide.files.safetensors import CheckpointError

peft = pytest.importorskip("peft")
BATCH = 2
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def text_unet() -> torch.nn.Module:
    return randomize(diffusers.UNet2DConditionModel(**TOKENS["UNet2DConditionModel"], sample_size=8))


def arguments(network: torch.nn.Module) -> dict:
    """Of a call of the network."""
    rng, config = torch.Generator().manual_seed(2), network.config
    inputs = {"timestep": torch.tensor([900, 30])}
    side = (BATCH, config.in_channels, config.sample_size, config.sample_size)
    inputs["sample" if "UNet" in type(network).__name__ else "hidden_states"] = torch.randn(side, generator=rng)
    if isinstance(network, diffusers.UNet2DConditionModel):
        inputs["encoder_hidden_states"] = torch.randn(BATCH, 4, 8, generator=rng)
    if isinstance(network, diffusers.DiTTransformer2DModel):
        inputs["class_labels"] = torch.tensor([1, 5])
    return inputs


def draw(network: torch.nn.Module) -> None:
    rng = torch.Generator().manual_seed(1)
    for name, value in network.named_parameters():
        if ".lora_" in name:
            value.data = 0.3 * torch.randn(value.shape, generator=rng)


def adapted(network: torch.nn.Module, folder, **changes) -> torch.nn.Module:
    """The network with an adapter of peft, which is also in the folder."""
    options = {"r": 2, "lora_alpha": 3, "target_modules": ["to_q", "to_out.0"]} | changes
    changed = peft.get_peft_model(copy.deepcopy(network), peft.LoraConfig(**options)).eval()
    draw(changed)
    changed.save_pretrained(folder)
    return changed


def call(network: torch.nn.Module, inputs: dict) -> torch.Tensor:
    with torch.no_grad():
        return network(**inputs, return_dict=False)[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder of diffusers and its network."""
    network, folder = unet(sample_size=8), tmp_path_factory.mktemp("base") / "pipe"
    return save_pipeline(folder, network, diffusers.DDPMScheduler()), network


@pytest.fixture
def adapter(base, tmp_path):
    """The folder of an adapter for it."""
    adapted(base[1], tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "make, changes",
    [
        (lambda: unet(sample_size=8), {"target_modules": ["to_q", "conv_in", "conv_shortcut"]}),
        (lambda: unet(sample_size=8), {"use_rslora": True, "r": 4}),
        (lambda: unet(sample_size=8), {"rank_pattern": {"mid_block.*to_q": 4}}),
        (dit, {"target_modules": ["to_q", "proj", "linear"]}),
        (text_unet, {"target_modules": ["to_k", "proj_in"]}),
    ],
    ids=["unet", "rslora", "ranks", "dit", "text"],
)
def test_an_adapter_of_peft_gives_the_prediction_of_peft(make, changes, scale, tmp_path):
    network = make()
    folder = save_pipeline(tmp_path / "pipe", network, diffusers.DDPMScheduler())
    apart = adapted(network, tmp_path / "adapter", **changes)
    inputs = arguments(network)
    for layer in apart.modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            layer.set_scale("default", scale)
    merged = diffguide.load(folder, adapter=tmp_path / "adapter", adapter_scale=scale).backbone.network
    expected = call(apart, inputs)
    torch.testing.assert_close(call(merged, inputs), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert list(merged.state_dict()) == list(network.state_dict())
    if scale:
        assert float((expected - call(network, inputs)).abs().max()) > 1e-2 * scale


def test_an_adapter_that_diffusers_saved(tmp_path):
    network = text_unet()
    folder = save_pipeline(tmp_path / "pipe", network, diffusers.DDPMScheduler())
    network.add_adapter(peft.LoraConfig(r=2, lora_alpha=5, target_modules=["to_q", "to_v"]))
    draw(network)
    network.save_lora_adapter(tmp_path / "adapter")
    inputs = arguments(network)
    found, expected = diffguide.load(folder, adapter=tmp_path / "adapter").backbone.network, call(network, inputs)
    torch.testing.assert_close(call(found, inputs), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_what_identifies_an_adapter(base, adapter):
    assert identify_adapter(None, 1.0) == {} and identify_adapter(None, 0.5) == {"adapter_scale": 0.5}
    found = identify_adapter(adapter, 1.0)
    assert found["adapter"] == str(adapter) and len(found["adapter_sha256"]) == 64 and found["adapter_scale"] == 1.0


def edit_config(folder, **changes) -> None:
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in (settings | changes).items() if v != "absent"}))


def edit_tensors(folder, edit) -> None:
    tensors = {name: value.clone() for name, value in load_file(folder / FILE).items()}
    edit(tensors)
    save_file(tensors, folder / FILE)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"peft_type": "LOHA"}, "peft_type must be LORA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"use_dora": True}, "use_dora must be null or false"),
        ({"alpha_pattern": {"a": 1}}, "alpha_pattern"),
        ({"modules_to_save": ["conv_in"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"invented": "os.system"}, "invented must be null or false"),
        ({"lora_alpha": "3"}, "lora_alpha must be a finite number"),
        ({"lora_alpha": "absent"}, "lora_alpha must be a finite number"),
        ({"use_rslora": 1}, "use_rslora must be true or false"),
    ],
)
def test_other_settings_are_refused(base, adapter, changes, message):
    edit_config(adapter, **changes)
    with pytest.raises(CheckpointError, match=message) as raised:
        diffguide.load(base[0], adapter=adapter)
    assert str(raised.value).startswith(f"adapter={adapter}: ") and "\n" not in str(raised.value)


def test_names_in_the_settings_are_not_imported(base, adapter):
    edit_config(adapter, auto_mapping={"base_model_class": "Popen", "parent_library": "no.such.module"})
    diffguide.load(base[0], adapter=adapter)


A, B = (f"base_model.model.mid_block.attentions.0.to_q.lora_{part}.weight" for part in "AB")
EDITS = {
    "one of the two matrices": lambda held: held.pop(A),
    "no linear or convolutional layer": lambda held: held.update({n.replace("to_q", "a"): held.pop(n) for n in (A, B)}),
    "have the shapes": lambda held: held.update({B: torch.zeros(31, 2)}),
    "the shapes [0, 32]": lambda held: held.update({A: torch.zeros(0, 32), B: torch.zeros(32, 0)}),
    "must be floating": lambda held: held.update({A: torch.zeros(2, 32, dtype=torch.int64)}),
    "NaN or infinity": lambda held: held[A].fill_(torch.nan),
    "lora_A.weight and <layer>.lora_B.weight only": lambda held: held.update({"unet.to_q.alpha": torch.zeros(1)}),
    "twice": lambda held: held.update({A.removeprefix("base_model.model."): torch.zeros(2, 32)}),
    "it has no matrices": lambda held: held.clear(),
}  # fmt: skip


@pytest.mark.parametrize("message", EDITS)
def test_other_tensors_are_refused(base, adapter, message):
    edit_tensors(adapter, EDITS[message])
    with pytest.raises(CheckpointError) as raised:
        diffguide.load(base[0], adapter=adapter)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_damaged_and_missing_files(base, adapter, tmp_path):
    data = (adapter / FILE).read_bytes()
    for content in (data[:100], b"", b"\x80\x04pickle"):
        (adapter / FILE).write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            diffguide.load(base[0], adapter=adapter)
    (adapter / FILE).write_bytes(data)
    (adapter / CONFIG).write_text("[]")
    with pytest.raises(CheckpointError, match="it is no mapping"):
        diffguide.load(base[0], adapter=adapter)
    for header in ({}, {"lora_adapter_metadata": "["}, {"lora_adapter_metadata": "[]"}):
        (tmp_path / "other").mkdir(exist_ok=True)
        save_file({"a.lora_A.weight": torch.zeros(1)}, tmp_path / "other/pytorch_lora_weights.safetensors", header)
        with pytest.raises(CheckpointError, match="lora_adapter_metadata"):
            diffguide.load(base[0], adapter=tmp_path / "other")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/adapter_model.bin").write_bytes(b"pickle")
    for folder in (tmp_path / "bin", tmp_path / "nowhere", "x" * 5000):
        with pytest.raises(CheckpointError, match="adapter="):
            diffguide.load(base[0], adapter=folder)


def test_a_scale_without_an_adapter_is_refused(base, tmp_path):
    with pytest.raises(CheckpointError, match=r"adapter_scale=0.5 has no effect: .* has no adapter"):
        diffguide.load(save(tmp_path), adapter_scale=0.5)
    with pytest.raises(CheckpointError, match="adapter_scale must be a finite number"):
        diffguide.load(base[0], adapter_scale=float("nan"))
