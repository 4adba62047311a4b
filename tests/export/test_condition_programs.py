"""Programs of models with texts, attributes, numbers, pictures and several conditions, against the models themselves."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exported import FORMATS, compare, example, expected, written
from networks import dit, lively, unet

from diffguide.backbones.conditioning import Conditioning, Context
from diffguide.backbones.conditions import Attributes, Numbers, Picture, Several, TokenIds, TokenStates
from diffguide.checkpoints.store import Loaded
from diffguide.conditions.classes import Classes, MultiLabel
from diffguide.conditions.frozen_text import ClipText, T5Text
from diffguide.conditions.numbers import Continuous
from diffguide.conditions.pictures import LowResolution
from diffguide.conditions.several import SeveralConditions
from diffguide.conditions.text import ByteText
from diffguide.export.description import describe, write_readme
from diffguide.export.errors import ExportError
from diffguide.export.formats import SafeTensors, TorchExport, write_model_json
from diffguide.export.programs import ConditionProgram, condition_inputs, trace
from diffguide.guidance import ClassifierFree
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.samplers import DDIM
from diffguide.schedules import Cosine

BATCHES = (1, 2, 63, 64, 65)
LENGTH = 12


def text() -> ByteText:
    return ByteText(LENGTH, 8, 1, 2, words=50)


def frozen(kind: type, **changed):
    """Of an encoder that is not there: a trained model does not need it."""
    conditioning = kind("nowhere", length=LENGTH, sha256="0" * 64, features=6, **changed)
    for buffer in (conditioning.empty_states, conditioning.empty_pooled):
        buffer.normal_(generator=torch.Generator().manual_seed(1))
    conditioning.empty_mask[2:] = False
    return conditioning


def encodings(rng, count: int, pooled: int) -> list[torch.Tensor]:
    """States, mask and pooled: from no token, which is no condition, to all."""
    mask = torch.arange(LENGTH) < torch.arange(count)[:, None] % (LENGTH + 1)
    return [torch.randn(count, LENGTH, 6, generator=rng), mask, torch.randn(count, pooled, generator=rng)]


def texts(count: int) -> torch.Tensor:
    found = ["", "red", "zwölf", "a square x"]
    return text().read([found[row % 4] for row in range(count)]).ids.long()


def attributes(rng, count: int) -> torch.Tensor:
    return (
        torch.randint(-1, 2, (count, 2), generator=rng) * (torch.arange(count) % 3 > 0).long()[:, None]
        - (torch.arange(count) % 3 == 0).long()[:, None]
    )


def numbers(rng, count: int) -> torch.Tensor:
    values = torch.randn(count, 2, generator=rng)
    values[::3] = torch.nan
    values[1::3, 0] = torch.nan
    return values


CONDITIONS = {  # the conditioning; the tensors of rows; the condition that they are
    "text": (text, lambda rng, n: [texts(n)], TokenIds),
    "clip_text": (lambda: frozen(ClipText, pooled_features=5), lambda rng, n: encodings(rng, n, 5), TokenStates),
    "padded clip_text": (
        lambda: frozen(ClipText, pooled_features=5, padding=True), lambda rng, n: encodings(rng, n, 5), TokenStates,
    ),
    "t5": (lambda: frozen(T5Text), lambda rng, n: encodings(rng, n, 6), TokenStates),
    "multi_label": (lambda: MultiLabel(["a", "b"]), lambda rng, n: [attributes(rng, n)], Attributes),
    "continuous": (lambda: Continuous(["u", "v"], [0, 1], [1, 2]), lambda rng, n: [numbers(rng, n)], Numbers),
    "low_resolution": (
        lambda: LowResolution(1, 8, 2),
        lambda rng, n: [torch.randn(n, 1, 8, 8, generator=rng), torch.arange(n) % 2 == 0],
        Picture,
    ),
    "several": (
        lambda: SeveralConditions({"words": text(), "kind": Classes(3, 4), "size": Continuous(["u", "v"], [0, 1], [1, 2])}),
        lambda rng, n: [texts(n), torch.arange(n) % 4 - 1, numbers(rng, n)],
        lambda ids, kind, size: Several({"words": TokenIds(ids), "kind": kind, "size": Numbers(size)}),
    ),
}  # fmt: skip
NAMES = {
    "text": ["ids"],
    "clip_text": ["states", "mask", "pooled"],
    "padded clip_text": ["states", "mask", "pooled"],
    "t5": ["states", "mask", "pooled"],
    "multi_label": ["values"],
    "continuous": ["values"],
    "low_resolution": ["x", "keep"],
    "several": ["words_ids", "kind_label", "size_values"],
}
NETWORKS = {"unet": unet, "dit": dit}


def loaded(name: str, network: str = "unet", has_null: bool = True) -> Loaded:
    backbone = lively(NETWORKS[network](num_classes=0, conditioning=CONDITIONS[name][0]()))
    model = Preconditioned(backbone, Cosine(), V(), has_null).eval().requires_grad_(False)
    model.shape = [1, 8, 8]
    return Loaded(model, {"name": "mine"}, {"shape": [1, 8, 8], "class_names": [], "images": 7})


def inputs(name: str, batch: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    rng = torch.Generator().manual_seed(batch)
    x, log_snr = torch.randn(batch, 1, 8, 8, generator=rng), torch.empty(batch).uniform_(-9, 9, generator=rng)
    return x, log_snr, CONDITIONS[name][1](rng, batch)


QUICK = [("torch_export", "unet", "several"), ("onnx", "dit", "clip_text")]
REST = [(form, network, name) for form in FORMATS for network in NETWORKS for name in CONDITIONS]
CASES = QUICK + ([case for case in REST if case not in QUICK] if "ALL_EXPORTS" in os.environ else [])  # minutes


@pytest.mark.parametrize("form, network, name", CASES)
def test_a_program_predicts_as_the_model(form, network, name, tmp_path):
    """For any number of rows, with and without condition in them."""
    make, run = FORMATS[form]
    model = loaded(name, network)
    program = run(written(tmp_path / "out", model, make()))
    for batch in BATCHES:
        x, log_snr, given = inputs(name, batch)
        compare(
            program(x, log_snr, *given), expected(model.model, x, log_snr, CONDITIONS[name][2](*given)), f"{batch} rows"
        )


@pytest.mark.parametrize("name", CONDITIONS)
def test_rows_of_the_null_numbers_have_no_condition(name):
    """And the tensors of a program are the condition that the model takes, in the stated order, types and shapes."""
    model = loaded(name).model
    null, stated = condition_inputs(model)
    assert list(stated) == NAMES[name]
    program = ConditionProgram(model, null)
    x, log_snr, given = inputs(name, 6)
    assert [(part.dtype, list(part.shape[1:])) for part in given] == [
        (getattr(torch, part.dtype), part.shape) for part in stated.values()
    ]
    compare(program(x, log_snr, *given), expected(model, x, log_snr, CONDITIONS[name][2](*given)), "given")
    empty = [torch.full_like(part, number.null_value) for part, number in zip(given, stated.values())]
    compare(program(x, log_snr, *empty), expected(model, x, log_snr, None), "null")
    assert (program(x, log_snr, *given)[0] - expected(model, x, log_snr, None)[0]).abs().max() > 1e-3


class Session:
    """onnxruntime's session, for a model that was not exported."""

    def __init__(self, program, names):
        self.program, self.names = program, names

    def run(self, outputs, given):
        assert list(given) == ["x_t", "log_snr", *self.names] and outputs == ["x_0", "eps"]
        return [part.numpy() for part in self.program(*(torch.from_numpy(value) for value in given.values()))]


WRITTEN = {  # what the example in the README asks for
    "text": lambda: TokenIds(text().read(["two blue squares"[: LENGTH - 1]]).ids),
    "multi_label": lambda: Attributes(torch.tensor([[1, -1]])),
    "continuous": lambda: Numbers(torch.tensor([[0.0, 0.0]])),
    "several": lambda: Several(
        {"words": text().read(["two blue squares"[: LENGTH - 1]]), "kind": torch.tensor([0]),
         "size": Numbers(torch.tensor([[0.0, 0.0]]))}
    ),
    "t5": lambda: None,  # needs its encoder: the rows stay without condition
}  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "name, has_null", [("text", True), ("multi_label", True), ("continuous", False), ("several", True), ("t5", True)]
)
def test_the_example_samples_as_ddim(form, name, has_null, tmp_path, monkeypatch, capsys):
    """The README's code as it stands, with fewer steps, against this package's own sampler from the same noise."""
    given = loaded(name, has_null=has_null)
    write_model_json(tmp_path, describe(given, "ema"))
    write_readme(tmp_path, form, given.model, given.config)
    program = ConditionProgram(given.model, condition_inputs(given.model)[0])
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: Session(program, NAMES[name]))
    monkeypatch.setattr("torch.export.load", lambda path: SimpleNamespace(module=lambda: program))
    monkeypatch.chdir(tmp_path)
    code, names = example(tmp_path).replace("= 50, 4", "= 5, 4"), {}
    assert "diffguide" not in code and len(code.splitlines()) <= 30
    begun: dict = {}
    exec(code[: code.index("for here, there")], begun)  # the noise that it starts from
    exec(code, names)
    assert capsys.readouterr().out.startswith("samples")
    y = WRITTEN[name]()
    y = None if y is None else y[torch.zeros(4, dtype=torch.long)]
    times = torch.tensor(names["facts"]["levels"]["t"], dtype=torch.float64)[torch.as_tensor(names["rows"])]
    denoiser = ClassifierFree(given.model, 2.0) if has_null else given.model
    wanted = DDIM()(denoiser, torch.as_tensor(begun["x"]), times, y)
    np.testing.assert_allclose(names["x"], wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


def test_the_description_says_what_no_condition_is(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    SafeTensors().write(loaded("several", has_null=False), folder)
    facts = json.loads((folder / "config.json").read_text())
    assert facts["condition"] == {
        "words_ids": {"dtype": "int64", "shape": [LENGTH], "null": 0},
        "kind_label": {"dtype": "int64", "shape": [], "null": -1},
        "size_values": {"dtype": "float32", "shape": [2], "null": "nan"},
    }
    assert facts["null_trained"] is False and "there is no guidance" in (folder / "README.md").read_text()
    assert facts["inputs"]["words_ids"].startswith(f"int64 [batch, {LENGTH}], UTF-8 bytes, each + 1, then 257")
    assert facts["inputs"]["size_values"].startswith("float32 [batch, 2], u, v")


class Sentences(Conditioning):
    """A conditioning of a user, which cannot be written."""

    vector_features = 3

    def forward(self, y, x):
        return Context(torch.zeros(len(x), 3))


class Uneven(Sentences):
    def read(self, values):
        return Numbers(torch.tensor([[0.0, 1.0]] * len(values)))


@pytest.mark.parametrize(
    "kind, sentence", [(Sentences, "Sentences cannot be written"), (Uneven, "values of Uneven has several")]
)
def test_what_a_program_cannot_take_is_refused_by_name(kind, sentence, tmp_path):
    model = Preconditioned(unet(num_classes=0, conditioning=kind()), Cosine(), V(), True).eval()
    facts = {"shape": [1, 8, 8], "class_names": [], "images": 7}
    with pytest.raises(ExportError, match=rf"{sentence}.*: take to=safetensors"):
        TorchExport().write(Loaded(model, {}, facts), tmp_path)
    SafeTensors().write(Loaded(model, {"name": "mine"}, facts), tmp_path)
    assert "inputs" not in json.loads((tmp_path / "config.json").read_text())


def test_a_pipeline_of_texts_has_a_program(tmp_path):
    """UNet2DConditionModel with the texts of CLIP, from a folder of diffusers."""
    from stable_diffusion import FIRST, stable_diffusion

    import diffguide

    stable_diffusion(tmp_path / "pipeline", **FIRST)
    model = diffguide.load(tmp_path / "pipeline")
    program = trace(model, model.shape).module()
    y = model.conditioning.read(["red", "", "a"])
    x, log_snr = (
        torch.randn(3, *model.shape, generator=torch.Generator().manual_seed(0)),
        torch.tensor([-3.0, 0.0, 2.0]),
    )
    for rows in (slice(0, 1), slice(0, 3)):
        given = y[rows]
        compare(
            program(x[rows], log_snr[rows], given.states, given.mask, given.pooled),
            expected(model, x[rows], log_snr[rows], given), str(rows),
        )  # fmt: skip
