"""Features of images: the local classifier and its cache, and the pretrained networks, here with random weights."""

import json

import pytest
import torch
from torch.nn import functional

from diffguide.datasets import GMM2D, Dataset, Digits, Split
from diffguide.evaluation.metric import MetricError
from diffguide.evaluation.quality import local, pretrained
from diffguide.evaluation.quality.features import Pixels, preprocess
from diffguide.evaluation.quality.local import (
    Local,
    LocalNetwork,
    load_images,
    network_accuracy,
    shift_at_random,
    train_local_network,
)
from diffguide.evaluation.quality.pretrained import CLIP, DINOv2, Inception
from diffguide.figures.image_grids import quantize, to_uint8
from diffguide.files import safetensors as archives

CPU = torch.device("cpu")


def silent(done: int, total: int, unit: str) -> None:
    pass


def images(n: int, channels: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (n, channels, size, size), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(1, 8, 10)


def of(x: torch.Tensor, y: torch.Tensor, classes: int = 2) -> Dataset:
    return Dataset(Split(x, y), Split(x[:2], y[:2]), Split(x[:2], y[:2]), [str(k) for k in range(classes)])


def test_bytes_are_those_of_sample_files():
    x = 1.3 * torch.linspace(-1, 1, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert quantize(x).permute(0, 2, 3, 1).numpy().tolist() == to_uint8(x).tolist()


def test_pixel_features_are_the_pixels_in_0_to_1():
    u = images(3, 1, 4)
    assert torch.equal(Pixels()(u).features, u.flatten(1) / 255) and Pixels().width((1, 4, 4)) == 16
    assert Pixels()(u).logits is None


def test_the_local_classifier_is_accurate_on_digits(digits):
    """95 % accuracy on the validation split after 80 steps; the logits are a function of the features."""
    features = Local(80, 0, None)
    features.check(digits)
    features.prepare(digits, CPU, silent)
    u, y = load_images(digits, "validation")
    found = features(u)
    assert found.features.shape == (350, 64) and found.logits.shape == (350, 10) and features.width(digits.shape) == 64
    assert torch.equal(features.network.head(found.features), found.logits)
    assert network_accuracy(features.network, u, y) == float((found.logits.argmax(1) == y).double().mean()) > 0.95


def test_training_is_a_function_of_its_arguments(digits):
    """It does not change the global generator."""
    u, y = load_images(digits, "train", torch.arange(200))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (train_local_network(u, y, 10, 3, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    same, different = (
        [torch.equal(a, b) for a, b in zip(first.parameters(), net.parameters())] for net in (again, other)
    )
    assert all(same) and not all(different)
    assert not any(parameter.requires_grad for parameter in first.parameters()) and not first.training


def test_shifts_move_whole_images():
    """By at most an eighth of the side in both directions; the border is replicated."""
    x = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(200, 1, 1, 1)
    moved = shift_at_random(x, torch.Generator().manual_seed(0))
    padded = functional.pad(x[:1], [1] * 4, mode="replicate")[0, 0]
    every = {tuple(padded[i : i + 8, j : j + 8].flatten().tolist()) for i in range(3) for j in range(3)}
    assert {tuple(part.flatten().tolist()) for part in moved} == every


@pytest.mark.parametrize("channels, size", [(1, 8), (1, 28), (3, 32), (3, 64)])
def test_the_local_network_supports_images_of_8_to_64_pixels(channels, size):
    features, logits = LocalNetwork(channels, size, 7)(torch.zeros(2, channels, size, size))
    assert features.shape == (2, 64) and logits.shape == (2, 7)


def test_a_cached_network_is_used_for_the_same_data_and_recipe_only(digits, tmp_path, monkeypatch):
    """Other steps, seeds or data do not use it; a damaged file raises."""
    counted, taught = [], local.train_local_network
    monkeypatch.setattr(local, "train_local_network", lambda *arguments: (counted.append(1), taught(*arguments))[1])

    def prepared(steps: int = 2, seed: int = 0, data: Dataset = digits) -> Local:
        features = Local(steps, seed, str(tmp_path / "cache"))
        features.prepare(data, CPU, silent)
        return features

    first, again = prepared(), prepared()
    u = images(5, 1, 8)
    assert len(counted) == 1 and torch.equal(first(u).features, again(u).features)
    assert first.facts() == again.facts() and first.facts()["hash"]
    changed = Split(digits.train.x.clone(), digits.train.y)
    changed.x[3, 0, 2, 2] += 0.5
    other = Dataset(changed, digits.validation, digits.test, digits.class_names)
    for arguments in ((3, 0), (2, 1), (2, 0, other)):
        prepared(*arguments)
    assert len(counted) == 4 and len(list((tmp_path / "cache").iterdir())) == 4
    path = tmp_path / "cache" / f"local-{first.digest[:16]}.safetensors"
    tensors, facts = archives.read_sealed(path)
    archives.write_sealed(path, tensors, facts | {"data": "0" * 64})
    with pytest.raises(MetricError, match="other data"):
        prepared()
    path.write_bytes(b"torn")
    with pytest.raises(MetricError, match="cannot be read"):
        prepared()
    (tmp_path / "file").write_text("")
    with pytest.raises(MetricError, match="metric.features.cache=.*null"):
        Local(1, 0, str(tmp_path / "file")).prepare(digits, CPU, silent)


@pytest.mark.parametrize(
    "data, message",
    {
        "vectors": (GMM2D(2, None, 4, 50, 5, 5, 0), "8 to 64 pixels .*\\[2\\]"),
        "large": (of(images(3, 3, 80), torch.tensor([0, 1, 0])), "metric/features=inception, dinov2"),
        "one class": (of(images(3, 1, 8), torch.tensor([1, 1, -1])), "metric.features=local .*two classes"),
    }.values(),
)
def test_local_features_need_small_square_images_of_two_classes(data, message):
    with pytest.raises(ValueError, match=message):
        Local(1, 0, None).check(data)


def test_examples_without_a_class_are_ignored_in_training():
    """They do not change the weights."""
    u, y = images(40, 1, 8), torch.arange(40) % 2
    more = torch.cat([u, images(5, 1, 8, 9)]), torch.cat([y, torch.full((5,), -1)])
    nets = [Local(2, 0, None) for _ in range(2)]
    for net, data in zip(nets, (of(u, y), of(*more))):
        net.prepare(data, CPU, silent)
    assert torch.equal(nets[0](u).features, nets[1](u).features)


@pytest.mark.parametrize("steps, seed", [(0, 0), (1, -1)])
def test_steps_and_seed_out_of_range_raise(steps, seed):
    with pytest.raises(ValueError, match="steps|seed"):
        Local(steps, seed, None)


def test_only_the_published_weights_are_inception(tmp_path, monkeypatch):
    """A file with other contents, a missing file, and a failed download raise."""
    pytest.importorskip("torch_fidelity")
    other = tmp_path / pretrained.INCEPTION_WEIGHTS
    other.write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA-256 .*6726825d"):
        Inception(str(other))
    with pytest.raises(ValueError, match="nowhere.pth"):
        Inception(str(tmp_path / "nowhere.pth"))

    def offline(url, path, prefix):
        assert url.endswith(pretrained.INCEPTION_WEIGHTS) and prefix == "6726825d"
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError, match="metric.features.weights="):
        Inception(None)


def test_inception_features_are_those_of_torch_fidelity(tmp_path, monkeypatch):
    """Greyscale images get three channels; 2048 features, 1008 logits without the bias; the network is replaced."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    seen = {}

    class Network(torch.nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path):
            super().__init__()
            seen["features"], seen["path"] = features_list, feature_extractor_weights_path

        def forward(self, x):
            seen["x"] = x
            return torch.ones(len(x), 2048), torch.zeros(len(x), 1008)

    monkeypatch.setattr(module, "FeatureExtractorInceptionV3", Network)
    monkeypatch.setattr(
        pretrained, "WEIGHTS_SHA256", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    (tmp_path / "weights.pth").write_bytes(b"")
    features = Inception(str(tmp_path / "weights.pth"))
    data = of(images(4, 1, 8), torch.tensor([0, 1, 0, 1]))
    features.check(data)
    features.prepare(data, CPU, silent)
    u = images(2, 1, 8)
    found = features(u)
    assert found.features.shape == (2, 2048) and found.logits.shape == (2, 1008)
    assert seen["features"] == ["2048", "logits_unbiased"] and seen["path"] == str(tmp_path / "weights.pth")
    assert torch.equal(seen["x"], u.expand(-1, 3, -1, -1)) and features.width((1, 8, 8)) == 2048
    with pytest.raises(ValueError, match="features=inception .*1 or 3 channels.*\\[2\\]"):
        features.check(GMM2D(2, None, 4, 50, 5, 5, 0))


def test_dinov2_is_the_class_token(tmp_path):
    """A small model with random weights from a folder; images are resized and standardized as for ImageNet."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    network = transformers.Dinov2Model(config).eval()
    network.save_pretrained(tmp_path / "dino")
    features = DINOv2(str(tmp_path / "dino"), 28)
    features.prepare(None, CPU, silent)
    u = images(2, 3, 28)
    colours = [torch.tensor(part)[:, None, None] for part in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    with torch.no_grad():
        expected = network((u / 255 - colours[0]) / colours[1]).last_hidden_state[:, 0]
    assert torch.allclose(features(u).features, expected, atol=1e-5)
    assert features.width((3, 28, 28)) == 16 and features(images(1, 1, 8)).features.shape == (1, 16)
    assert "28" in features.facts()["resize"] and features.facts()["model"] == str(tmp_path / "dino")
    with pytest.raises(ValueError, match="side .*14 pixels, got 30"):
        DINOv2(str(tmp_path / "dino"), 30)


def test_clip_is_the_embedding_before_it_is_normalised(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=12,
    )
    network = transformers.CLIPVisionModelWithProjection(config).eval()
    network.save_pretrained(tmp_path / "clip")
    features = CLIP(str(tmp_path / "clip"))
    features.prepare(None, CPU, silent)
    u = images(2, 3, 16)
    with torch.no_grad():
        expected = network(preprocess(u, 16, *pretrained.CLIP_COLOURS)).image_embeds
    assert torch.allclose(features(u).features, expected, atol=1e-5)
    assert features.width((3, 16, 16)) == 12 and features(images(1, 1, 9)).features.shape == (1, 12)
    torch.save(network.state_dict(), tmp_path / "clip/pytorch_model.bin")
    (tmp_path / "clip/model.safetensors").unlink()
    for folder in ("nowhere/there", "clip"):  # pickles are not loaded
        with pytest.raises(ValueError, match="model: .*CLIPVisionModelWithProjection"):
            CLIP(str(tmp_path / folder))


def test_images_are_resized_between_black_and_white():
    """Values of the bicubic resize are clipped; constant images stay constant; images of the right size do not change."""
    step = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    step[..., 4:] = 255
    x = preprocess(step, 20, (0.0,) * 3, (1.0,) * 3)
    assert x.shape == (1, 3, 20, 20) and 0 <= float(x.min()) and float(x.max()) <= 1 and len(x.unique()) > 3
    assert torch.allclose(preprocess(step[..., :2, 4:6], 5, (0.5,) * 3, (0.25,) * 3), torch.full((1, 3, 5, 5), 2.0))
    assert json.dumps(Pixels().facts()) == '{"resize": "none"}'
