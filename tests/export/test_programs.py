"""Programs of torch.export and ONNX against the model's own predictions, and the samplers in their READMEs as written."""

import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers_folders
import numpy as np
import pytest
import torch
from exported import FORMATS, compare, example, expected, written
from learned_variance import VarianceNetwork
from networks import dit, lively, mlp, unet

from diffguide.backbones import MLP
from diffguide.backbones.base import Backbone
from diffguide.backbones.diffusers_network import DiffusersNetwork
from diffguide.backbones.edm import EDMUNet
from diffguide.backbones.edm2 import EDM2UNet
from diffguide.backbones.timesteps import TimestepFeatures
from diffguide.checkpoints.store import Loaded
from diffguide.export.description import describe, write_readme
from diffguide.export.errors import ExportError
from diffguide.export.formats import Onnx, SafeTensors, TorchExport, write_model_json
from diffguide.export.programs import PredictionProgram, trace
from diffguide.guidance import ClassifierFree
from diffguide.models.noisy_classifier import NoisyClassifier
from diffguide.models.parameterizations import EDM, Eps, Flow, V
from diffguide.models.preconditioned import Preconditioned
from diffguide.samplers import DDIM
from diffguide.schedules import EDM as EDMSchedule
from diffguide.schedules import Cosine, Linear
from diffguide.schedules import Flow as FlowSchedule

BATCHES = (1, 63, 64, 65, 100)


def library_unet(num_classes):
    """UNet2DModel, whose upsampling branches on 64 images."""
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "add_attention": False}
    arguments = diffusers_folders.UNET | blocks | {"sample_size": 8, "in_channels": 1, "out_channels": 1}
    network = DiffusersNetwork(1, None, num_classes, 8, "UNet2DModel", arguments)
    diffusers_folders.randomize(network)
    return network


def library_dit(num_classes):
    assert num_classes
    arguments = diffusers_folders.DIT | {"num_layers": 1, "num_embeds_ada_norm": None}
    network = DiffusersNetwork(4, None, num_classes, 8, "DiTTransformer2DModel", arguments, learned_variance=True)
    diffusers_folders.randomize(network)
    return network


class Timed(Backbone):
    """A network that takes a discrete timestep, as those of diffusers and ADM do."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.features, self.classes = TimestepFeatures(width=4), torch.nn.Embedding(num_classes + 1, 4)
        self.out = torch.nn.Linear(10, 2)

    def forward(self, x, log_snr, y=None, perturbation=None):
        y = torch.full(x.shape[:1], -1) if y is None else y
        return self.out(torch.cat([x, self.features(log_snr), self.classes(y + 1)], dim=1))


EDM_OPTIONS = dict(size=8, channels=8, multipliers=[1, 2], blocks=1, attention=[4])
MODELS = {  # network, shape, schedule, parameterization
    "unet": (lambda classes: lively(unet(num_classes=classes)), (1, 8, 8), Cosine(), V()),
    "dit": (lambda classes: lively(dit(num_classes=classes)), (1, 8, 8), FlowSchedule(), Flow()),
    "mlp": (lambda classes: lively(mlp(num_classes=classes)), (2,), Cosine(), V()),
    "edm": (lambda classes: lively(EDMUNet(1, num_classes=classes, **EDM_OPTIONS)), (1, 8, 8), EDMSchedule(), EDM()),
    "edm2": (
        lambda classes: lively(EDM2UNet(1, num_classes=classes, head_channels=8, **EDM_OPTIONS)),
        (1, 8, 8),
        EDMSchedule(),
        EDM(),
    ),
    "timesteps": (lambda classes: lively(Timed(classes)), (2,), Linear(), Eps()),
    "diffusers unet": (library_unet, (1, 8, 8), Linear(), Eps()),
    "diffusers dit": (library_dit, (4, 8, 8), Linear(), Eps()),
}


def loaded(name: str, classes: int = 3, has_null: bool = True) -> Loaded:
    make, shape, schedule, parameterization = MODELS[name]
    model = (
        Preconditioned(make(classes), schedule, parameterization, has_null or not classes).eval().requires_grad_(False)
    )
    model.shape, model.class_names = list(shape), [f"class {k}" for k in range(classes)]
    return Loaded(model, {"name": "mine"}, {"shape": list(shape), "class_names": model.class_names, "images": 7})


def inputs(model, batch: int) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(batch)
    x, log_snr = torch.randn(batch, *model.shape, generator=rng), torch.empty(batch).uniform_(-9, 9, generator=rng)
    return (x, log_snr, torch.arange(batch) % 4 - 1) if model.conditional else (x, log_snr)


def check(model, run) -> None:
    for batch in BATCHES:
        given = inputs(model, batch)
        compare(run(*given), expected(model, *given), f"{batch} rows")


QUICK = [("torch_export", "unet", 3), ("torch_export", "diffusers unet", 3), ("onnx", "timesteps", 3)]
REST = [
    (form, name, classes)
    for form in FORMATS
    for name in MODELS
    for classes in (3, 0)
    if (form, name, classes) not in QUICK and (name, classes) != ("diffusers dit", 0)
]
CASES = QUICK + (REST if "ALL_EXPORTS" in os.environ else [])  # all take two CPU minutes: torch's exporters are slow


@pytest.mark.parametrize("form, name, classes", CASES)
def test_a_program_predicts_as_the_model(form, name, classes, tmp_path):
    """For any number of rows; UNet2DModel exported as it is would take at most 63."""
    make, run = FORMATS[form]
    model = loaded(name, classes)
    check(model.model, run(written(tmp_path / "out", model, make())))


def test_a_program_has_the_learned_variance_too():
    model = Preconditioned(VarianceNetwork(), Cosine(), V(), True).float()
    model.shape = [1, 4, 4]
    check(model, trace(model, model.shape).module())


class Session:
    """onnxruntime's session, for a model that was not exported."""

    def __init__(self, model):
        self.program = PredictionProgram(model)

    def run(self, names, given):
        x, log_snr, *label = (torch.from_numpy(value) for value in given.values())
        assert list(given) == ["x_t", "log_snr", "label"][: len(given)] and names == ["x_0", "eps"]
        return [part.numpy() for part in self.program(x, log_snr, *label)]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("classes, has_null", [(3, True), (3, False), (0, True)])
def test_the_example_samples_as_ddim(form, classes, has_null, tmp_path, monkeypatch, capsys):
    """The README's code as it stands, against this package's own sampler from the same noise."""
    model = loaded("mlp", classes, has_null)
    if classes and has_null:
        folder = written(tmp_path / "out", model, FORMATS[form][0]())
        check(model.model, FORMATS[form][1](folder))
    else:  # without the seconds of an export
        write_model_json(tmp_path, describe(model, "ema"))
        write_readme(folder := tmp_path, form, model.model, model.config)
        monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: Session(model.model))
        held = SimpleNamespace(module=lambda: PredictionProgram(model.model))
        monkeypatch.setattr("torch.export.load", lambda path: held)
    monkeypatch.chdir(folder)
    code = example(Path("."))
    assert "diffguide" not in code and len(code.splitlines()) <= 22
    begun, names = {}, {}
    exec(code[: re.search(r"^x = .*$", code, re.MULTILINE).end()], begun)  # the noise that it starts from
    exec(code, names)
    assert capsys.readouterr().out.startswith("samples")
    x, label = torch.as_tensor(begun["x"]), torch.as_tensor(begun["label"]) if classes else None
    denoiser = ClassifierFree(model.model, 2.0) if classes and has_null else model.model
    times = torch.tensor(names["facts"]["levels"]["t"], dtype=torch.float64)[torch.as_tensor(names["rows"])]
    mine = DDIM()(denoiser, x, times, label)
    np.testing.assert_allclose(names["x"], mine, rtol=0, atol=1e-4 * float(mine.abs().max()))


def test_the_description_states_the_convention(tmp_path):
    folder = written(tmp_path / "out", loaded("mlp"), SafeTensors())
    facts, schedule = json.loads((folder / "config.json").read_text()), Cosine()
    assert facts["null_label"] == -1 and facts["class_names"] == ["class 0", "class 1", "class 2"]
    assert list(facts["inputs"]) == ["x_t", "log_snr", "label"] and list(facts["outputs"]) == ["x_0", "eps"]
    levels = {name: np.array(column) for name, column in facts["levels"].items()}
    assert levels["t"][0] == 1 and levels["t"][-1] == 0
    np.testing.assert_allclose(levels["log_snr"], schedule.log_snr(torch.tensor(levels["t"])), rtol=1e-12)
    np.testing.assert_allclose(levels["alpha"] ** 2 + levels["sigma"] ** 2, 1, rtol=1e-12)
    np.testing.assert_allclose(np.log(levels["alpha"] ** 2 / levels["sigma"] ** 2), levels["log_snr"], atol=1e-9)


def test_safetensors_are_the_tensors_of_the_network(tmp_path):
    from safetensors.torch import load_file

    model = loaded("mlp")
    folder = written(tmp_path / "out", model, SafeTensors())
    held, wanted = load_file(folder / "model.safetensors"), model.model.backbone.state_dict()
    assert held.keys() == wanted.keys() and all(torch.equal(held[name], wanted[name]) for name in held)
    assert (folder / "model.safetensors").stat().st_mode & 0o044
    assert "levels" in json.loads((folder / "config.json").read_text())
    exec(
        example(folder).replace('"config.json"', f'"{folder}/config.json"').replace('"model.', f'"{folder}/model.'), {}
    )


def test_other_models_are_refused(tmp_path):
    network = lively(mlp(in_channels=2, out_features=3, num_classes=0))
    classifier = NoisyClassifier(network, Cosine())
    facts = {"shape": [2], "class_names": list("abc"), "images": 7}
    for form in (TorchExport(), Onnx()):
        with pytest.raises(ExportError, match="holds a NoisyClassifier: to=safetensors"):
            form.write(Loaded(classifier, {}, facts), tmp_path)
    SafeTensors().write(Loaded(classifier, {}, facts), tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    embedded = Preconditioned(MLP(2, condition_features=5), Cosine(), V(), True)
    with pytest.raises(ExportError, match="takes an Embedding of length 5"):
        TorchExport().write(Loaded(embedded, {}, facts), tmp_path)


def test_a_network_that_cannot_be_traced_is_named(tmp_path):
    class Branching(MLP):
        def forward(self, x, log_snr, y=None, perturbation=None):
            return super().forward(x, log_snr, y) if x.sum() > 0 else x

    model = loaded("mlp")
    model.model.backbone = Branching(2, num_classes=3, width=4, layers=1, fourier_features=0)
    with pytest.raises(ExportError, match="^torch.export cannot trace Branching: "):
        TorchExport().write(model, tmp_path)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=r"pip install 'diffguide\[onnx\]'"):
        Onnx().write(loaded("mlp"), tmp_path)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="opset"):
        Onnx(opset=9)
    with pytest.raises(ValueError, match="weights must be ema"):
        TorchExport("last")
