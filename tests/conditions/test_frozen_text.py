"""Frozen text encoders against transformers' own calls, their encodings in shards, and what a network gets."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from text_encoders import write_clip, write_t5

from diffguide.backbones.conditions import TokenStates
from diffguide.conditions import ClipText, SeveralConditions, T5Text
from diffguide.conditions.encoders import TextEncoder

TEXTS = ["a red dot", "", "an egg", "red"]
X = torch.zeros(4, 3, 8, 8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("encoders") / "clip")


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("encoders") / "t5")


@pytest.fixture
def calls(monkeypatch):
    """The texts of every call of an encoder."""
    seen = []
    encode = TextEncoder.encode

    def count(self, texts, *device):
        seen.append(list(texts))
        return encode(self, texts, *device)

    monkeypatch.setattr(TextEncoder, "encode", count)
    return seen


def clip_outputs(folder, text, **padding):
    from transformers import CLIPTextModel, CLIPTokenizer

    tokens = CLIPTokenizer.from_pretrained(folder)([text], return_tensors="pt", **padding)
    if padding:
        del tokens["attention_mask"]  # as Stable Diffusion
    with torch.no_grad():
        return CLIPTextModel.from_pretrained(folder)(**tokens, output_hidden_states=True)


@pytest.mark.parametrize("layer", [-1, -2])
def test_clip_states_are_those_of_transformers(clip, layer):
    text = ClipText(str(clip), layer=layer, length=12)
    context = text(text.read(TEXTS), X)
    for row, each in enumerate(TEXTS):
        found = clip_outputs(clip, each)
        expected = found.last_hidden_state[0] if layer == -1 else found.hidden_states[layer][0]
        count = len(expected)
        assert context.mask[row].tolist() == [True] * count + [False] * (12 - count)
        torch.testing.assert_close(context.tokens[row, :count], expected, rtol=0, atol=2e-6)
        torch.testing.assert_close(context.vector[row], found.pooler_output[0], rtol=0, atol=2e-6)
    nothing = text(None, X)
    torch.testing.assert_close(nothing.tokens[0], context.tokens[1], rtol=0, atol=0)


def test_padding_is_attended_to_where_asked(clip):
    text = ClipText(str(clip), length=12, padding=True)
    context = text(text.read(TEXTS), X)
    assert context.mask is None
    for row, each in enumerate(TEXTS):
        found = clip_outputs(clip, each, padding="max_length", max_length=12)
        torch.testing.assert_close(context.tokens[row], found.last_hidden_state[0], rtol=0, atol=2e-6)


def test_t5_states_are_those_of_transformers(t5):
    from transformers import T5EncoderModel

    text, network = T5Text(str(t5), length=6), T5EncoderModel.from_pretrained(t5).eval()
    context = text(text.read(["two red circle", "", "blue"]), X[:3])
    for row, ids in enumerate([[8, 4, 6, 1], [1], [5, 1]]):
        with torch.no_grad():
            expected = network(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(context.tokens[row, : len(ids)], expected, rtol=0, atol=2e-6)
        torch.testing.assert_close(context.vector[row], expected.mean(0), rtol=0, atol=2e-6)
        assert int(context.mask[row].sum()) == len(ids)


def test_names_with_and_without_prefix_and_whole_models_are_read(clip, tmp_path):
    from shutil import copytree

    expected = ClipText(str(clip), length=12).read(TEXTS).states
    tensors = load_file(clip / "model.safetensors")
    bare = {name.removeprefix("text_model."): value for name, value in tensors.items()}
    config = json.loads((clip / "config.json").read_text())
    whole = {"model_type": "clip", "text_config": config, "vision_config": {}, "projection_dim": 8}
    for name, held, facts in (
        ("bare", bare, config),
        ("prefixed", {f"text_model.{key}": value for key, value in bare.items()}, config),
        ("whole", {f"text_model.{key}": value for key, value in bare.items()} | {"logit_scale": torch.ones(())}, whole),
    ):
        folder = copytree(clip, tmp_path / name)
        save_file(held, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(facts))
        assert torch.equal(ClipText(str(folder), length=12).read(TEXTS).states, expected)


def test_encoded_once_is_encoded_directly(clip, tmp_path, calls, monkeypatch):
    monkeypatch.setattr("diffguide.conditions.encoded_texts.SHARD_ROWS", 2)  # 3 shards
    captions = [["a red dot", "red"], [""], ["an egg"], [], ["red"], ["a", "b", "c"]]

    def make() -> ClipText:
        return ClipText(str(clip), length=12, cache=str(tmp_path))

    text = make()
    rows, chance = torch.tensor([0, 1, 5, 2, 0, 3]), torch.tensor([[0.6], [0.1], [0.99], [0.0], [0.2], [0.5]])
    y = text.tabulate({"captions": captions}, torch.zeros(6))(rows, X, chance)
    direct = text.read(["red", "", "c", "an egg", "a red dot", ""])
    assert y.keep.tolist() == direct.keep.tolist() and torch.equal(y.mask, direct.mask)
    torch.testing.assert_close(y.states, direct.states, rtol=0, atol=2e-6)
    torch.testing.assert_close(y.pooled, direct.pooled, rtol=0, atol=2e-6)
    shards = sorted(tmp_path.rglob("*.safetensors"))
    assert len(shards) == 4 and [len(each) for each in calls] == [1, 2, 1, 2, 1, 4]  # null, shards, direct
    calls.clear()
    again = make().tabulate({"captions": captions}, torch.zeros(6))(rows, X, chance)
    assert torch.equal(again.states, y.states) and calls == [[""]]
    shards[1].write_bytes(shards[1].read_bytes()[:-3] + b"abc")  # damaged: encoded again, and it alone
    shards[2].unlink()
    calls.clear()
    again = make().tabulate({"captions": captions}, torch.zeros(6))(rows, X, chance)
    assert torch.equal(again.states, y.states) and len(calls) == 3


def test_the_cache_is_named_by_encoder_settings_and_texts(clip, tmp_path):
    other = write_clip(tmp_path / "other", seed=1)
    cache = tmp_path / "cache"
    for text in (
        ClipText(str(clip), length=12, cache=str(cache)),
        ClipText(str(clip), length=11, cache=str(cache)),
        ClipText(str(clip), layer=-2, length=12, cache=str(cache)),
        ClipText(str(other), length=12, cache=str(cache)),
    ):
        text.tabulate({"captions": [["red"]]}, torch.zeros(1))
        text.tabulate({"captions": [["red"], ["egg"]]}, torch.zeros(1))
    assert len(list(cache.iterdir())) == 8


def test_known_texts_and_the_null_condition_need_no_encoder(clip, tmp_path, calls):
    text = ClipText(str(clip), length=12, cache=str(tmp_path / "cache"))
    text.tabulate({"captions": [["red"]]}, torch.zeros(1))
    node = text.settle({"path": "gone", "length": 12, "cache": str(tmp_path / "cache")})
    calls.clear()
    moved = ClipText(**node)
    moved.load_state_dict(text.state_dict())
    table = moved.tabulate({"captions": [["red"]]}, torch.zeros(1))
    assert torch.equal(table(torch.tensor([0]), X).states, text.read(["red"]).states)
    assert torch.equal(moved(None, X).tokens, text(None, X).tokens)
    assert not moved.read([""]).keep.any() and calls == [["red"]]
    assert not list(moved.parameters()) and set(moved.state_dict()) == {"empty_states", "empty_mask", "empty_pooled"}
    with pytest.raises(ValueError, match="no text encoder at gone"):
        moved.read(["blue"])
    changed = ClipText(**{**node, "path": str(write_clip(tmp_path / "changed", seed=2))})
    with pytest.raises(ValueError, match="another one in training"):
        changed.read(["blue"])
    assert copy.deepcopy(text).encoder is text.encoder


def test_two_encoders_read_the_same_captions_and_prompts(clip, t5, tmp_path):
    parts = {
        "clip": ClipText(str(clip), length=12, cache=str(tmp_path)),
        "t5": T5Text(str(t5), length=6, cache=str(tmp_path)),
    }
    both = SeveralConditions(parts)
    assert both.reads_text and both.token_features == 8
    y = both.read(["red", {"t5": "blue"}, ""])
    assert y.parts["clip"].keep.tolist() == [True, False, False] and y.parts["t5"].keep.tolist() == [True, True, False]
    context = both(y, X[:3])
    assert context.tokens.shape == (3, 18, 8) and context.vector.shape == (3, 14) and context.mask.shape == (3, 18)
    captions = [["red", "blue", "green"]] * 40
    table = both.tabulate({"captions": captions}, torch.zeros(40))
    assert table.draws == 3  # one for the captions, one to drop each part
    chance = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    y = table(torch.arange(40), X, chance)
    drawn = (chance[:, 0] * 3).long()
    for row, index in enumerate(drawn.tolist()):
        for name, part in parts.items():
            assert torch.allclose(y.parts[name].states[row], part.read([captions[0][index]]).states[0], atol=2e-6)
    padded = SeveralConditions({"clip": ClipText(str(clip), length=12, padding=True), "t5": parts["t5"]})
    assert padded(padded.read(["red"]), X[:1]).mask.sum() == 12 + 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda f: (f / "vocab.json").unlink(), "no tokenizer"),
        (lambda f: (f / "config.json").unlink(), "no text encoder"),
        (lambda f: edit(f, model_type="bert"), "'bert'"),
        (lambda f: edit(f, hidden_size=2**40), "hidden_size"),
        (lambda f: edit(f, hidden_size=16), "of shape"),
        (lambda f: edit(f, num_hidden_layers=3), "lacks the tensor"),
        (lambda f: edit(f, hidden_size="../x"), "hidden_size"),
    ],
)
def test_damaged_encoders_are_refused(clip, tmp_path, change, expected):
    from shutil import copytree

    folder = copytree(clip, tmp_path / "clip")
    change(folder)
    with pytest.raises(ValueError, match=expected):
        ClipText(str(folder), length=12)


def edit(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"length": 13}, "condition.length must be at most 12"),
        ({"length": 12, "layer": -3}, "condition.layer"),
        ({"length": 12, "layer": 0}, "condition.layer"),
        ({"length": 12, "sha256": "0"}, "both"),
        ({"length": 1}, "condition.length"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(clip, arguments, expected):
    with pytest.raises(ValueError, match=expected):
        ClipText(str(clip), **arguments)


def test_texts_that_are_too_long_and_other_conditions_are_refused(clip):
    text = ClipText(str(clip), length=5)
    with pytest.raises(ValueError, match="condition.length=5"):
        text.read(["abc def"])
    with pytest.raises(ValueError, match="TokenStates"):
        text(TokenStates(torch.zeros(4, 3, 8), torch.ones(4, 3, dtype=torch.bool), torch.zeros(4, 8)), X)
